package ext4

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"unsafe"

	"github.com/google/uuid"
	"github.com/orlop-io/orlop/internal/base/errs"
	"golang.org/x/sys/unix"
)

// Options of Make.
type Options struct {
	UUID  uuid.UUID
	Label string // at most 16 bytes
	// Zeroed says that the device reads as zeros where it was never written, so
	// that inode tables and journal need no zeroing, now or in the background.
	Zeroed bool
	// NoJournal is for what need not outlive the machine: it saves the journal's space and
	// writes.
	NoJournal bool
}

// noPrezeroed is set where mkfs.ext4 is older than 1.47 and does not know the option.
var noPrezeroed atomic.Bool

// Make formats the device or image, which must be empty: anything but zeros in its
// first MiB is an errs.FailedPrecondition error, and nothing is written.
func Make(ctx context.Context, path string, o Options) error {
	if err := checkEmpty(path); err != nil {
		return err
	}
	for {
		// nodiscard: there is nothing to discard. No reserved blocks: root of a
		// container is not who the reserve is for. An inode of 256 bytes (the default but for
		// small sizes) has room for times beyond 2038. On an inconsistency the filesystem turns
		// read-only instead of spreading it.
		ext := "nodiscard,lazy_itable_init=1,lazy_journal_init=1"
		prezeroed := o.Zeroed && !noPrezeroed.Load()
		if prezeroed {
			ext = "nodiscard,assume_storage_prezeroed=1"
		}
		args := []string{"-q", "-F", "-b", "4096", "-I", "256", "-m", "0", "-e", "remount-ro", "-U", o.UUID.String(), "-L", o.Label, "-E", ext}
		if o.NoJournal {
			args = append(args, "-O", "^has_journal")
		}
		out, _, err := run(ctx, "mkfs.ext4", append(args, path)...)
		if err == nil {
			return nil
		}
		if prezeroed && strings.Contains(out, "assume_storage_prezeroed") {
			noPrezeroed.Store(true)
			continue
		}
		return fmt.Errorf("format %s: %w", path, err)
	}
}

// checkEmpty refuses what is not all zeros where filesystems, partition tables, volume
// managers and encryption keep what they are recognised by.
func checkEmpty(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	b := make([]byte, 1<<20)
	n, err := io.ReadFull(f, b)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("look for data on %s: %w", path, err)
	}
	if at := len(bytes.TrimLeft(b[:n], "\x00")); at > 0 {
		return errs.New(errs.FailedPrecondition, "format %s: it holds data already (first at byte %d); it is left untouched", path, n-at)
	}
	return nil
}

// Check looks through an unmounted filesystem and repairs what can be repaired without losing data
// (e2fsck -p). What it did is returned, "" if nothing. Where a person has to decide the error
// is an errs.Corrupt with e2fsck's words, and the filesystem is left as it is. With force it is looked through although it says that it is clean.
func Check(ctx context.Context, path string, force bool) (repaired string, err error) {
	args := []string{"-p", path}
	if force {
		args = []string{"-p", "-f", path}
	}
	out, code, err := run(ctx, "e2fsck", args...)
	switch {
	case err == nil:
		return "", nil
	case code == 1 || code == 2 || code == 3: // e2fsck(8): errors corrected; reboot asked for, which is for the root filesystem
		return out, nil
	case code == 4 || code > 4 && code < 8:
		return "", errs.New(errs.Corrupt, "check %s: e2fsck cannot repair it without losing data, and nothing was changed; look at it with: e2fsck -n %s\n%s", path, path, out)
	}
	return "", fmt.Errorf("check %s: %w", path, err)
}

// resizeFS is EXT4_IOC_RESIZE_FS, _IOW('f', 16, __u64) (fs/ext4/ext4.h).
const resizeFS = 0x40086610

// CanGrowMounted tells whether this process may grow a mounted filesystem: the kernel
// wants CAP_SYS_RESOURCE for it (ext4_resize_begin).
func CanGrowMounted() bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return false
	}
	return data[unix.CAP_SYS_RESOURCE/32].Effective&(1<<(unix.CAP_SYS_RESOURCE%32)) != 0
}

// GrowMounted grows the filesystem mounted at dir to sizeBytes. Where the caller may
// not, it is an errs.PermissionDenied error.
func GrowMounted(dir string, sizeBytes int64) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return &os.PathError{Op: "statfs", Path: dir, Err: err}
	}
	if int64(st.Type) != unix.EXT4_SUPER_MAGIC {
		return errs.New(errs.Invalid, "grow %s: not an ext4 filesystem", dir)
	}
	blocks := uint64(sizeBytes / int64(st.Bsize))
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), resizeFS, uintptr(unsafe.Pointer(&blocks)))
	switch errno {
	case 0:
		return nil
	case unix.EPERM:
		return errs.New(errs.PermissionDenied, "grow the filesystem mounted at %s: the kernel wants CAP_SYS_RESOURCE for it", dir)
	}
	return fmt.Errorf("grow the filesystem mounted at %s: %w", dir, errno)
}

// GrowImage grows an unmounted filesystem to the size of its file or device. It is
// not safe against a crash: work on a copy.
func GrowImage(ctx context.Context, path string) error {
	// resize2fs wants a filesystem that was checked since it was last mounted.
	if _, err := Check(ctx, path, true); err != nil {
		return err
	}
	if _, _, err := run(ctx, "resize2fs", path); err != nil {
		return fmt.Errorf("grow %s: %w", path, err)
	}
	return nil
}

// run returns the command's output, its exit code, and for another than 0 an error that holds the output.
func run(ctx context.Context, name string, args ...string) (out string, code int, err error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "MKE2FS_SYNC=0")
	raw, err := cmd.CombinedOutput()
	out = strings.TrimSpace(string(raw))
	switch {
	case err == nil:
		return out, 0, nil
	case errors.Is(err, exec.ErrNotFound):
		return "", -1, errs.New(errs.Unsupported, "%s is not installed; install e2fsprogs", name)
	case ctx.Err() != nil:
		return out, -1, ctx.Err()
	}
	if x := new(exec.ExitError); errors.As(err, &x) {
		code = x.ExitCode()
	}
	return out, code, fmt.Errorf("%s: %w: %s", name, err, out)
}
