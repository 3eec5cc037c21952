package child

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/platform/executor/tiny"
)

// pause becomes the program of a pause process.
func (s *state) pause() *fail {
	fd, err := unix.MemfdCreate("pause", unix.MFD_CLOEXEC|unix.MFD_EXEC)
	if err == unix.EINVAL { // Linux before 6.3
		fd, err = unix.MemfdCreate("pause", unix.MFD_CLOEXEC)
	}
	if err != nil {
		return failed(err, "memfd")
	}
	if _, err := unix.Write(fd, tiny.Pause()); err != nil {
		return failed(err, "memfd")
	}
	name, empty := []byte("pause\x00"), []byte("\x00")
	argv, envv := [2]*byte{&name[0], nil}, [1]*byte{}
	_, _, e := unix.RawSyscall6(unix.SYS_EXECVEAT, uintptr(fd), uintptr(unsafe.Pointer(&empty[0])),
		uintptr(unsafe.Pointer(&argv[0])), uintptr(unsafe.Pointer(&envv[0])), unix.AT_EMPTY_PATH, 0)
	return raw(e, "pause")
}
