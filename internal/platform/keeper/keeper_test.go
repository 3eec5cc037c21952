package keeper_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/cgroup"
	"github.com/orlop-io/orlop/internal/platform/executor"
	"github.com/orlop-io/orlop/internal/platform/keeper"
)

// bin holds the real binaries, built with fault points.
var bin string

func TestMain(m *testing.M) {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "the keeper's tests start containers: run as root")
		os.Exit(1)
	}
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "orlop-keeper-test-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		bin = dir
		cmd := exec.Command("go", "build", "-tags", "faults", "-o", dir+"/", "github.com/orlop-io/orlop/cmd/orlop-keeper", "github.com/orlop-io/orlop/cmd/orlop-init")
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
			return 1
		}
		return m.Run()
	}())
}

// rig is a keeper with a daemon's side, and a root filesystem.
type rig struct {
	t     *testing.T
	dir   string // keeper's
	root  string
	group string
	held  keeper.Holdings
	c     *keeper.Client
	ctx   context.Context
	logs  string
}

var rigs atomic.Int32

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, ctx: t.Context(), group: fmt.Sprintf("/orlopkeep%d-%d", os.Getpid(), rigs.Add(1)), logs: t.TempDir()}
	var err error
	if r.dir, err = os.MkdirTemp("/run", "orlop-keep-"); err != nil {
		t.Fatal(err)
	}
	r.root = filepath.Join(t.TempDir(), "root")
	for _, d := range []string{"bin", "proc", "sys", "dev", "tmp", "etc"} {
		os.MkdirAll(filepath.Join(r.root, d), 0o755)
	}
	raw, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatalf("busybox-static is needed: %v", err)
	}
	if err := os.WriteFile(r.root+"/bin/busybox", raw, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"sh", "sleep", "true", "cat", "kill"} {
		os.Symlink("busybox", r.root+"/bin/"+n)
	}
	t.Cleanup(r.close)
	r.spawn()
	return r
}

func (r *rig) spawn(env ...string) {
	r.t.Helper()
	for _, e := range env {
		k, v, _ := strings.Cut(e, "=")
		os.Setenv(k, v)
		defer os.Unsetenv(k)
	}
	if err := keeper.Spawn(context.Background(), keeper.SpawnOptions{Binary: bin + "/orlop-keeper", Init: bin + "/orlop-init", Dir: r.dir, LogFile: r.logs + "/keeper.log"}); err != nil {
		r.t.Fatalf("%v\n%s", err, r.keeperLog())
	}
	r.dial()
}

func (r *rig) dial() {
	r.t.Helper()
	var err error
	if r.c, err = keeper.Dial(context.Background(), keeper.Socket(r.dir), &r.held); err != nil {
		r.t.Fatalf("%v\n%s", err, r.keeperLog())
	}
}

func (r *rig) keeperLog() string {
	raw, _ := os.ReadFile(r.logs + "/keeper.log")
	return string(raw)
}

// kill kills the keeper and waits until it is gone.
func (r *rig) kill() {
	r.t.Helper()
	if err := syscall.Kill(r.c.PID(), syscall.SIGKILL); err != nil {
		r.t.Fatal(err)
	}
	<-r.c.Done()
}

func (r *rig) close() {
	ctx := context.Background()
	select {
	case <-r.c.Done():
		r.spawn()
	default:
	}
	list, err := r.c.List(ctx)
	if err != nil {
		r.t.Error(err)
	}
	for _, s := range list {
		r.c.Signal(ctx, s.ID, unix.SIGKILL, true)
		if s.State != keeper.Created {
			r.c.Wait(ctx, s.ID)
		}
		if err := r.c.Delete(ctx, s.ID); err != nil {
			r.t.Error(err)
		}
	}
	if err := r.c.Shutdown(ctx); err != nil {
		r.t.Error(err)
	}
	r.c.Close()
	if n := r.held.Len(); n != 0 {
		r.t.Errorf("something of %d containers is still held", n)
	}
	r.held.Close()
	if ents, _ := os.ReadDir(r.dir + "/containers"); len(ents) > 0 {
		r.t.Errorf("%d directories of containers are left", len(ents))
	}
	os.RemoveAll(r.dir)
	h, err := cgroup.Open(cgroup.Options{})
	if err != nil {
		r.t.Fatal(err)
	}
	kids, _ := h.Children(r.group)
	if len(kids) > 0 {
		r.t.Errorf("control groups are left: %v", kids)
	}
	if g, err := h.Load(r.group); err == nil {
		if err := g.Remove(ctx); err != nil {
			r.t.Error(err)
		}
	}
}

