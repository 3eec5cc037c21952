package keeper_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/platform/cgroup"
	"github.com/orlop-io/orlop/internal/platform/executor"
	"github.com/orlop-io/orlop/internal/platform/keeper"
	"github.com/orlop-io/orlop/internal/platform/pidfd/pidfdtest"
	"github.com/orlop-io/orlop/test/programs"
)

// bin holds the real binaries, built with fault points.
var bin string

func TestMain(m *testing.M) {
	if os.Getenv("KEEPER_TEST_SOCKET") != "" { // TestForeignUser's other half
		os.Exit(m.Run())
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "the keeper's tests start containers: run as root")
		os.Exit(1)
	}
	os.Exit(func() int {
		dir, remove, err := programs.Build(
			programs.Program{Package: "cmd/orlop-keeper", Tags: "faults", Race: true},
			programs.Program{Package: "cmd/orlop-init", Tags: "faults"},
			programs.Program{Package: "cmd/orlop-oci"},
		)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer remove()
		bin = dir
		code := m.Run()
		if left := leftovers(); len(left) > 0 {
			fmt.Fprintf(os.Stderr, "the tests have left:\n%s\n", strings.Join(left, "\n"))
			return max(code, 1)
		}
		return code
	}())
}

// leftovers names the processes of our binaries that still run, and our mounts.
func leftovers() (left []string) {
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		left = nil
		exes, _ := filepath.Glob("/proc/[0-9]*/exe")
		for _, exe := range exes {
			if to, err := os.Readlink(exe); err == nil && strings.HasPrefix(to, bin+"/") {
				left = append(left, exe+" "+to)
			}
		}
		mounts, _ := os.ReadFile("/proc/self/mounts")
		for line := range strings.Lines(string(mounts)) {
			if strings.HasPrefix(line, mountName()) {
				left = append(left, line)
			}
		}
		if len(left) == 0 || time.Now().After(deadline) {
			return left
		}
	}
}

// mountName is the source that our mounts show.
func mountName() string { return fmt.Sprintf("orlop-keeper-test-%d", os.Getpid()) }

// rig is a keeper with a daemon's side, and a root filesystem.
type rig struct {
	t     testing.TB
	dir   string // keeper's
	root  string
	group string
	held  keeper.Holdings
	c     *keeper.Client
	ctx   context.Context
	logs  string
}

var rigs atomic.Int32

func newRig(t testing.TB) *rig {
	t.Helper()
	r := &rig{t: t, ctx: context.Background(), group: fmt.Sprintf("/orlopkeep%d-%d", os.Getpid(), rigs.Add(1)), logs: t.TempDir()}
	var err error
	if r.dir, err = os.MkdirTemp("/run", "orlop-keep-"); err != nil {
		t.Fatal(err)
	}
	// Where /run is no tmpfs, as in a container, the keeper's directory is made one.
	if err := unix.Mount(mountName(), r.dir, "tmpfs", 0, "size=64m,mode=0700"); err != nil {
		t.Fatal(err)
	}
	mounted := r.dir
	t.Cleanup(func() {
		// A keeper that another was faster than has the lock's file open for a second.
		err := unix.Unmount(mounted, 0)
		for deadline := time.Now().Add(10 * time.Second); err == unix.EBUSY && time.Now().Before(deadline); err = unix.Unmount(mounted, 0) {
			time.Sleep(time.Millisecond)
		}
		if err != nil {
			t.Error(err)
		}
		os.Remove(mounted)
	})
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
	if err := keeper.Spawn(context.Background(), keeper.SpawnOptions{Binary: bin + "/orlop-keeper", Init: bin + "/orlop-init", Dir: r.dir, Roots: r.dir + "-roots", LogFile: r.logs + "/keeper.log"}); err != nil {
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
	process, err := os.FindProcess(r.c.PID())
	if err != nil {
		r.t.Error(err)
	}
	if err := r.c.Shutdown(ctx); err != nil {
		r.t.Error(err)
	}
	r.c.Close()
	for deadline := time.Now().Add(10 * time.Second); process.Signal(syscall.Signal(0)) == nil; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Error("the keeper does not end")
			break
		}
	}
	if n := r.held.Len(); n != 0 {
		r.t.Errorf("something of %d containers is still held", n)
	}
	r.held.Close()
	if log := r.keeperLog(); strings.Contains(log, "DATA RACE") || strings.Contains(log, "panic") {
		r.t.Error(log)
	}
	if ents, _ := os.ReadDir(r.dir + "/containers"); len(ents) > 0 {
		r.t.Errorf("%d directories of containers are left", len(ents))
	}
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

// ended tells whether x is that end. Of a process whose parent was a keeper that was killed
// only the kernel can tell it: where it keeps nothing, it may be unknown, and says so.
func (r *rig) ended(x keeper.Exit, code int) bool {
	r.t.Helper()
	if !x.Known && !pidfdtest.Keeps(r.t) {
		return x.Code == 255
	}
	return x.Known && x.Code == code
}

// log returns the log's lines without their times, after all rotated files.
func (r *rig) log(id string) (lines []string) {
	r.t.Helper()
	path := filepath.Join(r.logs, id+".log")
	var text string
	for n := 99; n >= 0; n-- {
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
