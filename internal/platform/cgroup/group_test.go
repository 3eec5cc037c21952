package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/mount"
)

func to[T any](v T) *T { return &v }

func TestLifecycle(t *testing.T) {
	on(t, func(t *testing.T, h *Host) {
		p := root(t, h) + "/pod/app"
		if _, err := h.Load(p); !errors.Is(err, errs.NotFound) {
			t.Errorf("Load of nothing: %v", err)
		}
		res := &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: to(int64(50))}}
		g, err := h.Create(p, res)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := h.Create(p, res); err != nil {
			t.Errorf("Create again: %v", err)
		}
		if !g.Empty() {
			t.Error("a new group is not empty")
		}
		c := spawn(t, g, "wait")
		if c.line(t) != "ready" {
			t.Fatal("no child")
		}
		procs, err := g.Procs()
		if err != nil || !slices.Equal(procs, []int{c.Process.Pid}) {
			t.Errorf("Procs = %v, %v; want %d", procs, err, c.Process.Pid)
		}
		// In every hierarchy in which the group is, its process is in it too.
		list, err := os.ReadFile("/proc/" + strconv.Itoa(c.Process.Pid) + "/cgroup")
		if err != nil {
			t.Fatal(err)
		}
		for controller := range g.Dirs() {
			found := false
			for line := range strings.SplitSeq(string(list), "\n") {
				f := strings.SplitN(line, ":", 3)
				found = found || len(f) == 3 && slices.Contains(strings.Split(f[1], ","), controller) && f[2] == p
			}
			if !found {
				t.Errorf("hierarchy %q does not have the process in %s:\n%s", controller, p, list)
			}
		}
		if g.Empty() {
			t.Error("empty with a process")
		}
		loaded, err := h.Load(p)
		if err != nil || loaded.Empty() {
			t.Errorf("Load: %v", err)
		}
		if kids, err := h.Children(filepath.Dir(p)); err != nil || !slices.Equal(kids, []string{"app"}) {
			t.Errorf("Children = %v, %v", kids, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if err := g.Remove(ctx); !errors.Is(err, errs.InUse) || !strings.Contains(err.Error(), strconv.Itoa(c.Process.Pid)) {
			t.Errorf("Remove with a process: %v", err)
		}
		if s, err := g.Stats(); err != nil || s.PIDs.Current == 0 || s.PIDs.Limit != 50 {
			t.Errorf("after a refused Remove: %+v, %v", s.PIDs, err)
		}
		if err := g.Kill(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if err := g.Remove(t.Context()); err != nil { // its process may be dying still
			t.Fatal(err)
		}
		if err := g.Remove(t.Context()); err != nil {
			t.Errorf("Remove again: %v", err)
		}
		if !g.Empty() || len(g.Dirs()) != 0 {
			t.Errorf("left: %v", g.Dirs())
		}
	})
}

func TestAddAndSpawn(t *testing.T) {
	on(t, func(t *testing.T, h *Host) {
		p := root(t, h)
		a, err := h.Create(p+"/a", nil)
		if err != nil {
			t.Fatal(err)
		}
		b, err := h.Create(p+"/b", nil)
		if err != nil {
			t.Fatal(err)
		}
		c := spawn(t, a, "wait")
		c.line(t)
		if err := b.Add(c.Process.Pid); err != nil {
			t.Fatal(err)
		}
		if pids, _ := b.Procs(); !slices.Contains(pids, c.Process.Pid) || !a.Empty() {
			t.Errorf("after Add: b %v, a empty %v", pids, a.Empty())
		}
		if err := b.Add(1 << 22); !errors.Is(err, errs.NotFound) && !errors.Is(err, errs.Invalid) {
			t.Errorf("Add of no process: %v", err)
		}
		gone, err := h.group(p + "/gone")
		if err != nil {
			t.Fatal(err)
		}
		if err := gone.Add(c.Process.Pid); !errors.Is(err, errs.NotFound) {
			t.Errorf("Add to no group: %v", err)
		}
		_, err = gone.Spawn(func(int) (int, error) { return c.Process.Pid, nil })
		if !errors.Is(err, errs.NotFound) {
			t.Errorf("Spawn in no group: %v", err)
		}
		// A group that is removed when the kernel has still to look at it.
		going, err := h.Create(p+"/going", nil)
		if err != nil {
			t.Fatal(err)
		}
		if dir := going.unifiedDir(); dir != "" {
			if _, err = spawnAfter(t, going, "wait", func() { unix.Rmdir(dir) }); !errors.Is(err, errs.NotFound) {
				t.Errorf("Spawn in a group that goes: %v", err)
			}
		}
	})
}

func TestPaths(t *testing.T) {
	on(t, func(t *testing.T, h *Host) {
		for _, p := range []string{"", "/", "/a/../b", "..", "a\nb", "a\x00b", "//"} {
			if _, err := h.Create(p, nil); !errors.Is(err, errs.Invalid) {
				t.Errorf("Create(%q): %v", p, err)
			}
		}
	})
}

// What is refused leaves nothing: neither half a group nor its parents.
func TestRefusedCreateLeavesNothing(t *testing.T) {
	on(t, func(t *testing.T, h *Host) {
		p := root(t, h)
		for name, tt := range map[string]struct {
			res  *specs.LinuxResources
			kind *errs.Kind
			says string
		}{
			"value":      {&specs.LinuxResources{CPU: &specs.LinuxCPU{Period: to(uint64(1)), Quota: to(int64(1))}}, errs.Invalid, "cpu."},
			"pids":       {&specs.LinuxResources{Pids: &specs.LinuxPids{Limit: to(int64(1 << 40))}}, errs.Invalid, "pids.max"},
			"tiny":       {&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: to(int64(1000))}}, errs.Invalid, "memory.limit 1000"},
			"swap":       {&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: to(int64(8 << 20)), Swap: to(int64(4 << 20))}}, errs.Invalid, "memory.swap"},
			"cpuset":     {&specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "4000"}}, errs.Invalid, "cpuset.cpus"},
			"rdma":       {&specs.LinuxResources{Rdma: map[string]specs.LinuxRdma{"no such": {}}}, errs.Unsupported, "rdma"},
			"unified":    {&specs.LinuxResources{Unified: map[string]string{"nothing.max": "1"}}, errs.Unsupported, "nothing"},
			"traversal":  {&specs.LinuxResources{Unified: map[string]string{"cpu.max/../x": "1"}}, errs.Invalid, "unified"},
			"procs":      {&specs.LinuxResources{Unified: map[string]string{"cgroup.procs": "1"}}, errs.Invalid, "cgroup.procs"},
			"leafWeight": {&specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{LeafWeight: to(uint16(100))}}, errs.Unsupported, "leafWeight"},
			"devices":    {&specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: true, Type: "x"}}}, errs.Invalid, "devices[0]"},
		} {
			if name == "rdma" && h.unified.has("rdma") {
				tt.kind = errs.Invalid
			}
			_, err := h.Create(p+"/deep/er", tt.res)
			if !errors.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.says) {
				t.Errorf("%s: %v, want %v naming %s", name, err, tt.kind, tt.says)
			}
			if g, _ := h.group(p + "/deep"); len(g.Dirs()) > 0 {
				t.Errorf("%s left %v", name, g.Dirs())
			}
		}
	})
}

