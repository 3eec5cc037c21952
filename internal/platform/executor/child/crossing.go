package child

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// cross hands the mounts on to descriptors from first on, and executes the program that
// enters the user namespace. What comes after it is another plan.
func (s *state) cross(program, first int) *fail {
	fds := make([]int, len(s.slots))
	for i, sl := range s.slots {
		if fds[i] = sl.fd; sl.fd < 0 {
			continue // it is made inside
		}
		// Out of the way first: one may be where another goes.
		fd, err := unix.FcntlInt(uintptr(sl.fd), unix.F_DUPFD_CLOEXEC, first+len(s.slots))
		if err != nil {
			return failed(err, "keep a mount open")
		}
		fds[i] = fd
	}
	for i, fd := range fds {
		if fd < 0 {
			continue
		}
		if err := unix.Dup3(fd, first+i, 0); err != nil {
			return failed(err, "keep a mount open")
		}
	}
	var none uint64
	unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&none)), 0, 8, 0, 0)
	name, empty := []byte("orlop-init\x00"), []byte("\x00")
	argv, envv := [2]*byte{&name[0], nil}, [1]*byte{}
	_, _, e := unix.RawSyscall6(unix.SYS_EXECVEAT, uintptr(program), uintptr(unsafe.Pointer(&empty[0])),
		uintptr(unsafe.Pointer(&argv[0])), uintptr(unsafe.Pointer(&envv[0])), unix.AT_EMPTY_PATH, 0)
	return raw(e, "")
}

// take makes a mount that was opened before the crossing that of a slot.
func (s *state) take(i, fd int) *fail {
	unix.CloseOnExec(fd)
	dir, err := isDir(fd)
	s.put(i, fd, dir, "")
	return failed(err, itoa(fd))
}
