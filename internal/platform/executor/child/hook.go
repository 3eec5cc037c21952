package child

import (
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/platform/executor/plan"
)

// sync lets the parent run its hooks, and goes on when they have succeeded.
func (s *state) sync() {
	send([]byte{plan.MsgSync})
	s.await()
}

// hook runs a hook to its end: n are whether it is one of the start, its timeout in
// seconds and the number of its arguments, args what errors call it, its path, the
// container's state without the process's id, its arguments and its environment.
func (s *state) hook(n []uint64, args []string) *fail {
	name, path, data, argc := args[0], args[1], args[2], int(n[2])
	start, timeout := n[0] != 0, int64(n[1])
	if start {
		send([]byte{plan.MsgHook})
	} else {
		// Nothing of init's reaches a hook but what it is given. The host's root is still
		// the root, and the container's is where the hook starts.
		s.clean()
		if err := unix.Fchdir(s.root); err != nil {
			return failed(err, name)
		}
	}
	data = `{"pid":` + itoa(unix.Getpid()) + "," + data[1:]
	if f := runHook(path, args[3:3+argc], args[3+argc:], data, timeout, s.extra); f != nil {
		f.operand = name
		return f
	}
	if start {
		send([]byte{plan.MsgHooked})
	}
	return nil
}

// runHook executes a hook, feeds it the state and waits for its end. extra descriptors of
// the program's are closed in it.
func runHook(path string, argv, env []string, data string, timeout int64, extra int) *fail {
	stdin, in, err := pipe(true)
	if err != nil {
		return failed(err, "")
	}
	stdout, out, err := pipe(false)
	if err != nil {
		return failed(err, "")
	}
	files := []uintptr{uintptr(stdin), uintptr(stdout), uintptr(stdout)}
	for range extra {
		files = append(files, ^uintptr(0))
	}
	pidfd := -1
	pid, err := syscall.ForkExec(path, argv, &syscall.ProcAttr{Env: env, Files: files,
		Sys: &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL, PidFD: &pidfd}})
	unix.Close(stdin)
	unix.Close(stdout)
	if err != nil {
		unix.Close(in)
		unix.Close(out)
		return failed(err, "")
	}
	end := now() + timeout*1000
	late := false
	var said []byte
	for ended := false; !ended; {
		wait := -1
		if timeout > 0 && !late {
			if wait = int(min(end-now(), 1<<30)); wait <= 0 {
				unix.Kill(-pid, unix.SIGKILL)
				late, wait = true, -1
			}
		}
		fds := [3]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}, {Fd: int32(out), Events: unix.POLLIN}, {Fd: int32(in), Events: unix.POLLOUT}}
		if _, err := unix.Poll(fds[:], wait); err != nil && err != unix.EINTR {
			unix.Kill(-pid, unix.SIGKILL)
			return failed(err, "")
		}
		ended = fds[0].Revents != 0
		if fds[1].Revents != 0 || ended {
			var open bool
			if said, open = listen(out, said); !open {
				unix.Close(out)
				out = -1 // poll passes over it
			}
		}
		if fds[2].Revents != 0 && in >= 0 {
			n, err := unix.Write(in, []byte(data))
			if err == nil {
				data = data[n:]
			}
			if data == "" || err != nil && err != unix.EAGAIN && err != unix.EINTR {
				unix.Close(in) // it has all, or wants no more
				in = -1
			}
		}
	}
	for _, fd := range [...]int{in, out, pidfd} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	var ws unix.WaitStatus
	for {
		if _, err := unix.Wait4(pid, &ws, 0, nil); err != unix.EINTR {
			break
		}
	}
	f := &fail{}
	switch {
	case late:
		f.errno, f.hint = unix.ETIMEDOUT, "it was killed because it did not end within its timeout of "+itoa(int(timeout))+" s"
	case ws.Signaled():
		f.hint = "it was killed by signal " + itoa(int(ws.Signal()))
	case ws.ExitStatus() != 0:
		f.hint = "it ended with status " + itoa(ws.ExitStatus())
	default:
		return nil
	}
	if len(said) > 0 {
		f.hint += ": " + string(said)
	}
	return f
}

// pipe makes a pipe for a hook: its end is blocking, ours is not. ours is the writing end
// if feed.
func pipe(feed bool) (its, ours int, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return -1, -1, err
	}
	its, ours = p[1], p[0]
	if feed {
		its, ours = p[0], p[1]
	}
	return its, ours, unix.SetNonblock(ours, true)
}

// listen appends what there is to read to said, of which it keeps the end, and tells
// whether there may be more later.
func listen(fd int, said []byte) ([]byte, bool) {
	var buf [4096]byte
	for {
		n, err := unix.Read(fd, buf[:])
		if err == unix.EINTR {
			continue
		}
		if err != nil || n == 0 {
			return said, err == unix.EAGAIN
		}
		said = append(said, buf[:n]...)
		if over := len(said) - plan.MaxOutput; over > 0 {
			said = append(said[:0], said[over:]...)
		}
	}
}

// now is a time in milliseconds.
func now() int64 {
	var ts unix.Timespec
	unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return ts.Sec*1000 + ts.Nsec/1e6
}
