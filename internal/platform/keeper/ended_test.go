package keeper_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/keeper"
)

// One that is killed while it waits at the gate has ended, as any other.
func TestKilledAtGate(t *testing.T) {
	r := newRig(t)
	for _, by := range []string{"signal", "delete", "start"} {
		if err := r.c.Create(r.ctx, r.sh(by, "exit 3")); err != nil {
			t.Fatal(err)
		}
		st, _ := r.c.Status(r.ctx, by)
		ended := make(chan keeper.Exit, 1)
		go func() { x, _ := r.c.Wait(r.ctx, by); ended <- x }()
		switch by {
		case "signal":
			if err := r.c.Signal(r.ctx, by, unix.SIGKILL, true); err != nil {
				t.Fatal(err)
			}
			if x := <-ended; x.Signal != 9 || !x.Known {
				t.Errorf("exit %+v", x)
			}
			if _, err := r.c.Start(r.ctx, by); !errors.Is(err, errs.FailedPrecondition) {
				t.Errorf("start of an ended one: %v", err)
			}
		case "delete":
			if err := r.c.Delete(r.ctx, by); err != nil {
				t.Fatal(err)
			}
			<-ended
		case "start":
			syscall.Kill(st.PID, syscall.SIGKILL)
			r.c.Start(r.ctx, by) // may or may not notice
			if x := <-ended; x.Signal != 9 && x.Code != 128 {
				t.Errorf("exit %+v", x)
			}
		}
		if err := syscall.Kill(st.PID, 0); err != syscall.ESRCH {
			t.Errorf("%s: process %d is still there: %v", by, st.PID, err)
		}
	}
}

// In a shared PID namespace what a container leaves behind ends with it.
func TestSharedPID(t *testing.T) {
	r := newRig(t)
	p := r.sh("pause", "")
	p.Pause, p.OCI.Process = true, nil
	st := r.run(p)
	s := r.sh("a", "sleep 1000 & sleep 1000 & echo done; exit 3")
	s.OCI.Linux.Namespaces[0].Path = fmt.Sprintf("/proc/%d/ns/pid", st.PID)
	r.run(s)
	if x := r.wait("a"); x.Code != 3 {
		t.Errorf("exit %+v", x)
	}
	if got := strings.Join(r.log("a"), "|"); got != "stdout F done" {
		t.Errorf("log %s", got)
	}
	if err := r.c.Delete(r.ctx, "a"); err != nil {
		t.Error(err)
	}
	// The pause process is taken over like any other.
	r.kill()
	r.spawn()
	if err := r.c.Signal(r.ctx, "pause", unix.SIGTERM, false); err != nil {
		t.Error(err)
	}
	if x := r.wait("pause"); !r.ended(x, 0) {
		t.Errorf("exit of pause %+v", x)
	}
}

