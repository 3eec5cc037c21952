package keeper_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/cgroup"
	"github.com/orlop-io/orlop/internal/platform/executor"
	"github.com/orlop-io/orlop/internal/platform/keeper"
	"github.com/orlop-io/orlop/internal/platform/mount"
	"github.com/orlop-io/orlop/internal/platform/namespace"
	"github.com/orlop-io/orlop/internal/platform/ociruntime"
	"github.com/orlop-io/orlop/test/programs"
)

// programOf finds the runtimes that are tested: runc as Debian has it, and our own.
func programOf(t testing.TB, name string) string {
	t.Helper()
	switch name {
	case "orlop-oci":
		return bin + "/orlop-oci"
	case "newest runc":
		path, err := programs.BuildRunc(bin)
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%s is needed: %v", name, err)
	}
	return path
}

// runtimes are those that can be had here: crun refuses hosts whose control groups are not all
// of v2.
func runtimes() []string {
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		return []string{"runc", "crun", "orlop-oci"}
	}
	return []string{"runc", "orlop-oci"}
}

// runtime is the command line of that name, with its state below the keeper's directory.
func (r *rig) runtime(path string) *ociruntime.Runtime {
	return &ociruntime.Runtime{Name: filepath.Base(path), Path: path, Root: filepath.Join(r.dir, "runtimes", filepath.Base(path))}
}

// by has a shell script run by the runtime, on a writable layer.
func (r *rig) by(rt *ociruntime.Runtime, id, script string) keeper.Spec {
	s := r.sh(id, script)
	layer := filepath.Join(r.logs, "layer-"+id)
	s.Rootfs = executor.Rootfs{Lower: []string{r.root}, Upper: layer + "/upper", Work: layer + "/work"}
	for _, d := range []string{s.Rootfs.Upper, s.Rootfs.Work} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			r.t.Fatal(err)
		}
	}
	s.OCI.Root.Readonly = false
	s.Runtime = rt
	// As deep as a pod's, which with systemd makes a scope of it.
	s.Cgroup = r.group + "/pod/" + id
	r.t.Cleanup(func() {
		if g, err := r.groups().Load(r.group + "/pod"); err == nil {
			if err := g.Remove(context.Background()); err != nil {
				r.t.Error(err)
			}
		}
	})
	return s
}

func (r *rig) groups() *cgroup.Host {
	r.t.Helper()
	h, err := cgroup.Open(cgroup.Options{})
	if err != nil {
		r.t.Fatal(err)
	}
	return h
}

// clean tells what is left of a container: state of the runtime, mounts, control groups.
func (r *rig) clean(rt *ociruntime.Runtime, id string) {
	r.t.Helper()
	var left []string
	filepath.WalkDir(rt.Root, func(path string, _ fs.DirEntry, err error) error {
		if err == nil && strings.Contains(path, "/"+id) {
			left = append(left, path)
		}
		return nil
	})
	for _, path := range []string{r.dir + "/containers/" + id, r.dir + "/rootfs/" + id, r.dir + "-roots/" + id} {
		if _, err := os.Lstat(path); err == nil {
			left = append(left, path)
		}
		below, err := mount.Below(path)
		if err != nil {
			r.t.Fatal(err)
		}
		for _, m := range below {
			left = append(left, "mount "+m.Point)
		}
	}
	if sockets, _ := filepath.Glob(r.dir + "/console-*"); len(sockets) > 0 {
		left = append(left, sockets...)
	}
	groups, _ := filepath.Glob("/sys/fs/cgroup/*" + r.group + "/pod/" + id)
	if _, err := r.groups().Load(r.group + "/pod/" + id); !errors.Is(err, errs.NotFound) {
		groups = append(groups, fmt.Sprintf("control group: %v", err))
	}
	if left = append(left, groups...); len(left) > 0 {
		r.t.Errorf("left of %s: %s\n%s", id, strings.Join(left, "\n"), r.keeperLog())
	}
}