// Groups that are made and removed side by side, below one that is not there yet, have what was asked.
func TestConcurrentCreateRemove(t *testing.T) {
	on(t, func(t *testing.T, h *Host) {
		p := root(t, h)
		res := &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: to(uint64(512))}, Pids: &specs.LinuxPids{Limit: to(int64(77))}}
		turn := func(path string) error {
			g, err := h.Create(path, res)
			if err != nil {
				return err
			}
			if v, err := read(g.dir("pids"), "pids.max"); err != nil || v != "77" {
				return fmt.Errorf("%s: pids.max is %q (%v)", path, v, err)
			}
			return g.Remove(t.Context())
		}
		for pod := range 10 {
			done := make(chan error)
			for i := range 8 {
				go func() {
					for range 5 {
						if err := turn(fmt.Sprintf("%s/pod%d/c%d", p, pod, i)); err != nil {
							done <- err
							return
						}
					}
					done <- nil
				}()
			}
			for range 8 {
				if err := <-done; err != nil {
					t.Error(err)
				}
			}
		}
	})
}

func TestFreezeAndKill(t *testing.T) {
	on(t, func(t *testing.T, h *Host) {
		g, err := h.Create(root(t, h)+"/app", nil)
		if err != nil {
			t.Fatal(err)
		}
		// A group below, as a container with its own groups has.
		sub, err := h.Create(g.Path()+"/sub", nil)
		if err != nil {
			t.Fatal(err)
		}
		c := spawn(t, sub, "fork")
		c.line(t)
		usage := func() time.Duration {
			s, err := g.Stats()
			if err != nil {
				t.Fatal(err)
			}
			return s.CPU.Usage
		}
		until(t, "CPU is used", func() bool { return usage() > 0 })
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if err := g.Freeze(ctx); err != nil {
			t.Fatal(err)
		}
		if f, err := g.Frozen(); !f || err != nil {
			t.Errorf("Frozen = %v, %v", f, err)
		}
		before, _ := g.Procs()
		u := usage()
		time.Sleep(30 * time.Millisecond) // the time in which nothing may happen
		if after, _ := g.Procs(); !slices.Equal(before, after) || usage()-u > 5*time.Millisecond {
			t.Errorf("frozen, but: processes %v → %v, CPU %v → %v", before, after, u, usage())
		}
		if err := g.Thaw(ctx); err != nil {
			t.Fatal(err)
		}
		until(t, "CPU is used again", func() bool { return usage() > u+5*time.Millisecond })

		if err := g.Freeze(ctx); err != nil {
			t.Fatal(err)
		}
		if err := g.Kill(syscall.SIGKILL); err != nil { // frozen ones die too
			t.Fatal(err)
		}
		ws, err := c.Process.Wait()
		if err != nil || ws.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Errorf("child: %v, %v", ws, err)
		}
		until(t, "all are dead", g.Empty)
		if err := g.Remove(t.Context()); err != nil { // with sub
			t.Error(err)
		}
	})
}

