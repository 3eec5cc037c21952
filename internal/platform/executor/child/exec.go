package child

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/platform/executor/guards"
	"github.com/orlop-io/orlop/internal/platform/executor/plan"
)

// lookup finds the program as execvp(3) would, as the user that will run it, so that a
// missing one is an error before the gate opens.
//
// The container decides where a path leads, and the program's is resolved as a program
// resolves paths: magic links and all. So before it is, the child lets go of everything
// that it has of the host: /proc/self/fd/4/1000/root would be the host's root for whoever
// runs as user 1000 (CVE-2024-21626), as a program, as a script's interpreter or a loader.
func (s *state) lookup(file, path string) *fail {
	if f := s.letGo(); f != nil {
		return f
	}
	if file == "" {
		return &fail{unix.ENOENT, `""`, "the command is empty"}
	}
	candidates := plan.Candidates(file, path)
	if len(candidates) == 1 && candidates[0] == file {
		if err := executable(file); err != nil {
			return lookupFailed(err, file)
		}
		return s.found(file)
	}
	var denied error
	for _, p := range candidates {
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

// letGo closes everything but the standard streams, the program's extra descriptors, the
// socket, the gate, and what the listener of a seccomp profile is reached by.
func (s *state) letGo() *fail {
	if !guards.LetGo.On() {
		return nil
	}
	keep := [4]int{channel, channel, channel, channel}
	reach := false
	for i := range s.rest {
		switch o := &s.rest[i]; {
		case o.Code == plan.Gate && len(o.N) > 0:
			keep[1] = int(o.N[0])
		case o.Code == plan.Listen: // it lets go of them
			keep[2], keep[3], reach = int(o.N[0]), s.proc, true
		}
	}
	if s.notify != nil {
		keep[2] = s.notify.socket
	}
	s.root, s.kernel = -1, nil
	if !reach {
		s.proc = -1
	}
	for i := range keep { // in order
		for j := i; j > 0 && keep[j] < keep[j-1]; j-- {
			keep[j], keep[j-1] = keep[j-1], keep[j]
		}
	}
	first := 3 + s.extra
	for _, fd := range keep {
		if f := closeRange(first, fd-1); f != nil {
			return f
		}
		first = max(first, fd+1)
	}
	return closeRange(first, 1<<31-1)
}

func closeRange(first, last int) *fail {
	if first > last {
		return nil
	}
	err := unix.CloseRange(uint(first), uint(last), 0)
	if err == unix.ENOSYS { // Linux before 5.9
		for fd := first; fd <= min(last, 1024); fd++ {
			unix.Close(fd)
		}
		return nil
	}
	return failed(err, "descriptors")
}

// clean puts back what a program inherits: no signal is blocked or ignored, and no
// descriptor above the standard streams and the program's extra ones survives execve.
func (s *state) clean() {
	// What Go does not handle stays as it was: SIGHUP and SIGINT if they were ignored,
	// and those that the C library keeps for itself.
	defaults(1, 2, 32, 33, 34)
	var none uint64
	unix.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&none)), 0, 8, 0, 0)
	if !guards.CloseOnExec.On() {
		return
	}
	first := 3 + s.extra
	if unix.CloseRange(uint(first), 1<<31-1, unix.CLOSE_RANGE_CLOEXEC) != nil { // Linux before 5.11
		for fd := first; fd < 1024; fd++ {
			unix.CloseOnExec(fd)
		}
	}
}

// quiet leaves the signals at which Go's runtime writes its stacks and registers to their
// defaults: a container that is joined may send them, and standard error is its log.
func quiet() {
	defaults(unix.SIGQUIT, unix.SIGILL, unix.SIGTRAP, unix.SIGABRT, unix.SIGBUS, unix.SIGFPE, unix.SIGSEGV, unix.SIGSTKFLT, unix.SIGSYS)
}

func defaults(signals ...unix.Signal) {
	var dfl [4]uintptr // struct sigaction of the kernel, SIG_DFL
	for _, sig := range signals {
		unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), uintptr(unsafe.Pointer(&dfl)), 0, 8, 0, 0)
	}
}

// exec does not return if it succeeds.
func (s *state) exec(operand string) *fail {
	_, _, e := unix.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(s.exe)),
		uintptr(unsafe.Pointer(&s.argv[0])), uintptr(unsafe.Pointer(&s.envv[0])))
	return execFailed(e, operand)
}

func execFailed(e unix.Errno, operand string) *fail {
	return &fail{errno: e, operand: operand, hint: plan.ExecHint(uint64(e))}
}