func (r *rig) remove(rt *ociruntime.Runtime, id string) {
	r.t.Helper()
	if err := r.c.Delete(r.ctx, id); err != nil {
		r.t.Fatalf("%v\n%s", err, r.keeperLog())
	}
	r.clean(rt, id)
}

func (r *rig) eventually(what string, ok func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("%s: not within 20 s\n%s", what, r.keeperLog())
		}
	}
}

// Everything that works for containers of our own executor works for others'.
func TestRuntimeLife(t *testing.T) {
	for _, name := range runtimes() {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			rt := r.runtime(programOf(t, name))
			r.run(r.by(rt, "a", "echo out; echo err >&2; echo file >/made; exit 7"))
			if x := r.wait("a"); x.Code != 7 || !x.Known {
				t.Errorf("exit %+v\n%s", x, r.keeperLog())
			}
			if got := strings.Join(r.log("a"), "|"); got != "stdout F out|stderr F err" && got != "stderr F err|stdout F out" {
				t.Errorf("log: %s", got)
			}
			if raw, err := os.ReadFile(r.logs + "/layer-a/upper/made"); err != nil || string(raw) != "file\n" {
				t.Errorf("the writable layer: %q %v", raw, err)
			}
			r.remove(rt, "a")
			r.remove(rt, "a")

			// Created and started apart; a signal that is handled; input; limits; freezing.
			s := r.by(rt, "b", `trap 'echo got term; exit 9' TERM; read x; echo read $x; while :; do sleep 0.05; done`)
			s.Stdin = true
			if err := r.c.Create(r.ctx, s); err != nil {
				t.Fatalf("%v\n%s", err, r.keeperLog())
			}
			if st, err := r.c.Status(r.ctx, "b"); err != nil || st.State != keeper.Created || len(r.log("b")) != 0 {
				t.Errorf("created: %+v %v", st, err)
			}
			if _, err := r.c.Start(r.ctx, "b"); err != nil {
				t.Fatal(err)
			}
			w, err := r.c.StdinWriter(r.ctx, "b")
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintln(w, "words")
			w.Close()
			r.eventually("input", func() bool { return strings.Join(r.log("b"), "|") == "stdout F read words" })
			testRuntimeExec(t, r)
			limit, shares := int64(64<<20), uint64(300)
			if err := r.c.Update(r.ctx, "b", &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit, Swap: &limit}, CPU: &specs.LinuxCPU{Shares: &shares}}); err != nil {
				t.Fatal(err)
			}
			g, err := r.groups().Load(s.Cgroup)
			if err != nil {
				t.Fatal(err)
			}
			st, err := g.Stats()
			if err != nil || st.Memory.LimitBytes != uint64(limit) || st.CPU.Usage == 0 || st.PIDs.Current == 0 || st.Memory.UsageBytes == 0 {
				t.Errorf("what the group counts: %+v %v", st, err)
			}
			for range 2 {
				if err := r.c.Pause(r.ctx, "b"); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := r.c.Exec(r.ctx, "b", keeper.ExecSpec{Process: &specs.Process{Args: []string{"/bin/true"}, Cwd: "/"}}); !errors.Is(err, errs.FailedPrecondition) {
				t.Errorf("exec in a paused one: %v", err)
			}
			if err := r.c.Resume(r.ctx, "b"); err != nil {
				t.Fatal(err)
			}
			if err := r.c.Signal(r.ctx, "b", unix.SIGTERM, false); err != nil {
				t.Fatal(err)
			}
			if x := r.wait("b"); x.Code != 9 || !x.Known {
				t.Errorf("exit %+v", x)
			}
			if err := r.c.Signal(r.ctx, "b", unix.SIGTERM, false); err != nil {
				t.Errorf("a signal to one that has ended: %v", err)
			}
			r.remove(rt, "b")

			// Killed while frozen, with what it has started.
			r.run(r.by(rt, "c", "sleep 1000 & sleep 1000"))
			if err := r.c.Pause(r.ctx, "c"); err != nil {
				t.Fatal(err)
			}
			if err := r.c.Signal(r.ctx, "c", unix.SIGKILL, true); err != nil {
				t.Fatal(err)
			}
			if x := r.wait("c"); x.Signal != 9 || !x.Known || x.OOMKilled {
				t.Errorf("exit %+v", x)
			}
			r.remove(rt, "c")

			// One that waits to be started goes at once.
			if err := r.c.Create(r.ctx, r.by(rt, "d", "echo never")); err != nil {
				t.Fatal(err)
			}
			r.remove(rt, "d")

			s = r.by(rt, "e", "")
			s.OCI.Process.Args = []string{"/no/such/program"}
			if _, err := r.c.Run(r.ctx, s); !errors.Is(err, errs.NotFound) || !strings.Contains(err.Error(), "/no/such/program") || !strings.Contains(err.Error(), rt.Name) {
				t.Errorf("a program that does not exist: %v", err)
			}
			r.clean(rt, "e")

			small := int64(16 << 20)
			s = r.by(rt, "f", "")
			s.OCI.Process.Args = []string{"/bin/busybox", "tail", "/dev/zero"}
			s.OCI.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &small, Swap: &small}
			r.run(s)
			if x := r.wait("f"); !x.OOMKilled || x.Code != 137 {
				t.Errorf("exit %+v", x)
			}
			r.remove(rt, "f")
		})
	}
}