func TestKillOtherSignals(t *testing.T) {
	on(t, func(t *testing.T, h *Host) {
		g, err := h.Create(root(t, h), nil)
		if err != nil {
			t.Fatal(err)
		}
		a, b := spawn(t, g, "wait"), spawn(t, g, "wait")
		a.line(t)
		b.line(t)
		if err := g.Kill(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		for _, c := range []*proc{a, b} {
			ws, err := c.Process.Wait()
			if err != nil || ws.Sys().(syscall.WaitStatus).Signal() != unix.SIGTERM {
				t.Errorf("child: %v, %v", ws, err)
			}
		}
		if f, err := g.Frozen(); f || err != nil {
			t.Errorf("left frozen: %v, %v", f, err)
		}
		gone, _ := h.group("/" + instance() + "/nowhere")
		if err := gone.Kill(syscall.SIGKILL); err != nil {
			t.Errorf("Kill of nothing: %v", err)
		}
	})
}

func TestOOM(t *testing.T) {
	on(t, func(t *testing.T, h *Host) {
		p := root(t, h)
		g, err := h.Create(p+"/app", &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: to(int64(32 << 20)), Swap: to(int64(32 << 20))}})
		if err != nil {
			t.Fatal(err)
		}
		if n, err := g.OOMKills(); n != 0 || err != nil {
			t.Errorf("OOMKills = %d, %v", n, err)
		}
		c := spawn(t, g, "hog 96")
		ws, err := c.Process.Wait()
		if err != nil || ws.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
			t.Fatalf("child: %v, %v", ws, err)
		}
		if n, err := g.OOMKills(); n != 1 || err != nil {
			t.Errorf("OOMKills = %d, %v", n, err)
		}
		pod, err := h.Load(p)
		if err != nil {
			t.Fatal(err)
		}
		if n, err := pod.OOMKills(); n != 1 || err != nil {
			t.Errorf("OOMKills of the parent = %d, %v", n, err)
		}
		s, err := g.Stats()
		if err != nil || s.Memory.LimitBytes != 32<<20 || h.layout.Mode != V2 && s.Memory.PeakBytes < 16<<20 {
			t.Errorf("Stats: %+v, %v", s.Memory, err)
		}
	})
}

