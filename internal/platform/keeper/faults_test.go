package keeper_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/keeper"
)

// Killed at every fault point, a keeper that comes back has lost and leaked nothing.
func TestFaults(t *testing.T) {
	out, err := exec.Command(bin+"/orlop-keeper", "-faults").Output()
	if err != nil {
		t.Fatal(err)
	}
	points := strings.Fields(string(out))
	if len(points) < 15 {
		t.Fatalf("only %d fault points: %v", len(points), points)
	}
	for _, point := range points {
		if !strings.HasPrefix(point, "keeper.") {
			continue // the control groups' own, which their package's test drives
		}
		counts := []int{1}
		if strings.HasPrefix(point, "keeper.log.") {
			counts = []int{1, 2, 5} // passed often: the first time is not like the others
		}
		for _, count := range counts {
			t.Run(fmt.Sprintf("%s:%d", point, count), func(t *testing.T) {
				killedAt(t, point, count)
			})
		}
	}
}

func killedAt(t *testing.T, point string, count int) {
	r := newRig(t)
	r.kill()
	once := filepath.Join(t.TempDir(), "once")
	r.spawn(fmt.Sprintf("ORLOP_FAULT=%s:%d", point, count), "ORLOP_FAULT_ONCE="+once)
	// More than six times what a FIFO takes, so that the log's points are passed often.
	pad := strings.Repeat("x", 100)
	s := r.sh("a", fmt.Sprintf("cat >/dev/null; p=%s; i=0; while [ $i -lt 4000 ]; do echo line $i $p; i=$((i+1)); done; exit 3", pad))
	s.Log.MaxBytes, s.Log.MaxFiles = 30_000, 99
	s.Stdin, s.StdinOnce = true, true
	retry := r.retry
	retry("create", func() error { return r.c.Create(r.ctx, s) })
	// A container at the gate goes with its keeper: Run makes it again.
	retry("run", func() error { _, err := r.c.Run(r.ctx, s); return err })
	retry("exec", r.execEnds)
	retry("pause", func() error { return r.c.Pause(r.ctx, "a") })
	retry("resume", func() error { return r.c.Resume(r.ctx, "a") })
	if strings.HasPrefix(point, "keeper.upgrade") {
		if err := r.c.Upgrade(r.ctx, bin+"/orlop-keeper"); err != nil {
			t.Fatal(err)
		}
		<-r.c.Done()
		r.spawn()
	}
	retry("stdin", func() error {
		w, err := r.c.StdinWriter(r.ctx, "a")
		if errors.Is(err, errs.FailedPrecondition) {
			return nil // it was given, and went with the answer
		}
		if err != nil {
			return err
		}
		fmt.Fprintln(w, "something")
		return w.Close()
	})
	var x keeper.Exit
	retry("wait", func() (err error) { x, err = r.c.Wait(r.ctx, "a"); return err })
	if !r.ended(x, 3) {
		t.Errorf("exit %+v\n%s", x, r.keeperLog())
	}
	lines := r.log("a")
	for i, l := range lines {
		if want := fmt.Sprintf("stdout F line %d %s", i, pad); l != want {
			t.Fatalf("line %d is %q", i, l)
		}
	}
	if len(lines) != 4000 {
		t.Errorf("%d lines", len(lines))
	}
	retry("delete", func() error { return r.c.Delete(r.ctx, "a") })
	if _, err := os.Stat(once); err != nil {
		t.Errorf("nothing passed the point")
	}
}

// retry asks again until it is done, as the daemon does, of the keeper that follows one
// that was killed.
func (r *rig) retry(what string, fn func() error) {
	r.t.Helper()
	for try := 0; ; try++ {
		err := fn()
		if err == nil {
			return
		}
		if !errors.Is(err, errs.Unavailable) || try > 3 {
			r.t.Fatalf("%s: %v\n%s", what, err, r.keeperLog())
		}
		<-r.c.Done()
		r.spawn()
	}
}

// execEnds runs a command in container a and checks how it ends.
func (r *rig) execEnds() error {
	e, err := r.c.Exec(r.ctx, "a", keeper.ExecSpec{Process: &specs.Process{Args: []string{"/bin/sh", "-c", "exit 4"}, Cwd: "/"}})
	if err != nil {
		return err
	}
	x, err := e.Wait(r.ctx)
	if err == nil && !r.ended(x, 4) {
		r.t.Errorf("exec: %+v", x)
	}
	return err
}