func testRuntimeExec(t *testing.T, r *rig) {
	t.Helper()
	var pipes [3][2]*os.File
	for i := range pipes {
		var err error
		if pipes[i][0], pipes[i][1], err = os.Pipe(); err != nil {
			t.Fatal(err)
		}
		defer pipes[i][0].Close()
	}
	e, err := r.c.Exec(r.ctx, "b", keeper.ExecSpec{
		Process: &specs.Process{Args: []string{"/bin/sh", "-c", "read x; echo $x; echo err >&2; exit 4"}, Cwd: "/", Env: []string{"PATH=/bin"}},
		Stdin:   pipes[0][0], Stdout: pipes[1][1], Stderr: pipes[2][1],
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, r.keeperLog())
	}
	fmt.Fprintln(pipes[0][1], "hello")
	pipes[0][1].Close()
	pipes[1][1].Close()
	pipes[2][1].Close()
	out, _ := io.ReadAll(pipes[1][0])
	complaint, _ := io.ReadAll(pipes[2][0])
	x, err := e.Wait(r.ctx)
	if err != nil || x.Code != 4 || !x.Known || string(out) != "hello\n" || string(complaint) != "err\n" {
		t.Errorf("exec: %+v %v %q %q", x, err, out, complaint)
	}
	_, err = r.c.Exec(r.ctx, "b", keeper.ExecSpec{Process: &specs.Process{Args: []string{"/no/such/program"}, Cwd: "/"}})
	if !errors.Is(err, errs.NotFound) || !strings.Contains(err.Error(), "/no/such/program") {
		t.Errorf("a program that does not exist: %v", err)
	}
	if left, _ := filepath.Glob(r.dir + "/containers/b/*-*"); len(left) > 0 {
		t.Errorf("files of commands that have ended: %v", left)
	}
}