// A pod's CPU set holds for its containers, for which no cpuset was made on v1.
func TestLimitAbove(t *testing.T) {
	on(t, func(t *testing.T, h *Host) {
		pod, err := h.Create(root(t, h)+"/pod", &specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "0", Mems: "0"}})
		if err != nil {
			t.Fatal(err)
		}
		app, err := h.Create(pod.Path()+"/app", nil)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // by Spawn, then by Add
			c := spawn(t, app, "wait")
			c.line(t)
			b, err := os.ReadFile("/proc/" + strconv.Itoa(c.Process.Pid) + "/status")
			if err != nil || !strings.Contains(string(b), "Cpus_allowed_list:\t0\n") {
				t.Errorf("the container is not held to the pod's CPU (%v)", err)
			}
			if err := app.Add(c.Process.Pid); err != nil {
				t.Error(err)
			}
		}
	})
}

// A container that has groups of its own (systemd in it, say) is entered all the same.
func TestSpawnBesideChildren(t *testing.T) {
	on(t, func(t *testing.T, h *Host) {
		if h.layout.Mode != V2 {
			return // only cgroup2 keeps processes out of a group with controllers below
		}
		g, err := h.Create(root(t, h)+"/app", nil)
		if err != nil {
			t.Fatal(err)
		}
		sub, err := h.Create(g.Path()+"/init", &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: to(int64(100))}})
		if err != nil {
			t.Fatal(err)
		}
		if err := g.Add(1 << 22); err == nil {
			t.Error("Add of no process")
		}
		if pid, err := g.Spawn(func(fd int) (int, error) {
			c := exec.Command("/bin/true")
			c.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: fd}
			return 0, c.Start()
		}); !errors.Is(err, unix.EBUSY) {
			t.Errorf("Spawn with nobody to join: %d, %v", pid, err)
		}
		spawn(t, sub, "wait").line(t)
		c := spawn(t, g, "wait")
		c.line(t)
		if pids, err := sub.Procs(); err != nil || !slices.Contains(pids, c.Process.Pid) {
			t.Errorf("after Spawn: %v, %v", pids, err)
		}
		if err := g.Add(c.Process.Pid); err != nil {
			t.Errorf("Add: %v", err)
		}
	})
}