// sh is a container that runs a shell script.
func (r *rig) sh(id, script string) keeper.Spec {
	return keeper.Spec{
		ID: id, Cgroup: r.group + "/" + id,
		Rootfs: executor.Rootfs{Lower: []string{r.root}},
		Log:    keeper.LogConfig{Path: filepath.Join(r.logs, id+".log")},
		OCI: &specs.Spec{
			Version: "1.3.0",
			Root:    &specs.Root{Path: "/", Readonly: true},
			Process: &specs.Process{Args: []string{"/bin/sh", "-c", script}, Cwd: "/", Env: []string{"PATH=/bin"},
				Capabilities: &specs.LinuxCapabilities{}},
			Mounts: []specs.Mount{
				{Destination: "/proc", Type: "proc", Source: "proc"},
				{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"mode=755"}},
				{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"newinstance", "ptmxmode=0666", "mode=0620"}},
				{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs"},
			},
			Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}},
				Resources: &specs.LinuxResources{}},
		},
	}
}

func (r *rig) run(s keeper.Spec) keeper.Started {
	r.t.Helper()
	st, err := r.c.Run(r.ctx, s)
	if err != nil {
		r.t.Fatalf("%v\n%s", err, r.keeperLog())
	}
	return st
}

func (r *rig) wait(id string) keeper.Exit {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.ctx, 30*time.Second)
	defer cancel()
	x, err := r.c.Wait(ctx, id)
	if err != nil {
		r.t.Fatalf("wait for %s: %v\n%s", id, err, r.keeperLog())
	}
	return x
}

// log returns the log's lines without their times, after all rotated files.
func (r *rig) log(id string) (lines []string) {
	r.t.Helper()
	path := filepath.Join(r.logs, id+".log")
	var text string
	for n := 9; n >= 0; n-- {
		p := path
		if n > 0 {
			p = fmt.Sprintf("%s.%d", path, n)
		}
		raw, _ := os.ReadFile(p)
		text += string(raw)
	}
	for line := range strings.Lines(text) {
		at, rest, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		if _, err := time.Parse(time.RFC3339Nano, at); !ok || err != nil {
			r.t.Fatalf("%q is not a line of the CRI format", line)
		}
		lines = append(lines, rest)
	}
	return lines
}

func TestLifecycle(t *testing.T) {
	r := newRig(t)
	s := r.sh("a", "echo out; echo err >&2; printf 'no end'; exit 7")
	if err := r.c.Create(r.ctx, s); err != nil {
		t.Fatalf("%v\n%s", err, r.keeperLog())
	}
	if st, _ := r.c.Status(r.ctx, "a"); st.State != keeper.Created {
		t.Errorf("state %s", st.State)
	}
	if _, err := r.c.Start(r.ctx, "a"); err != nil {
		t.Fatal(err)
	}
	if x := r.wait("a"); x.Code != 7 || !x.Known || x.Signal != 0 {
		t.Errorf("exit %+v", x)
	}
	got := strings.Join(r.log("a"), "|")
	if got != "stdout F out|stdout F no end|stderr F err" && got != "stdout F out|stderr F err|stdout F no end" && got != "stderr F err|stdout F out|stdout F no end" {
		t.Errorf("log: %s", got)
	}
	if err := r.c.Delete(r.ctx, "a"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.c.Status(r.ctx, "a"); !errors.Is(err, errs.NotFound) {
		t.Errorf("status of a deleted one: %v", err)
	}
	if err := r.c.Delete(r.ctx, "a"); err != nil {
		t.Errorf("deleting again: %v", err)
	}
	r.run(r.sh("b", "sleep 1000"))
	if err := r.c.Delete(r.ctx, "b"); !errors.Is(err, errs.InUse) {
		t.Errorf("deleting a running one: %v", err)
	}
	if err := r.c.Signal(r.ctx, "b", unix.SIGKILL, false); err != nil {
		t.Fatal(err)
	}
	if x := r.wait("b"); x.Code != 137 || x.Signal != 9 || x.OOMKilled {
		t.Errorf("exit of a killed one: %+v", x)
	}
}

func TestErrorsLeaveNothing(t *testing.T) {
	r := newRig(t)
	s := r.sh("a", "")
	s.OCI.Process.Args = []string{"/no/such/program"}
	if _, err := r.c.Run(r.ctx, s); !errors.Is(err, errs.NotFound) || !strings.Contains(err.Error(), "/no/such/program") {
		t.Errorf("a program that does not exist: %v", err)
	}
	s = r.sh("../b", "")
	if _, err := r.c.Run(r.ctx, s); !errors.Is(err, errs.Invalid) {
		t.Errorf("an id that climbs: %v", err)
	}
	s = r.sh("c", "")
	s.OCI.Mounts = append(s.OCI.Mounts, specs.Mount{Destination: "/x", Source: "/no/such/source", Options: []string{"bind"}})
	if _, err := r.c.Run(r.ctx, s); err == nil || !strings.Contains(err.Error(), "/no/such/source") {
		t.Errorf("a source that does not exist: %v", err)
	}
	if l, _ := r.c.List(r.ctx); len(l) != 0 {
		t.Errorf("left: %+v", l)
	}
}

func TestOOM(t *testing.T) {
	r := newRig(t)
	s := r.sh("a", `x=$(cat /dev/zero | tr '\0' x)`)
	limit := int64(16 << 20)
	s.OCI.Process.Args = []string{"/bin/busybox", "tail", "/dev/zero"}
	s.OCI.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &limit, Swap: &limit}
	r.run(s)
	if x := r.wait("a"); !x.OOMKilled || x.Code != 137 {
		t.Errorf("exit %+v", x)
	}
}

