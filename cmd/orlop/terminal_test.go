package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	orlopv1 "github.com/orlop-io/orlop/api/orlop/v1"
	"golang.org/x/sys/unix"
)

// With ORLOP_TEST_MAIN set the test program is orlop.
func TestMain(m *testing.M) {
	if os.Getenv("ORLOP_TEST_MAIN") != "" {
		os.Exit(run())
	}
	os.Exit(m.Run())
}

// openTerminal returns both sides of a terminal of 80 by 24.
func openTerminal(t *testing.T) (outer, inner *os.File) {
	t.Helper()
	outer, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { outer.Close() })
	if err := unix.IoctlSetPointerInt(int(outer.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(outer.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	inner, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { inner.Close() })
	resize(t, outer, 80, 24)
	return outer, inner
}

func resize(t *testing.T, f *os.File, columns, rows uint16) {
	t.Helper()
	if err := unix.IoctlSetWinsize(int(f.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: columns, Row: rows}); err != nil {
		t.Fatal(err)
	}
}

// screen collects what a terminal shows.
type screen struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *screen) Write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(b)
}

func (s *screen) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func (s *screen) waitFor(t *testing.T, text string) {
	t.Helper()
	for range 500 {
		if strings.Contains(s.String(), text) {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("the screen never shows %q:\n%q", text, s)
}

// ttyPods says each message that it gets; "q" ends it with 7, "x" breaks off.
type ttyPods struct{ fakePods }

func (ttyPods) Exec(_ context.Context, s *connect.BidiStream[orlopv1.ExecRequest, orlopv1.ExecResponse]) error {
	say := func(format string, args ...any) {
		s.Send(&orlopv1.ExecResponse{Message: &orlopv1.ExecResponse_Stdout{Stdout: fmt.Appendf(nil, format+"\r\n", args...)}})
	}
	for {
		m, err := s.Receive()
		if err != nil {
			return err
		}
		switch m := m.Message.(type) {
		case *orlopv1.ExecRequest_Start_:
			s.Send(&orlopv1.ExecResponse{Message: &orlopv1.ExecResponse_Started{Started: true}})
			say("start %t %dx%d", m.Start.Tty, m.Start.Size.GetColumns(), m.Start.Size.GetRows())
		case *orlopv1.ExecRequest_Resize:
			say("resize %dx%d", m.Resize.Columns, m.Resize.Rows)
		case *orlopv1.ExecRequest_Signal:
			say("signal %d", m.Signal)
		case *orlopv1.ExecRequest_Stdin:
			say("stdin %q", m.Stdin)
			switch string(m.Stdin) {
			case "q":
				return s.Send(&orlopv1.ExecResponse{Message: &orlopv1.ExecResponse_Exit{Exit: &orlopv1.Exit{Code: 7}}})
			case "x":
				return errors.New("broken")
			}
		}
	}
}

// Attach says what it gets; it never ends.
func (ttyPods) Attach(_ context.Context, s *connect.BidiStream[orlopv1.AttachRequest, orlopv1.AttachResponse]) error {
	for {
		m, err := s.Receive()
		if err != nil {
			return err
		}
		switch m := m.Message.(type) {
		case *orlopv1.AttachRequest_Start_:
			s.Send(&orlopv1.AttachResponse{Message: &orlopv1.AttachResponse_Attached_{Attached: &orlopv1.AttachResponse_Attached{Tty: true, Container: "web"}}})
			s.Send(&orlopv1.AttachResponse{Message: &orlopv1.AttachResponse_Stdout{Stdout: fmt.Appendf(nil, "start true %dx%d\r\n", m.Start.Size.GetColumns(), m.Start.Size.GetRows())}})
		case *orlopv1.AttachRequest_Resize:
			s.Send(&orlopv1.AttachResponse{Message: &orlopv1.AttachResponse_Stdout{Stdout: fmt.Appendf(nil, "resize %dx%d\r\n", m.Resize.Columns, m.Resize.Rows)}})
		case *orlopv1.AttachRequest_Stdin:
			s.Send(&orlopv1.AttachResponse{Message: &orlopv1.AttachResponse_Stdout{Stdout: fmt.Appendf(nil, "stdin %q\r\n", m.Stdin)}})
		}
	}
}

func TestInATerminal(t *testing.T) {
	socket := serveTTY(t)
	for _, c := range []struct {
		name string
		args string
		end  func(outer *os.File, p *os.Process)
		code int
	}{
		{"exit", "exec -it notes -- sh", func(outer *os.File, _ *os.Process) { outer.WriteString("q") }, 7},
		{"error", "exec -it notes -- sh", func(outer *os.File, _ *os.Process) { outer.WriteString("x") }, 1},
		{"hang up", "exec -it notes -- sh", func(_ *os.File, p *os.Process) { p.Signal(syscall.SIGHUP) }, 130},
		{"two signals", "exec -it notes -- sh", func(_ *os.File, p *os.Process) {
			p.Signal(syscall.SIGTERM)
			time.Sleep(100 * time.Millisecond)
			p.Signal(syscall.SIGTERM)
		}, 130},
		{"attach, detached", "attach -it notes", func(outer *os.File, _ *os.Process) { outer.WriteString("\x10\x11") }, 0},
		{"attach, hang up", "attach -it notes", func(_ *os.File, p *os.Process) { p.Signal(syscall.SIGHUP) }, 130},
		{"attach, terminated", "attach -it notes", func(_ *os.File, p *os.Process) { p.Signal(syscall.SIGTERM) }, 130},
	} {
		t.Run(c.name, func(t *testing.T) {
			if strings.Contains(c.name, "hang up") && signal.Ignored(syscall.SIGHUP) {
				t.Skip("the tests run under nohup")
			}
			outer, inner := openTerminal(t)
			before, err := unix.IoctlGetTermios(int(inner.Fd()), unix.TCGETS)
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command("/proc/self/exe", strings.Fields(c.args)...)
			cmd.Env = append(os.Environ(), "ORLOP_TEST_MAIN=1", "ORLOP_SOCKET="+socket)
			cmd.Stdin, cmd.Stdout, cmd.Stderr = inner, inner, inner
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Pdeathsig: syscall.SIGKILL}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			s := &screen{}
			go func() {
				buf := make([]byte, 4096)
				for {
					n, err := outer.Read(buf)
					s.Write(buf[:n])
					if err != nil {
						return
					}
				}
			}()
			s.waitFor(t, "start true 80x24")
			for range 500 { // raw, which is just after
				if now, err := unix.IoctlGetTermios(int(inner.Fd()), unix.TCGETS); err != nil || now.Lflag&unix.ICANON == 0 {
					break
				}
				time.Sleep(10 * time.Millisecond)
			}
			outer.WriteString("\x03")
			s.waitFor(t, `stdin "\x03"`)
			resize(t, outer, 100, 30)
			s.waitFor(t, "resize 100x30")
			c.end(outer, cmd.Process)
			timer := time.AfterFunc(10*time.Second, func() { cmd.Process.Kill() })
			defer timer.Stop()
			cmd.Wait()
			if code := cmd.ProcessState.ExitCode(); code != c.code {
				t.Errorf("exit code %d, want %d; screen %q", code, c.code, s)
			}
			after, err := unix.IoctlGetTermios(int(inner.Fd()), unix.TCGETS)
			if err != nil || *after != *before {
				t.Errorf("the terminal is not as it was: %+v, %+v, %v", before, after, err)
			}
		})
	}
}

// A panic while the terminal is raw puts it right first.
func TestTerminalRestoredByPanic(t *testing.T) {
	_, inner := openTerminal(t)
	before, _ := unix.IoctlGetTermios(int(inner.Fd()), unix.TCGETS)
	term := &terminal{in: inner}
	if err := term.raw(); err != nil {
		t.Fatal(err)
	}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the panic is lost")
			}
		}()
		term.guard(func() { panic("bug") })
	}()
	if after, _ := unix.IoctlGetTermios(int(inner.Fd()), unix.TCGETS); *after != *before {
		t.Error("the terminal is not as it was")
	}
}
