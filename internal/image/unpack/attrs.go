package unpack

import (
	"archive/tar"
	"math"
	"strings"
	"time"
	"unsafe"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/overlay"
	"golang.org/x/sys/unix"
)

// attrs are what an entry has besides its name and data.
type attrs struct {
	mode     uint32 // permission bits, setuid, setgid, sticky
	uid, gid int
	mtime    unix.Timespec
	xattrs   map[string]string
}

// paxXattr is where every tool keeps extended attributes.
const paxXattr = "SCHILY.xattr."

// maxXattr is the kernel's limit of a value (XATTR_SIZE_MAX).
const maxXattr = 64 << 10

func attrsOf(hdr *tar.Header) (attrs, error) {
	a := attrs{mode: uint32(hdr.Mode) & 0o7777, uid: hdr.Uid, gid: hdr.Gid, mtime: timespec(hdr.ModTime)}
	// (uid_t)-1 means "leave as it is" to chown(2).
	if a.uid < 0 || a.gid < 0 || int64(a.uid) >= math.MaxUint32 || int64(a.gid) >= math.MaxUint32 {
		return a, errs.New(errs.Invalid, "its owner %d:%d is no valid user and group", hdr.Uid, hdr.Gid)
	}
	for k, v := range hdr.PAXRecords {
		name, ok := strings.CutPrefix(k, paxXattr)
		if !ok {
			continue
		}
		if len(name) == 0 || len(name) > 255 || strings.IndexByte(name, 0) >= 0 || len(v) > maxXattr {
			return a, errs.New(errs.Invalid, "it has an extended attribute with a bad name or of more than %d bytes", maxXattr)
		}
		if strings.HasPrefix(name, overlay.XattrPrefix) || strings.HasPrefix(name, overlay.UserXattrPrefix) {
			return a, errs.New(errs.Invalid, "it has the attribute %q, by which a layer could name files of other layers", name)
		}
		if !wanted(name) {
			continue
		}
		if a.xattrs == nil {
			a.xattrs = make(map[string]string)
		}
		a.xattrs[name] = v
	}
	return a, nil
}

// wanted tells which attributes are part of an image. Labels and measurements
// (security.selinux, security.ima) are those of the machine that built it.
func wanted(name string) bool {
	return name == "security.capability" || strings.HasPrefix(name, "user.") ||
		name == "system.posix_acl_access" || name == "system.posix_acl_default"
}

// timespec brings a time into what filesystems store.
func timespec(t time.Time) unix.Timespec {
	sec := min(max(t.Unix(), math.MinInt32), 1<<34-1)
	return unix.Timespec{Sec: sec, Nsec: int64(t.Nanosecond())}
}

// set gives the open file its attributes. The order matters: chown(2) clears
// setuid and capabilities. Owner and mode are only set where they can differ from
// what the file was made with: owner is whether a new file may have had another
// owner than root, mode whether it was made without bits that it should have.
func (a *attrs) set(fd int, owner, mode bool) error {
	if owner || a.uid != 0 || a.gid != 0 {
		if err := unix.Fchown(fd, a.uid, a.gid); err != nil {
			return err
		}
	}
	if mode {
		if err := unix.Fchmod(fd, a.mode); err != nil {
			return err
		}
	}
	for k, v := range a.xattrs {
		if err := setXattr(fd, k, v); err != nil {
			return err
		}
	}
	return futimens(fd, a.mtime)
}

func setXattr(fd int, name, value string) error {
	err := unix.Fsetxattr(fd, name, []byte(value), 0)
	switch err {
	case nil:
		return nil
	case unix.ENOTSUP:
		return nil // the filesystem has no such attributes
	case unix.ENOSPC, unix.E2BIG, unix.ERANGE:
		return errs.New(errs.Invalid, "its extended attributes are larger than the filesystem of the image store takes: %s", err)
	case unix.EINVAL, unix.EPERM:
		return errs.New(errs.Invalid, "the kernel refuses its extended attribute %q: %w", name, err)
	}
	return err
}

// futimens is futimens(3): utimensat(2) of the descriptor itself, without a path.
func futimens(fd int, t unix.Timespec) error {
	ts := [2]unix.Timespec{t, t}
	_, _, e := unix.RawSyscall6(unix.SYS_UTIMENSAT, uintptr(fd), 0, uintptr(unsafe.Pointer(&ts)), 0, 0, 0)
	if e != 0 {
		return e
	}
	return nil
}

// setAt is set for what cannot be opened (symlinks, FIFOs).
func (a *attrs) setAt(dirfd int, name string, owner bool) error {
	if owner || a.uid != 0 || a.gid != 0 {
		if err := unix.Fchownat(dirfd, name, a.uid, a.gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
	}
	return utimensat(dirfd, name, a.mtime, unix.AT_SYMLINK_NOFOLLOW)
}

func utimensat(dirfd int, name string, t unix.Timespec, flags int) error {
	ts := [2]unix.Timespec{t, t}
	return unix.UtimesNanoAt(dirfd, name, ts[:], flags)
}

// finish gives directories their attributes: only now will nothing be made in
// them any more that would change their times or inherit from them.
func (u *unpacker) finish() error {
	u.dirs.flush()
	u.dirs.reap()
	for p, a := range u.attrs {
		if err := u.finishDir(p, a); err != nil {
			return errs.New(errs.KindOf(err), "directory %q: %w", p, err)
		}
	}
	return nil
}

func (u *unpacker) finishDir(p string, a attrs) error {
	if p == "" {
		p = "."
	}
	fd, err := unix.Openat2(u.root, p, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err == unix.EAGAIN {
		return u.finishDir(p, a)
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	// A directory may have been made before its entry came, or be one from below.
	return a.set(fd, u.o.Merged, true)
}
