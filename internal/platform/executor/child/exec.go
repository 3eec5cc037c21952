package child

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/platform/executor/plan"
)

// lookup finds the program as execvp(3) would, as the user that will run it, so that a
// missing one is an error before the gate opens.
func (s *state) lookup(file, path string) *fail {
	if file == "" {
		return &fail{unix.ENOENT, `""`, "the command is empty"}
	}
	for i := range len(file) {
		if file[i] == '/' {
			if err := executable(file); err != nil {
				return lookupFailed(err, file)
			}
			return s.found(file)
		}
	}
	var denied error
	for start, i := 0, 0; i <= len(path); i++ {
		if i < len(path) && path[i] != ':' {
			continue
		}
		dir := path[start:i]
		start = i + 1
		if dir == "" {
			dir = "."
		}
		p := dir + "/" + file
		err := executable(p)
		if err == nil {
			return s.found(p)
		}
		if err == unix.EACCES {
			denied = err
		}
	}
	if denied != nil {
		return &fail{unix.EACCES, file, "it is in PATH (" + path + ") but may not be executed"}
	}
	return &fail{unix.ENOENT, file, "it is not in PATH (" + path + ")"}
}

func lookupFailed(err error, file string) *fail {
	f := failed(err, file)
	if err == unix.EISDIR {
		f.errno, f.hint = unix.EACCES, "it is a directory"
	}
	return f
}

func executable(path string) error {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return unix.EISDIR
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return unix.EACCES
	}
	err := unix.Faccessat2(unix.AT_FDCWD, path, unix.X_OK, unix.AT_EACCESS)
	if err == unix.ENOSYS || err == unix.EPERM {
		return nil // Linux before 5.8: execve will tell
	}
	return err
}

func (s *state) found(path string) *fail {
	var err error
	s.exe, err = unix.BytePtrFromString(path)
	return failed(err, path)
}

// prepare makes everything that the operations after the gate need, so that none of them
// needs memory: a filter may forbid what the Go runtime does to get some.
func (s *state) prepare() *fail {
	for i := range s.rest {
		if s.rest[i].Code != plan.Exec {
			continue
		}
		argc := int(s.rest[i].N[0])
		for j, str := range s.rest[i].S {
			p, err := unix.BytePtrFromString(str)
			if err != nil {
				return failed(err, str)
			}
			if j < argc {
				s.argv = append(s.argv, p)
			} else {
				s.envv = append(s.envv, p)
			}
		}
		if s.home != "" {
			p, err := unix.BytePtrFromString("HOME=" + s.home)
			if err != nil {
				return failed(err, s.home)
			}
			s.envv = append(s.envv, p)
		}
		s.argv = append(s.argv, nil)
		s.envv = append(s.envv, nil)
	}
	s.clean()
	return nil
}

// clean puts back what a program inherits: no signal is blocked or ignored, and no
// descriptor above the standard streams and the program's extra ones survives execve.
func (s *state) clean() {
	// What Go does not handle stays as it was: SIGHUP and SIGINT if they were ignored,
	// and those that the C library keeps for itself.
	var dfl [4]uintptr // struct sigaction of the kernel, SIG_DFL
	for _, sig := range [...]uintptr{1, 2, 32, 33, 34} {
		unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, uintptr(unsafe.Pointer(&dfl)), 0, 8, 0, 0)
	}
	var none uint64
	unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&none)), 0, 8, 0, 0)
	first := 3 + s.extra
	if unix.CloseRange(uint(first), 1<<31-1, unix.CLOSE_RANGE_CLOEXEC) != nil { // Linux before 5.11
		for fd := first; fd < 1024; fd++ {
			unix.CloseOnExec(fd)
		}
	}
}

// exec does not return if it succeeds.
func (s *state) exec(operand string) *fail {
	_, _, e := unix.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(s.exe)),
		uintptr(unsafe.Pointer(&s.argv[0])), uintptr(unsafe.Pointer(&s.envv[0])))
	return execFailed(e, operand)
}

func execFailed(e unix.Errno, operand string) *fail {
	f := raw(e, operand)
	switch e {
	case unix.ENOENT:
		f.hint = "the file is there, but what it needs to run is not: the interpreter of its first line, or its loader"
	case unix.ENOEXEC:
		f.hint = "not a program for this machine: a script without a #! line, or a binary for another architecture"
	case unix.E2BIG:
		f.hint = "arguments and environment together are too long"
	}
	return f
}