// Terminals of the container and of a command in it.
func TestRuntimeTerminal(t *testing.T) {
	for _, name := range runtimes() {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			rt := r.runtime(programOf(t, name))
			s := r.by(rt, "a", `[ -t 0 ] && echo a terminal; read x; echo got $x; exit 3`)
			s.OCI.Process.Terminal = true
			r.run(s)
			if err := r.c.Resize(r.ctx, "a", 99, 33); err != nil {
				t.Fatal(err)
			}
			e, err := r.c.Exec(r.ctx, "a", keeper.ExecSpec{Process: &specs.Process{Args: []string{"/bin/sh", "-c", "[ -t 1 ] && echo tty; exit 5"}, Cwd: "/", Terminal: true}})
			if err != nil {
				t.Fatalf("%v\n%s", err, r.keeperLog())
			}
			said := make([]byte, 64)
			n, _ := e.Console.Read(said)
			if x, err := e.Wait(r.ctx); err != nil || x.Code != 5 || !strings.HasPrefix(string(said[:n]), "tty") {
				t.Errorf("exec: %+v %v %q", x, err, said[:n])
			}
			e.Console.Close()
			// The terminal outlives the keeper.
			r.kill()
			r.spawn()
			w, err := r.c.StdinWriter(r.ctx, "a")
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintln(w, "input")
			w.Close()
			if x := r.wait("a"); !r.ended(x, 3) {
				t.Errorf("exit %+v", x)
			}
			if got := strings.Join(r.log("a"), "|"); !strings.Contains(got, "a terminal") || !strings.Contains(got, "got input") {
				t.Errorf("log: %s", got)
			}
			r.remove(rt, "a")
		})
	}
}

// A runtime that is missing, that fails or that hangs is an error that says so, and leaves nothing.
func TestRuntimeOfNoUse(t *testing.T) {
	r := newRig(t)
	script := func(name, text string) *ociruntime.Runtime {
		path := filepath.Join(r.logs, name)
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		rt := r.runtime(path)
		rt.Timeout = time.Second
		return rt
	}
	text := filepath.Join(r.logs, "text")
	if err := os.WriteFile(text, []byte("no program"), 0o755); err != nil {
		t.Fatal(err)
	}
	runc := programOf(t, "runc")
	for _, tt := range []struct {
		rt   *ociruntime.Runtime
		kind *errs.Kind
		want string
	}{
		{r.runtime("/no/such/runtime"), errs.FailedPrecondition, "there is no such program; install it, or set cri.runtimes.runtime.path"},
		{r.runtime(text), errs.FailedPrecondition, "cannot be executed"},
		{script("fails", "echo cannot do it >&2; exit 3"), errs.FailedPrecondition, "fails create: cannot do it"},
		{script("silent", "exit 3"), errs.FailedPrecondition, "exit status 3 without a word"},
		{script("liar", "exit 0"), errs.FailedPrecondition, "wrote no process"},
		{script("hangs", "sleep 1000"), errs.Timeout, "hangs create did not end within 1s and was killed"},
		{script("hangs-at-start", `case "$*" in *" start "*) sleep 1000;; esac; exec `+runc+` "$@"`), errs.Timeout, "start did not end within 1s"},
		{script("fails-at-start", `case "$*" in *" start "*) echo no >&2; exit 1;; esac; exec `+runc+` "$@"`), errs.FailedPrecondition, "fails-at-start start: no"},
		{script("fails-at-delete", `case "$*" in *" start "*|*" delete "*) exit 1;; esac; exec `+runc+` "$@"`), errs.FailedPrecondition, "start: exit status 1"},
		{script("hangs-at-delete", `case "$*" in *" start "*) exit 1;; *" delete "*) sleep 1000;; esac; exec `+runc+` "$@"`), errs.FailedPrecondition, "start: exit status 1"},
	} {
		t.Run(tt.rt.Name, func(t *testing.T) {
			r.t = t
			begin := time.Now()
			_, err := r.c.Run(r.ctx, r.by(tt.rt, "x", "sleep 1000"))
			if !errors.Is(err, tt.kind) || !strings.Contains(fmt.Sprint(err), tt.want) || !strings.Contains(fmt.Sprint(err), "runtime handler "+tt.rt.Name) {
				t.Errorf("error: %v (%v); want %q\n%s", err, errs.KindOf(err), tt.want, r.keeperLog())
			}
			if took := time.Since(begin); took > 15*time.Second {
				t.Errorf("it took %s", took)
			}
			r.clean(tt.rt, "x")
			if l, _ := r.c.List(r.ctx); len(l) != 0 {
				t.Errorf("left: %+v", l)
			}
		})
	}
	r.t = t
	// Of a container that runs, too.
	rt := script("no-more", "exec "+runc+` "$@"`)
	r.run(r.by(rt, "y", "sleep 1000"))
	script("no-more", "sleep 1000")
	if err := r.c.Signal(r.ctx, "y", unix.SIGTERM, false); !errors.Is(err, errs.Timeout) {
		t.Errorf("a signal by a runtime that hangs: %v", err)
	}
	if err := r.c.Signal(r.ctx, "y", unix.SIGKILL, true); err != nil {
		t.Error(err)
	}
	if x := r.wait("y"); x.Signal != 9 {
		t.Errorf("exit %+v", x)
	}
	r.remove(rt, "y")
}