func TestLogFormatAndRotation(t *testing.T) {
	r := newRig(t)
	s := r.sh("long", `head -c 40000 /dev/zero | tr '\0' x; echo; echo end`)
	os.Symlink("busybox", r.root+"/bin/head")
	os.Symlink("busybox", r.root+"/bin/tr")
	r.run(s)
	r.wait("long")
	lines := r.log("long")
	if len(lines) != 4 || !strings.HasPrefix(lines[0], "stdout P ") || !strings.HasPrefix(lines[1], "stdout P ") || !strings.HasPrefix(lines[2], "stdout F x") || lines[3] != "stdout F end" {
		t.Errorf("%d lines", len(lines))
	}
	s = r.sh("many", "i=0; while [ $i -lt 3000 ]; do echo line $i; i=$((i+1)); done")
	s.Log.MaxBytes, s.Log.MaxFiles = 20000, 9
	r.run(s)
	r.wait("many")
	lines = r.log("many")
	for i, l := range lines {
		if want := fmt.Sprintf("stdout F line %d", i); l != want {
			t.Fatalf("line %d is %q", i, l)
		}
	}
	if len(lines) != 3000 {
		t.Errorf("%d lines", len(lines))
	}
	if fi, err := os.Stat(filepath.Join(r.logs, "many.log.1")); err != nil || fi.Size() > 20000 {
		t.Errorf("rotated file: %v %v", fi, err)
	}
}

// The keeper is killed again and again under writers; every line is there once.
func TestKilledUnderWriters(t *testing.T) {
	r := newRig(t)
	const n = 20000
	script := fmt.Sprintf("i=0; while [ $i -lt %d ]; do echo line $i; echo err $i >&2; i=$((i+1)); done; exit 3", n)
	for _, id := range []string{"a", "b"} {
		s := r.sh(id, script)
		s.Log.MaxBytes, s.Log.MaxFiles = 400_000, 9
		r.run(s)
	}
	kills := 0
	for kills < 60 {
		time.Sleep(time.Duration(5+kills%17) * time.Millisecond) // another instant each time
		r.kill()
		r.spawn()
		kills++
		if l, _ := r.c.List(r.ctx); l[0].State == keeper.Stopped && l[1].State == keeper.Stopped {
			break
		}
	}
	for _, id := range []string{"a", "b"} {
		if x := r.wait(id); x.Code != 3 || !x.Known {
			t.Errorf("%s: exit %+v\n%s", id, x, r.keeperLog())
		}
		next := map[string]int{}
		for _, l := range r.log(id) {
			stream, text, _ := strings.Cut(l, " F ")
			want := fmt.Sprintf("%s %d", map[string]string{"stdout": "line", "stderr": "err"}[stream], next[stream])
			if text != want {
				t.Fatalf("%s after %d kills: %q, want %q", id, kills, l, want)
			}
			next[stream]++
		}
		if next["stdout"] != n || next["stderr"] != n {
			t.Errorf("%s: %d and %d lines of %d", id, next["stdout"], next["stderr"], n)
		}
	}
	t.Logf("the keeper was killed %d times", kills)
}

