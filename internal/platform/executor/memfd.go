package executor

import (
	"bytes"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/platform/executor/guards"
)

// sealed copies the file at path into a memfd that nobody can change any more, so that
// neither an upgrade of the file nor a container that gets at /proc/PID/exe of the child
// (CVE-2019-5736) changes what runs as root next time.
func sealed(path string) (*os.File, error) {
	src, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if !guards.Sealed.On() {
		return src, nil
	}
	defer src.Close()
	f, err := memfd("orlop-init", src, unreadable())
	if err != nil {
		return nil, fmt.Errorf("copy %s: %w", path, err)
	}
	return f, nil
}

// unreadable is the mode of init's binary. A program that its user may not read belongs to
// the user namespace of the file, not the user's (would_dump in fs/exec.c): the root of a
// container cannot trace it, from its first instruction.
func unreadable() os.FileMode {
	if !guards.Unreadable.On() {
		return 0o555
	}
	return 0o511
}

// program puts an executable into a memfd.
func program(name string, code []byte) (*os.File, error) {
	return memfd(name, bytes.NewReader(code), 0o555)
}

func memfd(name string, content io.Reader, mode os.FileMode) (*os.File, error) {
	// MFD_EXEC is asked for where the kernel knows it (6.3), because of the sysctl
	// vm.memfd_noexec; older ones refuse the flag.
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_EXEC)
	if err == unix.EINVAL {
		fd, err = unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if src, ok := content.(*os.File); ok {
		err = fill(f, src)
	} else {
		_, err = io.Copy(f, content)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	if err := f.Chmod(mode); err != nil {
		f.Close()
		return nil, fmt.Errorf("chmod: %w", err)
	}
	seals := unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		f.Close()
		return nil, fmt.Errorf("seal: %w", err)
	}
	return f, nil
}

// fill copies src to the memfd. sendfile(2) spares the way through this process, which
// counts for a command that starts one container and ends.
func fill(f, src *os.File) error {
	for {
		n, err := unix.Sendfile(int(f.Fd()), int(src.Fd()), nil, 1<<30)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return err
		case n == 0:
			return nil
		}
	}
}