// Killed at every fault point with a container of another runtime, a keeper that comes back has
// lost and leaked nothing.
func TestRuntimeFaults(t *testing.T) {
	out, err := exec.Command(bin+"/orlop-keeper", "-faults").Output()
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, point := range strings.Fields(string(out)) {
		for _, prefix := range []string{"runtime.", "keeper.create.", "keeper.start.", "keeper.exit.", "keeper.delete.", "keeper.exec.", "keeper.pause.", "keeper.resume."} {
			if strings.HasPrefix(point, prefix) {
				n++
				t.Run(point, func(t *testing.T) { runtimeKilledAt(t, point, (*rig).by) })
				if strings.Contains(point, "rootfs") {
					t.Run(point+"/users", func(t *testing.T) { runtimeKilledAt(t, point, (*rig).inUsers) })
				}
			}
		}
	}
	if n < 18 {
		t.Errorf("only %d fault points", n)
	}
}

func runtimeKilledAt(t *testing.T, point string, by func(*rig, *ociruntime.Runtime, string, string) keeper.Spec) {
	r := newRig(t)
	r.kill()
	once := filepath.Join(t.TempDir(), "once")
	r.spawn("ORLOP_FAULT="+point+":1", "ORLOP_FAULT_ONCE="+once)
	rt := r.runtime(programOf(t, "orlop-oci"))
	s := by(r, rt, "a", "cat >/dev/null; i=0; while [ $i -lt 500 ]; do echo line $i; i=$((i+1)); done; exit 3")
	s.Stdin, s.StdinOnce = true, true
	retry := r.retry
	retry("create", func() error { return r.c.Create(r.ctx, s) })
	retry("run", func() error { _, err := r.c.Run(r.ctx, s); return err })
	retry("exec", r.execEnds)
	retry("pause", func() error { return r.c.Pause(r.ctx, "a") })
	retry("resume", func() error { return r.c.Resume(r.ctx, "a") })
	retry("stdin", func() error {
		w, err := r.c.StdinWriter(r.ctx, "a")
		if errors.Is(err, errs.FailedPrecondition) {
			return nil
		}
		if err != nil {
			return err
		}
		return w.Close()
	})
	var x keeper.Exit
	retry("wait", func() (err error) { x, err = r.c.Wait(r.ctx, "a"); return err })
	if !r.ended(x, 3) {
		t.Errorf("exit %+v\n%s", x, r.keeperLog())
	}
	lines := r.log("a")
	for i, l := range lines {
		if want := fmt.Sprintf("stdout F line %d", i); l != want {
			t.Fatalf("line %d is %q", i, l)
		}
	}
	if len(lines) != 500 {
		t.Errorf("%d lines", len(lines))
	}
	retry("delete", func() error { return r.c.Delete(r.ctx, "a") })
	r.clean(rt, "a")
	if _, err := os.Stat(once); err != nil {
		t.Errorf("nothing passed the point")
	}
}

