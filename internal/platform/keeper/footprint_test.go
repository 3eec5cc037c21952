package keeper_test

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/platform/keeper"
	"github.com/orlop-io/orlop/test/proc"
)

// settled waits until the number stops falling.
func settled(fn func() int) int {
	least, since := fn(), time.Now()
	for time.Since(since) < 3*time.Second { // the keeper gives memory back two seconds after the last start
		time.Sleep(20 * time.Millisecond)
		if n := fn(); n < least {
			least, since = n, time.Now()
		}
	}
	return least
}

// The keeper is small, stays small under output and many containers, and gives back
// every descriptor.
func TestFootprint(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", dir+"/orlop-keeper", "github.com/orlop-io/orlop/cmd/orlop-keeper")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	fi, err := os.Stat(dir + "/orlop-keeper")
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("binary, stripped: %.2f MiB", float64(fi.Size())/(1<<20))
	if fi.Size() > 10<<20 {
		t.Errorf("the binary has %d bytes", fi.Size())
	}
	deps, err := exec.Command("go", "list", "-deps", "github.com/orlop-io/orlop/cmd/orlop-keeper").Output()
	if err != nil {
		t.Fatal(err)
	}
	for dep := range strings.Lines(string(deps)) {
		for _, not := range []string{"google.golang.org/", "k8s.io/", "github.com/prometheus/", "connectrpc.com/", "net/http\n"} {
			if strings.HasPrefix(dep, not) {
				t.Errorf("the keeper has %s in it", dep)
			}
		}
	}

	r := newRig(t)
	r.kill()
	real := bin
	bin = dir
	os.Symlink(real+"/orlop-init", dir+"/orlop-init")
	r.spawn()
	bin = real
	pid := r.c.PID()
	rss := func() int { return proc.KiB(t, pid, "status", "VmRSS") }
	pss := func() int { return proc.KiB(t, pid, "smaps_rollup", "Pss_Anon") }
	r.run(r.sh("warm", "echo x"))
	r.wait("warm")
	r.c.Delete(r.ctx, "warm")
	idle, anon, fds := settled(rss), pss(), r.fds()
	t.Logf("idle: RSS %d KiB, anonymous %d KiB, %d descriptors", idle, anon, fds)
	if idle > 15<<10 {
		t.Errorf("idle RSS is %d KiB", idle)
	}
	// The first ones grow what all share.
	const some, n = 20, 100
	var few, fewFDs int
	for i := range some + n {
		if i == some {
			few, fewFDs = settled(pss), r.fds()
		}
		r.run(r.sh(fmt.Sprintf("c%d", i), "echo x; sleep 1000"))
	}
	many, manyAnon := settled(rss), pss()
	t.Logf("%d idle containers: RSS %d KiB, anonymous %d KiB: %.1f KiB and %.1f descriptors for each of the last %d",
		some+n, many, manyAnon, float64(manyAnon-few)/n, float64(r.fds()-fewFDs)/n, n)
	// Half of what an idle pod may cost in all; the garbage collector makes it vary.
	if each := float64(manyAnon-few) / n; each > 64 {
		t.Errorf("each container costs %.1f KiB", each)
	}
	r.tools("seq")
	r.run(r.sh("loud", "seq 2000000"))
	top := 0
	done := make(chan keeper.Exit, 1)
	start := time.Now()
	go func() { done <- r.wait("loud") }()
	for top == 0 || len(done) == 0 {
		top = max(top, rss())
		time.Sleep(10 * time.Millisecond)
	}
	<-done
	t.Logf("2,000,000 lines in %v: RSS at most %d KiB", time.Since(start).Round(time.Millisecond), top)
	if top > 32<<10 {
		t.Errorf("RSS under load is %d KiB", top)
	}
	list, _ := r.c.List(r.ctx)
	for _, s := range list {
		r.c.Signal(r.ctx, s.ID, unix.SIGKILL, true)
		r.wait(s.ID)
		if err := r.c.Delete(r.ctx, s.ID); err != nil {
			t.Error(err)
		}
	}
	// Execs, attaches, failed starts leave nothing either.
	r.run(r.sh("a", "sleep 1000"))
	for range 20 {
		pr, pw, _ := os.Pipe()
		r.c.Attach(r.ctx, "a", keeper.AttachSpec{Stdout: pw})
		pw.Close()
		pr.Close()
		e, err := r.c.Exec(r.ctx, "a", keeper.ExecSpec{Process: &specs.Process{Args: []string{"/bin/true"}, Cwd: "/", Terminal: true}})
		if err != nil {
			t.Fatal(err)
		}
		e.Wait(r.ctx)
		e.Console.Close()
		bad := r.sh("bad", "")
		bad.OCI.Process.Args = []string{"/no/such"}
		r.c.Run(r.ctx, bad)
	}
	r.c.Signal(r.ctx, "a", unix.SIGKILL, true)
	r.wait("a")
	r.c.Delete(r.ctx, "a")
	if n := settled(rss); n > 15<<10 {
		t.Errorf("RSS is %d KiB afterwards", n)
	}
	if n := r.fds(); n > fds+1 { // the runtime may have opened one of its own
		t.Errorf("%d descriptors, %d were", n, fds)
	}
	raw, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if len(raw) > 0 {
		t.Errorf("children are left: %s", raw)
	}
}