// A container that ends while no keeper lives tells its exit code and its last words.
func TestEndsWithoutKeeper(t *testing.T) {
	r := newRig(t)
	st := r.run(r.sh("a", "cat; echo last words; exit 42"))
	_ = st
	s := r.sh("b", "read x; echo got $x; exit 43")
	s.Stdin = true
	r.run(s)
	w, err := r.c.StdinWriter(r.ctx, "b")
	if err != nil {
		t.Fatal(err)
	}
	r.wait("a") // stdin is /dev/null
	r.kill()
	fmt.Fprintln(w, "hello")
	w.Close()
	deadline := time.Now().Add(10 * time.Second)
	for {
		raw, _ := os.ReadFile(r.dir + "/containers/b/state.json")
		var pid int
		if i := strings.Index(string(raw), `"PID":`); i > 0 {
			fmt.Sscanf(string(raw)[i+6:], "%d", &pid)
		}
		if st, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid)); err != nil || strings.Contains(string(st), ") Z ") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the container did not end")
		}
		time.Sleep(5 * time.Millisecond)
	}
	r.spawn()
	if x := r.wait("b"); x.Code != 43 || !x.Known {
		t.Errorf("exit %+v", x)
	}
	if got := strings.Join(r.log("b"), "|"); got != "stdout F got hello" {
		t.Errorf("log: %s", got)
	}
}

func TestExecAndAttach(t *testing.T) {
	r := newRig(t)
	s := r.sh("a", "while read x; do echo got $x; done; echo closed")
	s.Stdin = true
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

func TestUpgrade(t *testing.T) {
	r := newRig(t)
	s := r.sh("a", "i=0; while [ $i -lt 500 ]; do echo line $i; i=$((i+1)); done; read x; exit 9")
	s.Stdin = true
	st := r.run(s)
	s = r.sh("tty", "read x; echo got $x; exit 8")
	s.OCI.Process.Terminal = true
	r.run(s)
	pid := r.c.PID()
	if err := r.c.Upgrade(r.ctx, "/no/such/binary"); !errors.Is(err, errs.Invalid) {
		t.Errorf("upgrade to nothing: %v", err)
	}
	if err := r.c.Upgrade(r.ctx, bin+"/orlop-keeper"); err != nil {
		t.Fatal(err)
	}
	<-r.c.Done()
	r.spawn()
	if r.c.PID() != pid {
		t.Errorf("another process: %d was %d", r.c.PID(), pid)
	}
	if now, err := r.c.Status(r.ctx, "a"); err != nil || now.State != keeper.Running || now.PID != st.PID {
		t.Errorf("after the upgrade: %+v, %v", now, err)
	}
	for id, code := range map[string]int{"a": 9, "tty": 8} {
		w, err := r.c.StdinWriter(r.ctx, id)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(w, "go")
		w.Close()
		if x := r.wait(id); x.Code != code || !x.Known {
			t.Errorf("%s: exit %+v\n%s", id, x, r.keeperLog())
		}
	}
	if n := len(r.log("a")); n != 500 {
		t.Errorf("%d lines", n)
	}
}

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
		t.Run(point, func(t *testing.T) {
			r := newRig(t)
			r.kill()
			once := filepath.Join(t.TempDir(), "once")
			r.spawn("ORLOP_FAULT="+point, "ORLOP_FAULT_ONCE="+once)
			s := r.sh("a", "i=0; while [ $i -lt 2000 ]; do echo line $i; i=$((i+1)); done; exit 3")
			s.Log.MaxBytes, s.Log.MaxFiles = 30_000, 9
			// A client that asks again until it is done, as the daemon does.
			retry := func(what string, fn func() error) {
				t.Helper()
				for try := 0; ; try++ {
					err := fn()
					if err == nil {
						return
					}
					if !errors.Is(err, errs.Unavailable) || try > 3 {
						t.Fatalf("%s: %v\n%s", what, err, r.keeperLog())
					}
					<-r.c.Done()
					r.spawn()
				}
			}
			retry("run", func() error { _, err := r.c.Run(r.ctx, s); return err })
			if strings.HasPrefix(point, "keeper.upgrade") {
				r.c.Upgrade(r.ctx, bin+"/orlop-keeper")
				<-r.c.Done()
				r.spawn()
			}
			var x keeper.Exit
			retry("wait", func() (err error) { x, err = r.c.Wait(r.ctx, "a"); return err })
			if x.Code != 3 || !x.Known {
				t.Errorf("exit %+v\n%s", x, r.keeperLog())
			}
			for i, l := range r.log("a") {
				if want := fmt.Sprintf("stdout F line %d", i); l != want {
					t.Fatalf("line %d is %q", i, l)
				}
			}
			retry("delete", func() error { return r.c.Delete(r.ctx, "a") })
			if _, err := os.Stat(once); err != nil {
				t.Errorf("nothing passed the point")
			}
		})
	}
}
