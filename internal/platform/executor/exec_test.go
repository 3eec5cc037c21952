package executor

import (
	"errors"
	"os"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// TestExecStates: a process is not started in a container that has ended, whether or not
// it has been reaped, nor in one that is paused; one that waits at its gate takes it.
func TestExecStates(t *testing.T) { eachWay(t, testExecStates) }

func testExecStates(t *testing.T) {
	process := &specs.Process{Args: []string{"echo", "here"}, Cwd: "/", Env: []string{"PATH=/bin"}}
	fails := func(when string, kind *errs.Kind, text string, c ExecConfig) {
		t.Helper()
		before := leftovers()
		c.Process = process
		p, err := shared.Exec(contextT(t), c)
		if err == nil {
			p.Start(contextT(t))
			p.Close()
		}
		if !errors.Is(err, kind) || !strings.Contains(err.Error(), text) {
			t.Errorf("%s: got %v (kind %v), want kind %v and %q", when, err, errs.KindOf(err), kind, text)
		}
		if after := leftovers(); after != before {
			t.Errorf("%s: left behind:\nbefore %s\nafter  %s", when, before, after)
		}
	}
	g := group(t)
	p, err := shared.Create(contextT(t), Config{ID: "target", Spec: spec("sleep", "1000"), Rootfs: layers(t, image(t)), Cgroup: g})
	if err != nil {
		t.Fatal(err)
	}
	if out := execute(t, ExecConfig{PID: p.PID(), PIDFD: p.PIDFD(), Cgroup: g, Process: process}); out != "here\n" {
		t.Errorf("in a container that is not started it says %q", out)
	}
	if err := p.Start(contextT(t)); err != nil {
		t.Fatal(err)
	}
	if err := g.Freeze(contextT(t)); err != nil {
		t.Fatal(err)
	}
	fails("paused", errs.FailedPrecondition, "paused", ExecConfig{PID: p.PID(), PIDFD: p.PIDFD(), Cgroup: g})
	if err := g.Thaw(contextT(t)); err != nil {
		t.Fatal(err)
	}
	if out := execute(t, ExecConfig{PID: p.PID(), PIDFD: p.PIDFD(), Cgroup: g, Process: process}); out != "here\n" {
		t.Errorf("after it was resumed it says %q", out)
	}
	fd, err := unix.FcntlInt(p.PIDFD().Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	pidfd := os.NewFile(uintptr(fd), "pidfd")
	defer pidfd.Close()
	unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
	poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	for {
		if _, err := unix.Poll(poll, 20000); err != unix.EINTR {
			break
		}
	}
	fails("ended", errs.NotFound, "no such process", ExecConfig{PID: p.PID(), PIDFD: pidfd, Cgroup: g})
	pid := p.PID()
	wait(t, p)
	fails("reaped", errs.NotFound, "no such", ExecConfig{PID: pid, PIDFD: pidfd, Cgroup: g})
	fails("reaped, by number", errs.NotFound, "no such", ExecConfig{PID: pid, Cgroup: g})
}

// TestExecTerminal: a terminal of its own, with its size, as another user, in a container
// that has none.
func TestExecTerminal(t *testing.T) { eachWay(t, testExecTerminal) }

func testExecTerminal(t *testing.T) {
	p, end := start(t, Config{ID: "target", Spec: spec("sleep", "1000"), Rootfs: layers(t, image(t))})
	defer end()
	out := onTerminal(t, ExecConfig{PID: p.PID(), Process: &specs.Process{
		Args: []string{"sh", "-c", "tty; stty size; stat -c %u $(tty); echo said >/dev/tty; test -e /dev/console || echo no console; id -u"}, Cwd: "/", Env: []string{"PATH=/bin"},
		ConsoleSize: &specs.Box{Height: 7, Width: 77}, User: specs.User{UID: 42}}}, "no console\r\n42\r")
	for _, want := range []string{"/dev/pts/0", "7 77", "\n42\r", "said"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in %q", want, out)
		}
	}
}
