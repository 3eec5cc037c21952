package container

import (
	"fmt"
	"io"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/signals"
	"github.com/orlop-io/orlop/internal/platform/executor"
	"github.com/orlop-io/orlop/internal/platform/pidfd"
)

// Foreground is a command that stays while its process runs: signals that it gets go to
// the process, and the process's terminal is the one that the command has.
type Foreground struct {
	signals   *signals.Pipe
	subreaper bool
	terminal  *terminal // of the process, nil if it has none
}

// NewForeground begins to take the signals. With subreaper, processes of a container that
// shares our PID namespace come to us when their parents end, and are reaped.
func NewForeground(subreaper bool) (*Foreground, error) {
	p, err := signals.Open()
	if err != nil {
		return nil, err
	}
	if subreaper {
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
			return nil, fmt.Errorf("become a subreaper: %w", err)
		}
		p.Take(unix.SIGCHLD)
	}
	p.Take(unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2, unix.SIGALRM, unix.SIGCONT, unix.SIGTSTP, unix.SIGTTIN,
		unix.SIGTTOU, unix.SIGVTALRM, unix.SIGIO, unix.SIGPWR, unix.SIGWINCH, unix.SIGXCPU, unix.SIGXFSZ)
	for n := syscall.Signal(35); n < 65; n++ { // real-time signals but the first, which is Go's
		p.Take(n)
	}
	return &Foreground{signals: p, subreaper: subreaper}, nil
}

// Attach gives the process its terminal, if it has one: before it starts, so that it finds
// the size right. Close undoes it.
func (f *Foreground) Attach(p *executor.Process) (err error) {
	if master := p.Console(); master != nil {
		f.terminal, err = attach(master)
	}
	return err
}

// Close makes the caller's terminal what it was.
func (f *Foreground) Close() {
	if f.terminal != nil {
		f.terminal.restore()
	}
}

// Wait passes signals on, and returns the exit code of the process once it has ended: 128
// and the signal's number where a signal ended it.
func (f *Foreground) Wait(p *executor.Process) (int, error) {
	for ended := false; !ended; {
		fds := []unix.PollFd{{Fd: int32(p.PIDFD().Fd()), Events: unix.POLLIN}, {Fd: int32(f.signals.FD()), Events: unix.POLLIN}}
		if _, err := unix.Poll(fds, -1); err != nil && err != unix.EINTR {
			return -1, fmt.Errorf("wait for process %d: %w", p.PID(), err)
		}
		for ended = fds[0].Revents != 0; !ended; {
			s, ok := f.signals.Next()
			if !ok {
				break
			}
			f.handle(p, s)
		}
	}
	end, err := pidfd.Reap(p.PIDFD(), true)
	if err != nil {
		return -1, fmt.Errorf("wait for process %d: %w", p.PID(), err)
	}
	if f.terminal != nil {
		// What it wrote last. Another process may keep the terminal for longer.
		p.Console().SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		<-f.terminal.output
	}
	return end.Code, nil
}

func (f *Foreground) handle(p *executor.Process, s syscall.Signal) {
	switch s {
	case unix.SIGCHLD:
		f.reap(p.PID())
	case unix.SIGWINCH:
		if master := p.Console(); master != nil {
			resize(master)
			return
		}
		fallthrough
	default:
		pidfd.Signal(p.PIDFD(), s)
	}
}

// reap takes those that came to us; the process itself is taken by who waits for it.
func (f *Foreground) reap(own int) {
	for {
		var si unix.Siginfo
		if err := unix.Waitid(unix.P_ALL, 0, &si, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil); err != nil || si.Signo == 0 {
			return
		}
		pid := int((*struct{ _, _, _, _, pid int32 })(unsafe.Pointer(&si)).pid)
		if pid == own {
			return // the rest goes to whoever is the subreaper above, with our end
		}
		var ws unix.WaitStatus
		unix.Wait4(pid, &ws, unix.WNOHANG, nil)
	}
}

// terminal is the command's terminal while it is the process's.
type terminal struct {
	stdin  *unix.Termios // as it was; nil: standard input is no terminal
	output chan struct{} // closed at the end of the output
}

// attach connects the terminal's master to the standard streams. Where standard input is a
// terminal, it becomes raw: keys go to the process as they are, and it makes of them what it will.
func attach(master *os.File) (*terminal, error) {
	t := &terminal{output: make(chan struct{})}
	if old, err := unix.IoctlGetTermios(0, unix.TCGETS); err == nil {
		raw := *old
		raw.Iflag &^= unix.IGNBRK | unix.BRKINT | unix.PARMRK | unix.ISTRIP | unix.INLCR | unix.IGNCR | unix.ICRNL | unix.IXON
		raw.Oflag &^= unix.OPOST
		raw.Lflag &^= unix.ECHO | unix.ECHONL | unix.ICANON | unix.ISIG | unix.IEXTEN
		raw.Cflag = raw.Cflag&^(unix.CSIZE|unix.PARENB) | unix.CS8
		raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
		if err := unix.IoctlSetTermios(0, unix.TCSETS, &raw); err != nil {
			return nil, fmt.Errorf("make the terminal raw: %w", err)
		}
		t.stdin = old
		resize(master)
	}
	go func() {
		defer close(t.output)
		io.Copy(os.Stdout, master) // EIO once the last process that has the terminal ends
	}()
	go func() {
		io.Copy(master, os.Stdin)
	}()
	return t, nil
}

func (t *terminal) restore() {
	if t.stdin != nil {
		unix.IoctlSetTermios(0, unix.TCSETS, t.stdin)
	}
}

// resize gives the process's terminal the size of ours.
func resize(master *os.File) {
	if ws, err := unix.IoctlGetWinsize(0, unix.TIOCGWINSZ); err == nil {
		unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, ws)
	}
}
