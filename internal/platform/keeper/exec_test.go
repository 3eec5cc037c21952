package keeper_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/keeper"
)

func TestExecAndAttach(t *testing.T) {
	r := newRig(t)
	s := r.sh("a", "while read x; do echo got $x; done; echo closed")
	s.Stdin, s.StdinOnce = true, true
	r.run(s)
	pr, pw, _ := os.Pipe()
	if err := r.c.Attach(r.ctx, "a", keeper.AttachSpec{Stdout: pw}); err != nil {
		t.Fatal(err)
	}
	pw.Close()
	w, err := r.c.StdinWriter(r.ctx, "a")
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(w, "one")
	buf := make([]byte, 100)
	if n, err := pr.Read(buf); err != nil || string(buf[:n]) != "got one\n" {
		t.Errorf("attached: %q, %v", buf[:n], err)
	}

	er, ew, _ := os.Pipe()
	e, err := r.c.Exec(r.ctx, "a", keeper.ExecSpec{Process: &specs.Process{Args: []string{"/bin/sh", "-c", "echo $FOO; kill -9 $$"}, Cwd: "/", Env: []string{"FOO=bar", "PATH=/bin"}}, Stdout: ew})
	if err != nil {
		t.Fatal(err)
	}
	ew.Close()
	n, _ := er.Read(buf)
	x, err := e.Wait(r.ctx)
	if err != nil || x.Code != 137 || string(buf[:n]) != "bar\n" {
		t.Errorf("exec: %+v %v %q", x, err, buf[:n])
	}
	e, err = r.c.Exec(r.ctx, "a", keeper.ExecSpec{Process: &specs.Process{Args: []string{"/bin/sh"}, Cwd: "/", Env: []string{"PATH=/bin"}, Terminal: true}})
	if err != nil || e.Console == nil {
		t.Fatalf("exec with a terminal: %v %+v", err, e)
	}
	if err := e.Resize(132, 43); err != nil {
		t.Error(err)
	}
	os.Symlink("busybox", r.root+"/bin/stty")
	fmt.Fprintln(e.Console, "stty size; exit 5")
	var seen string
	for !strings.Contains(seen, "43 132") {
		n, err := e.Console.Read(buf)
		if err != nil {
			t.Errorf("terminal said %q, then %v", seen, err)
			break
		}
		seen += string(buf[:n])
	}
	if x, err := e.Wait(r.ctx); err != nil || x.Code != 5 {
		t.Errorf("exec with a terminal: %+v %v", x, err)
	}
	e.Console.Close()

	w.Close()
	if err := r.c.CloseStdin(r.ctx, "a"); err != nil {
		t.Error(err)
	}
	if x := r.wait("a"); x.Code != 0 {
		t.Errorf("exit %+v", x)
	}
}

// A process in a container outlives its client and the keeper; who waits for it learns
// its end all the same.
func TestExecOutlivesKeeper(t *testing.T) {
	for _, how := range []string{"killed", "upgraded"} {
		t.Run(how, func(t *testing.T) {
			r := newRig(t)
			r.run(r.sh("a", "sleep 1000"))
			in, w, _ := os.Pipe()
			out, ow, _ := os.Pipe()
			e, err := r.c.Exec(r.ctx, "a", keeper.ExecSpec{Process: &specs.Process{Args: []string{"/bin/sh", "-c", "read x; echo got $x; exit 21"}, Cwd: "/"}, Stdin: in, Stdout: ow})
			if err != nil {
				t.Fatal(err)
			}
			in.Close()
			ow.Close()
			ended := make(chan keeper.Exit, 1)
			go func() {
				x, err := e.Wait(r.ctx)
				if err != nil {
					t.Error(err)
				}
				ended <- x
			}()
			if how == "killed" {
				r.kill()
			} else {
				if err := r.c.Upgrade(r.ctx, bin+"/orlop-keeper"); err != nil {
					t.Fatal(err)
				}
				<-r.c.Done()
			}
			fmt.Fprintln(w, "it")
			w.Close()
			text, _ := io.ReadAll(out)
			r.spawn()
			if x := <-ended; !r.ended(x, 21) || string(text) != "got it\n" {
				t.Errorf("%+v, %q", x, text)
			}
			if st, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", e.PID)); err == nil && !strings.Contains(string(st), ") Z ") {
				t.Errorf("process %d is still there: %s", e.PID, st)
			}
		})
	}
}