// A keeper that becomes another binary goes on with them, and nothing that a runtime has left, or a
// container in the host's PID namespace, stays unreaped.
func TestRuntimeUpgrade(t *testing.T) {
	r := newRig(t)
	rt := r.runtime(programOf(t, "runc"))
	s := r.by(rt, "a", "read x; exit 6")
	s.Stdin = true
	r.run(s)
	// Children of this one are orphaned while commands of runtimes go on.
	s = r.by(rt, "orphans", "while [ ! -e /tmp/end ]; do (sleep 0.01 &); done")
	for i, n := range s.OCI.Linux.Namespaces {
		if n.Type == specs.PIDNamespace {
			s.OCI.Linux.Namespaces = append(s.OCI.Linux.Namespaces[:i:i], s.OCI.Linux.Namespaces[i+1:]...)
			break
		}
	}
	r.run(s)
	for range 3 {
		e, err := r.c.Exec(r.ctx, "a", keeper.ExecSpec{Process: &specs.Process{Args: []string{"/bin/sh", "-c", "exit 4"}, Cwd: "/"}})
		if err != nil {
			t.Fatal(err)
		}
		if x, err := e.Wait(r.ctx); err != nil || x.Code != 4 {
			t.Errorf("exec: %+v %v", x, err)
		}
	}
	if err := r.c.Signal(r.ctx, "orphans", unix.SIGKILL, true); err != nil {
		t.Fatal(err)
	}
	r.wait("orphans")
	r.remove(rt, "orphans")
	r.eventually("zombies are reaped", func() bool { return zombies(r.c.PID()) == 0 })
	if err := r.c.Upgrade(r.ctx, bin+"/orlop-keeper"); err != nil {
		t.Fatal(err)
	}
	<-r.c.Done()
	r.spawn()
	w, err := r.c.StdinWriter(r.ctx, "a")
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(w)
	w.Close()
	if x := r.wait("a"); x.Code != 6 || !x.Known {
		t.Errorf("exit %+v", x)
	}
	r.remove(rt, "a")
}

// zombies counts the children of a process that have ended and were not reaped.
func zombies(pid int) (n int) {
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, f := range stats {
		raw, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		_, rest, _ := strings.Cut(string(raw[strings.LastIndexByte(string(raw), ')'):]), " ")
		var state string
		var parent int
		if fmt.Sscan(rest, &state, &parent); state == "Z" && parent == pid {
			n++
		}
	}
	return n
}

// inUsers is a container that joins pinned namespaces of a pod in a user namespace.
func (r *rig) inUsers(rt *ociruntime.Runtime, id, script string) keeper.Spec {
	r.t.Helper()
	ids := []specs.LinuxIDMapping{{HostID: 500000, Size: 65536}}
	pinned := filepath.Join(r.dir, "ns")
	if err := namespace.Pin(pinned, []namespace.Kind{namespace.IPC, namespace.UTS}, namespace.Options{Hostname: "pod", Users: &namespace.IDMaps{UIDs: ids, GIDs: ids}}); err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() {
		if err := namespace.Unpin(pinned); err != nil {
			r.t.Error(err)
		}
	})
	s := r.by(rt, id, script)
	s.Rootfs.IDMap = true
	s.OCI.Mounts = s.OCI.Mounts[:2] // what there can be without a network namespace of its own
	l := s.OCI.Linux
	l.UIDMappings, l.GIDMappings = ids, ids
	l.Namespaces = []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.UserNamespace, Path: pinned + "/user"},
		{Type: specs.IPCNamespace, Path: pinned + "/ipc"}, {Type: specs.UTSNamespace, Path: pinned + "/uts"}}
	return s
}