// A container of an earlier keeper whose parent reaps it late, and whose zombie this keeper
// may not read: it has ended when it is reaped, on kernels too that tell nobody of that.
func TestReapedLate(t *testing.T) {
	// What the keeper leaves behind is ours to reap.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	defer unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
	r := newRig(t)
	s := r.sh("a", "read x; exit 0")
	s.Stdin = true
	st := r.run(s)
	w, err := r.c.StdinWriter(r.ctx, "a")
	if err != nil {
		t.Fatal(err)
	}
	r.kill()
	less := filepath.Join(t.TempDir(), "less")
	if err := os.WriteFile(less, []byte("#!/bin/sh\nexec setpriv --bounding-set=-sys_ptrace "+bin+"/orlop-keeper \"$@\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := keeper.Spawn(r.ctx, keeper.SpawnOptions{Binary: less, Init: bin + "/orlop-init", Dir: r.dir, LogFile: r.logs + "/keeper.log"}); err != nil {
		t.Fatalf("%v\n%s", err, r.keeperLog())
	}
	r.dial()
	fmt.Fprintln(w, "end")
	w.Close()
	var si unix.Siginfo // it has ended, and stays a zombie
	if err := unix.Waitid(unix.P_PID, st.PID, &si, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(r.ctx, 300*time.Millisecond)
	defer cancel()
	if x, err := r.c.Wait(ctx, "a"); err == nil {
		t.Errorf("an end before anybody could know it: %+v", x)
	}
	if _, err := unix.Wait4(st.PID, nil, 0, nil); err != nil {
		t.Fatal(err)
	}
	if x := r.wait("a"); !r.ended(x, 0) {
		t.Errorf("exit %+v", x)
	}
}

func TestSignalAll(t *testing.T) {
	r := newRig(t)
	r.run(r.sh("a", "trap : TERM; (trap 'echo second; exit' TERM; echo ready; while :; do sleep 0.01; done) & wait; wait; echo first; exit 2"))
	for len(r.log("a")) == 0 {
		time.Sleep(time.Millisecond)
	}
	if err := r.c.Signal(r.ctx, "a", unix.SIGTERM, true); err != nil {
		t.Fatal(err)
	}
	if x := r.wait("a"); x.Code != 2 {
		t.Errorf("exit %+v", x)
	}
	if got := strings.Join(r.log("a"), "|"); !strings.Contains(got, "first") || !strings.Contains(got, "second") {
		t.Errorf("log: %s", got)
	}
	if err := r.c.Signal(r.ctx, "a", 77, false); !errors.Is(err, errs.Invalid) {
		t.Errorf("signal 77: %v", err)
	}
	if err := r.c.Signal(r.ctx, "nobody", unix.SIGTERM, false); !errors.Is(err, errs.NotFound) {
		t.Errorf("signal of one that does not exist: %v", err)
	}
}

// A paused one stands still, over a restart of the keeper too, and can be killed.
func TestPause(t *testing.T) {
	r := newRig(t)
	r.run(r.sh("a", "while :; do echo x; sleep 0.001; done"))
	if err := r.c.Pause(r.ctx, "a"); err != nil {
		t.Fatal(err)
	}
	r.kill()
	r.spawn()
	st, err := r.c.Status(r.ctx, "a")
	if err != nil || st.State != keeper.Paused {
		t.Errorf("%+v %v", st, err)
	}
	before := len(r.log("a"))
	if _, err := r.c.Exec(r.ctx, "a", keeper.ExecSpec{Process: &specs.Process{Args: []string{"/bin/true"}}}); !errors.Is(err, errs.FailedPrecondition) {
		t.Errorf("exec in a paused one: %v", err)
	}
	if n := len(r.log("a")); n != before {
		t.Errorf("it has written %d lines", n-before)
	}
	if err := r.c.Resume(r.ctx, "a"); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); len(r.log("a")) == before; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it does not go on")
		}
	}
	if err := r.c.Pause(r.ctx, "a"); err != nil {
		t.Fatal(err)
	}
	if err := r.c.Signal(r.ctx, "a", unix.SIGKILL, false); err != nil {
		t.Fatal(err)
	}
	if x := r.wait("a"); !r.ended(x, 137) || x.OOMKilled {
		t.Errorf("exit %+v", x)
	}
}

// A child that the kernel killed for memory, and a kill of our own long after it: that is
// not an OOM kill of the container.
func TestOOMOfChild(t *testing.T) {
	r := newRig(t)
	limit := int64(16 << 20)
	s := r.sh("a", "/bin/busybox tail /dev/zero; echo ended; sleep 1000")
	s.OCI.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &limit, Swap: &limit}
	r.run(s)
	for deadline := time.Now().Add(20 * time.Second); !strings.Contains(strings.Join(r.log("a"), "|"), "ended"); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("no OOM kill")
		}
	}
	if err := r.c.Signal(r.ctx, "a", unix.SIGKILL, true); err != nil {
		t.Fatal(err)
	}
	if x := r.wait("a"); x.OOMKilled || x.Signal != 9 {
		t.Errorf("exit %+v", x)
	}
}

// Only one keeper has a directory, whoever starts how many at a time.
func TestOneKeeper(t *testing.T) {
	r := newRig(t)
	r.kill()
	ended := make(chan error, 8)
	for range 8 {
		go func() {
			ended <- keeper.Spawn(context.Background(), keeper.SpawnOptions{Binary: bin + "/orlop-keeper", Init: bin + "/orlop-init", Dir: r.dir, LogFile: r.logs + "/keeper.log"})
		}()
	}
	for range 8 {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	r.dial()
	st, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", r.c.PID()))
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(st[strings.LastIndexByte(string(st), ')')+1:]))
	if f[3] != fmt.Sprint(r.c.PID()) {
		t.Errorf("the keeper is not in a session of its own: %v", f[:5])
	}
	if err := keeper.Spawn(r.ctx, keeper.SpawnOptions{Binary: "/no/keeper", Init: bin + "/orlop-init", Dir: t.TempDir(), LogFile: r.logs + "/keeper.log"}); !errors.Is(err, errs.FailedPrecondition) {
		t.Errorf("a binary that is not there: %v", err)
	}
}