func TestExecErrors(t *testing.T) {
	r := newRig(t)
	r.run(r.sh("a", "sleep 1000"))
	r.run(r.sh("ended", "true"))
	r.wait("ended")
	p := func(args ...string) keeper.ExecSpec {
		return keeper.ExecSpec{Process: &specs.Process{Args: args, Cwd: "/"}}
	}
	for id, want := range map[string]error{"nobody": errs.NotFound, "ended": errs.FailedPrecondition} {
		if _, err := r.c.Exec(r.ctx, id, p("/bin/true")); !errors.Is(err, want) {
			t.Errorf("in %s: %v", id, err)
		}
	}
	if _, err := r.c.Exec(r.ctx, "a", p("/no/such")); !errors.Is(err, errs.NotFound) {
		t.Errorf("a program that is not there: %v", err)
	}
	if _, err := r.c.Exec(r.ctx, "a", p()); !errors.Is(err, errs.Invalid) {
		t.Errorf("no command: %v", err)
	}
	e, err := r.c.Exec(r.ctx, "a", p("/bin/sleep", "1000"))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(r.ctx)
	waited := make(chan error, 1)
	go func() { _, err := e.Wait(ctx); waited <- err }()
	cancel()
	if err := <-waited; !errors.Is(err, context.Canceled) {
		t.Errorf("a canceled wait: %v", err)
	}
	if err := e.Signal(r.ctx, unix.SIGTERM); err != nil {
		t.Error(err)
	}
	// The first wait was answered, if nobody heard it: the end is there for the next.
	for deadline := time.Now().Add(10 * time.Second); unix.Kill(e.PID, 0) == nil; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it does not end")
		}
	}
	if x, err := e.Wait(r.ctx); err != nil || x.Signal != 15 {
		t.Errorf("%+v %v", x, err)
	}
}

// The keeper may be one that the kernel kills last; a container, and a command in it,
// never is by that.
func TestOOMScore(t *testing.T) {
	r := newRig(t)
	score := 500
	s := r.sh("set", "sleep 1000")
	s.OCI.Process.OOMScoreAdj = &score
	r.run(s)
	r.run(r.sh("unset", "sleep 1000"))
	for id, want := range map[string]string{"set": "500\n", "unset": "0\n"} {
		out, ow, _ := os.Pipe()
		e, err := r.c.Exec(r.ctx, id, keeper.ExecSpec{Process: &specs.Process{Args: []string{"/bin/cat", "/proc/self/oom_score_adj"}, Cwd: "/"}, Stdout: ow})
		if err != nil {
			t.Fatal(err)
		}
		ow.Close()
		got, _ := io.ReadAll(out)
		e.Wait(r.ctx)
		st, _ := r.c.Status(r.ctx, id)
		first, _ := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", st.PID))
		if string(got) != want || string(first) != want {
			t.Errorf("%s: %q, in the command %q, want %q", id, first, got, want)
		}
	}
}

// A command whose caller gave up while it was being started does not run on, and many who
// wait for an end and give up leave the keeper nothing.
func TestGivenUp(t *testing.T) {
	r := newRig(t)
	r.run(r.sh("a", "sleep 1000"))
	procs := func() int {
		files, _ := filepath.Glob("/sys/fs/cgroup/*" + r.sh("a", "").Cgroup + "/cgroup.procs")
		for _, f := range files {
			if raw, err := os.ReadFile(f); err == nil {
				return len(strings.Fields(string(raw)))
			}
		}
		t.Fatal("the container has no control group")
		return 0
	}
	if err := r.c.ReopenLog(r.ctx, "a"); err != nil { // it is opened after the answer
		t.Fatal(err)
	}
	fds := r.fds()
	given := 0
	for i := range 40 {
		ctx, cancel := context.WithTimeout(r.ctx, time.Duration(i)*200*time.Microsecond)
		e, err := r.c.Exec(ctx, "a", keeper.ExecSpec{Process: &specs.Process{Args: []string{"/bin/sh", "-c", "sleep 1000 & wait"}, Cwd: "/", Env: []string{"PATH=/bin"}}})
		cancel()
		if errors.Is(err, context.DeadlineExceeded) {
			given++
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := e.Kill(); err != nil {
			t.Error(err)
		}
		if _, err := e.Wait(r.ctx); err != nil {
			t.Error(err)
		}
	}
	if given == 0 {
		t.Error("nobody gave up")
	}
	for range 100 {
		ctx, cancel := context.WithTimeout(r.ctx, time.Millisecond)
		if _, err := r.c.Wait(ctx, "a"); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		cancel()
	}
	for deadline := time.Now().Add(10 * time.Second); procs() != 1 || r.fds() > fds; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d processes in the container; %d descriptors, %d were", procs(), r.fds(), fds)
		}
	}
	if err := r.c.Signal(r.ctx, "a", unix.SIGKILL, true); err != nil {
		t.Fatal(err)
	}
	if x, err := r.c.Wait(r.ctx, "a"); err != nil || x.Code != 137 {
		t.Errorf("%+v %v", x, err)
	}
}
