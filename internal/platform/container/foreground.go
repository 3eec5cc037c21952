package container

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/platform/executor"
	"github.com/orlop-io/orlop/internal/platform/pidfd"
)

// Foreground is a command that stays while its process runs: signals that it gets go to
// the process, and the process's terminal is the one that the command has.
type Foreground struct {
	signals   chan os.Signal
	subreaper bool
}

// NewForeground begins to take the signals. With subreaper, processes of a container that
// shares our PID namespace come to us when their parents end, and are reaped.
func NewForeground(subreaper bool) (*Foreground, error) {
	f := &Foreground{signals: make(chan os.Signal, 64), subreaper: subreaper}
	if subreaper {
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
			return nil, fmt.Errorf("become a subreaper: %w", err)
		}
	}
	var list []os.Signal
	for n := syscall.Signal(1); n < 65; n++ {
		switch n {
		case unix.SIGURG, unix.SIGPIPE, unix.SIGKILL, unix.SIGSTOP, 32, 33, 34: // Go's, and libc's
			continue
		case unix.SIGCHLD:
			if !subreaper {
				continue
			}
		}
		if !signal.Ignored(n) {
			list = append(list, n)
		}
	}
	signal.Notify(f.signals, list...)
	return f, nil
}

// Wait gives the process its terminal, if it has one, passes signals on, and returns the exit code
// once it has ended: 128 and the signal's number where a signal ended it.
func (f *Foreground) Wait(p *executor.Process) (int, error) {
	var done chan struct{}
	master := p.Console()
	if master != nil {
		t, err := attach(master)
		if err != nil {
			return -1, err
		}
		defer t.restore()
		done = t.output
	}
	stop := make(chan struct{})
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		for {
			select {
			case <-stop:
				return
			case s := <-f.signals:
				f.handle(p, master, s.(syscall.Signal))
			}
		}
	}()
	end, err := pidfd.Reap(p.PIDFD(), true)
	close(stop)
	<-gone
	if err != nil {
		return -1, fmt.Errorf("wait for process %d: %w", p.PID(), err)
	}
	if done != nil {
		// What it wrote last. Another process may keep the terminal for longer.
		master.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
		<-done
	}
	return end.Code, nil
}

func (f *Foreground) handle(p *executor.Process, master *os.File, s syscall.Signal) {
	switch s {
	case unix.SIGCHLD:
		f.reap(p.PID())
	case unix.SIGWINCH:
		if master != nil {
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