func TestDetect(t *testing.T) {
	for _, tt := range []struct {
		name, mounts string
		mode         Mode
		controllers  []string // of v1
		unified      string
	}{
		{"v2", "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate", V2, nil, "/sys/fs/cgroup"},
		{"hybrid", "30 23 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs ro\n31 30 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n" +
			"32 30 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n33 30 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n" +
			"34 30 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory", Hybrid, []string{"cpu", "cpuacct", "memory", "name=systemd"}, "/sys/fs/cgroup/unified"},
		{"v1 in a container", "33 30 0:29 /docker/abc /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n34 30 0:29 / /mnt/cpu rw - cgroup cgroup rw,cpu\n" +
			"35 30 0:29 / /sys/fs/cgroup/twice rw - cgroup cgroup rw,cpu", V1, []string{"cpu"}, ""},
	} {
		all, err := mount.Parse(strings.NewReader(tt.mounts + "\n"))
		if err != nil {
			t.Fatal(err)
		}
		h, err := detect(all, "/sys/fs/cgroup")
		if err != nil {
			t.Fatal(err)
		}
		var c []string
		for _, v := range h.v1 {
			c = append(c, v.controllers...)
		}
		slices.Sort(c)
		if h.mode() != tt.mode || !slices.Equal(c, tt.controllers) || h.unified.mount != tt.unified {
			t.Errorf("%s: %s %v %s", tt.name, h.mode(), c, h.unified.mount)
		}
	}
	if _, err := detect(nil, "/sys/fs/cgroup"); !errors.Is(err, errs.FailedPrecondition) {
		t.Errorf("no mounts: %v", err)
	}
	for _, tt := range []struct {
		want   Driver
		mode   Mode
		booted bool
		got    Driver
		kind   *errs.Kind
	}{
		{"", V2, true, Systemd, nil}, {Auto, V2, false, Cgroupfs, nil}, {"", Hybrid, true, Cgroupfs, nil}, {Cgroupfs, V2, true, Cgroupfs, nil},
		{Systemd, V1, true, "", errs.Unsupported}, {Systemd, V2, false, "", errs.Unsupported}, {"other", V2, true, "", errs.Invalid},
	} {
		got, err := chooseDriver(tt.want, tt.mode, tt.booted)
		if got != tt.got || errs.KindOf(err) != tt.kind {
			t.Errorf("chooseDriver(%q, %s, %v) = %s, %v", tt.want, tt.mode, tt.booted, got, err)
		}
	}
}

// Below a group that hands on less than it has, a limit is refused by its name and the
// rest works.
func TestDelegatedSubtree(t *testing.T) {
	on(t, func(t *testing.T, h *Host) {
		if h.layout.Mode != V2 {
			return // v1 hands on nothing
		}
		top := root(t, h)
		if _, err := h.Create(top+"/given", nil); err != nil {
			t.Fatal(err)
		}
		g, err := h.group(top)
		if err != nil {
			t.Fatal(err)
		}
		if err := write(g.unifiedDir(), "cgroup.subtree_control", "-io -cpu"); err != nil {
			t.Fatal(err)
		}
		inner := &Host{layout: h.layout, unified: h.unified}
		inner.unified.mount, inner.unified.root = g.unifiedDir()+"/given", g.rel+"/given" // as in a cgroup namespace
		if _, err := inner.Create("/pod/app", &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: to(int64(9))}}); err != nil {
			t.Error(err)
		}
		_, err = inner.Create("/pod/other", &specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: to(uint64(100))}})
		if !errors.Is(err, errs.Unsupported) || !strings.Contains(err.Error(), "cpu.weight") {
			t.Errorf("a controller that was not given: %v", err)
		}
	})
}

// TestConventional: what is found without the mount table is what the table says, and
// nothing where a hierarchy is not shown whole or not where it is expected.
func TestConventional(t *testing.T) {
	const root = "/sys/fs/cgroup"
	all, err := mount.List()
	if err != nil {
		t.Fatal(err)
	}
	want, err := detect(all, root)
	if err != nil {
		t.Fatal(err)
	}
	got := conventional(root)
	if got == nil || !reflect.DeepEqual(got.unified, want.unified) || !reflect.DeepEqual(got.v1, want.v1) {
		t.Errorf("found %+v, the mount table has %+v", got, want)
	}
	if h := conventional(t.TempDir()); h != nil {
		t.Errorf("in an empty directory: %+v", h)
	}
	tree := want.unified.mount
	if tree == "" {
		tree = want.v1[0].mount
	}
	group := filepath.Join(tree, fmt.Sprintf("orlop-conventional-%d", os.Getpid()))
	if err := os.Mkdir(group, 0o755); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(group)
	if isWhole(group, unix.CGROUP2_SUPER_MAGIC) || isWhole(group, unix.CGROUP_SUPER_MAGIC) {
		t.Error("a group below the root passes for a hierarchy")
	}
}