// A container in a pod's user namespace owns its files by the ids that it sees, and leaves none of the
// host's on the disk.
func TestRuntimeUserNamespace(t *testing.T) {
	for _, name := range []string{"newest runc", "orlop-oci"} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			rt := r.runtime(programOf(t, name))
			s := r.inUsers(rt, "a", "cat /proc/self/uid_map; echo made >/made && echo wrote; echo again >/dev/stdout; [ -O /bin/busybox ] && echo mine; hostname; read x")
			s.Stdin = true
			r.run(s)
			r.eventually("its output", func() bool { return len(r.log("a")) == 5 })
			if got := strings.Join(r.log("a"), "|"); !strings.Contains(got, "500000") || !strings.HasSuffix(got, "F wrote|stdout F again|stdout F mine|stdout F pod") {
				t.Errorf("log: %s", got)
			}
			if fi, err := os.Stat(r.logs + "/layer-a/upper/made"); err != nil || fi.Sys().(*syscall.Stat_t).Uid != 0 {
				t.Errorf("what it has made: %v %v", fi, err)
			}
			// Only the container's root gets to its root filesystem.
			var st unix.Stat_t
			if err := unix.Stat(r.dir+"-roots/a", &st); err != nil || st.Mode&0o7777 != 0o710 || st.Gid != 500000 || st.Uid != 0 {
				t.Errorf("above its root filesystem: %o of %d:%d %v", st.Mode, st.Uid, st.Gid, err)
			}
			e, err := r.c.Exec(r.ctx, "a", keeper.ExecSpec{Process: &specs.Process{Args: []string{"/bin/sh", "-c", "[ -O /proc/self ] && exit 4"}, Cwd: "/", Env: []string{"PATH=/bin"}}})
			if err != nil {
				t.Fatalf("%v\n%s", err, r.keeperLog())
			}
			if x, err := e.Wait(r.ctx); err != nil || x.Code != 4 {
				t.Errorf("exec: %+v %v", x, err)
			}
			r.kill()
			r.spawn()
			if err := r.c.Signal(r.ctx, "a", unix.SIGKILL, true); err != nil {
				t.Fatal(err)
			}
			r.wait("a")
			r.remove(rt, "a")
			if _, err := os.Stat(r.dir + "-roots"); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the directory of root filesystems: %v", err)
			}

			for text, change := range map[string]func(*keeper.Spec){
				"writable layer": func(s *keeper.Spec) { s.Rootfs.Upper, s.Rootfs.Work = "", "" },
				"its path has to be": func(s *keeper.Spec) {
					s.OCI.Linux.Namespaces = s.OCI.Linux.Namespaces[:2]
				},
				"give its layers": func(s *keeper.Spec) { s.Rootfs.Lower, s.Rootfs.Dir = nil, r.root },
			} {
				s := r.inUsers(rt, "b", "")
				change(&s)
				if err := r.c.Create(r.ctx, s); !errors.Is(err, errs.Unsupported) || !strings.Contains(err.Error(), text) {
					t.Errorf("%s: %v", text, err)
				}
				r.clean(rt, "b")
			}
			// A directory that is there already is opened for the pod's root.
			if err := os.Mkdir(r.dir+"-roots", 0o700); err != nil {
				t.Fatal(err)
			}
			s = r.inUsers(rt, "c", "echo found")
			r.run(s)
			r.wait("c")
			if got := strings.Join(r.log("c"), "|"); !strings.Contains(got, "found") {
				t.Errorf("log: %s", got)
			}
			r.remove(rt, "c")
		})
	}
}

// A keeper that knows no runtimes must not run such a container with its own executor.
func TestRuntimeRecordVersion(t *testing.T) {
	r := newRig(t)
	rt := r.runtime(programOf(t, "orlop-oci"))
	r.run(r.by(rt, "a", "sleep 1000"))
	r.run(r.sh("b", "sleep 1000"))
	for id, want := range map[string]string{"a": `"Version":2`, "b": `"Version":1`} {
		raw, err := os.ReadFile(filepath.Join(r.dir, "containers", id, "state.json"))
		if err != nil || !strings.Contains(string(raw), want) {
			t.Errorf("record of %s: %s %v", id, raw, err)
		}
		if err := r.c.Signal(context.Background(), id, unix.SIGKILL, true); err != nil {
			t.Error(err)
		}
		r.wait(id)
	}
	r.remove(rt, "a")
}
