package cgroup

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/orlop-io/orlop/internal/base/errs"
)

func TestTranslate(t *testing.T) {
	for _, tt := range []struct{ path, want, slice string }{
		{"/orlop", "/orlop.slice", "orlop.slice"},
		{"/orlop/pod1", "/orlop.slice/orlop-pod1.slice", "orlop-pod1.slice"},
		{"/orlop/pod1/app", "/orlop.slice/orlop-pod1.slice/orlop-pod1-app.scope", "orlop-pod1.slice"},
		{"/orlop/pod1/app/a/b.scope", "/orlop.slice/orlop-pod1.slice/orlop-pod1-app.scope/a/b.scope", "orlop-pod1.slice"},
		{"/a-b/pod1-2", `/a\x2db.slice/a\x2db-pod1\x2d2.slice`, `a\x2db-pod1\x2d2.slice`},
		{"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podX.slice/c-1",
			`/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podX.slice/kubepods-burstable-podX-c\x2d1.scope`, "kubepods-burstable-podX.slice"},
		{"/kubepods-burstable-podX.slice/c", "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podX.slice/kubepods-burstable-podX-c.scope", "kubepods-burstable-podX.slice"},
		{"/system.slice/mine.scope", "/system.slice/mine.scope", "system.slice"},
		{"/orlop/pod1/c\\x", `/orlop.slice/orlop-pod1.slice/orlop-pod1-c\x5cx.scope`, "orlop-pod1.slice"},
		{"/-.slice", "", ""},
		{"/a--b.slice", "", ""},
		{"/a.slice/b.slice", "", ""},
		{"/x.scope", "", ""},
		{"/orlop/pod1/" + strings.Repeat("c", 250), "", ""},
	} {
		u, err := translate(tt.path)
		if tt.want == "" {
			if !errors.Is(err, errs.Invalid) {
				t.Errorf("%s: %+v, %v", tt.path, u, err)
			}
			continue
		}
		if err != nil || u.path != tt.want || u.slice != tt.slice {
			t.Errorf("%s: %+v, %v; want %s", tt.path, u, err, tt.want)
		}
	}
}

// What is listed below a group is found below it.
func TestUnitChildren(t *testing.T) {
	for _, tt := range []struct{ path, dir, want string }{
		{"/orlop", "orlop-pod1.slice", "pod1"},
		{"/orlop", `orlop-pod82dc\x2dbbf1.slice`, "pod82dc-bbf1"},
		{"/a-b", `a\x2db-pod1.slice`, "pod1"},
		{"/orlop/pod-1", `orlop-pod\x2d1-app\x5cx.scope`, `app\x`},
		{"/orlop", "other.slice", "other.slice"},
		{"/orlop", "orlop-pod1-more.slice", "orlop-pod1-more.slice"},
		{"/orlop", "mine.scope", "mine.scope"},
		{"/orlop/pod1", "orlop-pod1-x.slice", "orlop-pod1-x.slice"},
		{"/kubepods.slice", "kubepods-burstable.slice", "kubepods-burstable.slice"},
		{"/orlop/pod1/app", "sub", "sub"},
	} {
		u, err := translate(tt.path)
		if err != nil {
			t.Fatal(err)
		}
		got := u.child(tt.path, tt.dir)
		if got != tt.want {
			t.Errorf("%s below %s is %s, want %s", tt.dir, tt.path, got, tt.want)
		}
		if c, err := translate(tt.path + "/" + got); err == nil && got != tt.dir && c.path != u.path+"/"+tt.dir {
			t.Errorf("%s below %s leads to %s", got, tt.path, c.path)
		}
	}
	for _, s := range []string{"", "a", "a-b", `a\x`, ".a", "ü", `\`, `\x2d`} {
		if got := unescape(escape(s)); got != s {
			t.Errorf("%q came back as %q", s, got)
		}
	}
}

func TestBitmask(t *testing.T) {
	for in, want := range map[string][]byte{"0": {1}, "0-3,8": {15, 1}, "7, 9": {128, 2}} {
		if got, err := bitmask(in); !slices.Equal(got, want) || err != nil {
			t.Errorf("%q: %v, %v", in, got, err)
		}
	}
	for _, in := range []string{"", "x", "3-1", "1-", "-1", "0-70000"} {
		if got, err := bitmask(in); !errors.Is(err, errs.Invalid) {
			t.Errorf("%q: %v, %v", in, got, err)
		}
	}
}

// TestSystemd needs systemd as process 1 and cgroup v2: test/vm boots a machine that
// has them, runs it there and does not let it be skipped.
func TestSystemd(t *testing.T) {
	h, err := Open(Options{Driver: Systemd})
	if err != nil {
		if os.Getenv("ORLOP_TEST_SYSTEMD") != "" {
			t.Fatal(err)
		}
		t.Skip("run by test/vm (TestHosts/systemd/cgroup): ", err)
	}
	if auto, err := Open(Options{}); err != nil || auto.layout.Driver != Systemd {
		t.Errorf("by itself: %+v, %v", auto, err)
	}
	unitProperty := func(unit, property string) string {
		out, err := exec.Command("systemctl", "show", "-P", property, unit).CombinedOutput()
		if err != nil {
			t.Errorf("systemctl show %s: %v %s", unit, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	file := func(g *Group, name string) string {
		s, err := read(g.unifiedDir(), name)
		if err != nil {
			t.Error(err)
		}
		return s
	}
	top := strings.TrimPrefix(instance(), "orlop-")
	pod, err := h.Create("/"+top+"/pod-1", &specs.LinuxResources{
		CPU: &specs.LinuxCPU{Shares: to(uint64(2048)), Quota: to(int64(150000)), Period: to(uint64(100000))}, Memory: &specs.LinuxMemory{Limit: to(int64(256 << 20))}})
	if err != nil {
		t.Fatal(err)
	}
	slice := escape(top) + `-pod\x2d1.slice`
	if got := unitProperty(slice, "ActiveState") + " " + unitProperty(slice, "MemoryMax") + " " + unitProperty(slice, "CPUWeight"); got != "active 268435456 174" {
		t.Errorf("the slice is %s", got)
	}
	if file(pod, "memory.max") != "268435456" || file(pod, "cpu.weight") != "174" || file(pod, "cpu.max") != "150000 100000" {
		t.Errorf("the slice's files: %s, %s, %s", file(pod, "memory.max"), file(pod, "cpu.weight"), file(pod, "cpu.max"))
	}
	if _, err := h.Create(pod.Path(), nil); err != nil {
		t.Errorf("Create of a slice again: %v", err)
	}

	app, err := h.Create(pod.Path()+"/app", &specs.LinuxResources{
		Memory: &specs.LinuxMemory{Limit: to(int64(64 << 20)), Swap: to(int64(64 << 20))}, Pids: &specs.LinuxPids{Limit: to(int64(40))},
		CPU: &specs.LinuxCPU{Cpus: "0", Mems: "0", Burst: to(uint64(1000)), Quota: to(int64(50000))}, Devices: usual,
		HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 4 << 20}}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.Load(app.Path()); !errors.Is(err, errs.NotFound) {
		t.Errorf("Load: %v", err)
	}
	c := spawn(t, app, "open")
	scope := app.unit.name
	if got := unitProperty(scope, "ActiveState") + " " + unitProperty(scope, "Delegate") + " " + unitProperty(scope, "TasksMax") + " " + unitProperty(scope, "Slice"); got != "active yes 40 "+slice {
		t.Errorf("the scope is %s", got)
	}
	if file(app, "memory.max") != "67108864" || file(app, "pids.max") != "40" || file(app, "cpuset.cpus") != "0" || file(app, "cpu.max.burst") != "1000" {
		t.Error("the scope's files are not as wanted")
	}
	if pids, err := app.Procs(); err != nil || !slices.Equal(pids, []int{c.Process.Pid}) {
		t.Errorf("Procs: %v, %v", pids, err)
	}
	c.in.WriteString("/dev/null\n/dev/kmsg\n")
	if a, b := c.line(t), c.line(t); a != "<nil>" || b != "operation not permitted" {
		t.Errorf("devices: %s, %s", a, b)
	}
	for p, want := range map[string]string{"/" + top: "pod-1", pod.Path(): "app"} {
		if kids, err := h.Children(p); err != nil || !slices.Equal(kids, []string{want}) {
			t.Errorf("below %s: %v, %v", p, kids, err)
		}
	}
	second := spawn(t, app, "wait") // as exec does: now by CLONE_INTO_CGROUP
	second.line(t)
	// What systemd writes anew when it is reloaded is what it was told.
	if err := app.Update(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: to(int64(80 << 20))}}); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("systemctl", "daemon-reload").CombinedOutput(); err != nil {
		t.Errorf("daemon-reload: %v %s", err, out)
	}
	// Some controllers systemd knows nothing of, and it must not take them away.
	checkControllers(t, h, app)
	checkControllers(t, h, pod)
	if file(app, "cpuset.cpus") != "0" || file(app, "cpuset.mems") != "0" || file(app, "hugetlb.2MB.max") != "4194304" {
		t.Errorf("after daemon-reload: %s, %s, %s", file(app, "cpuset.cpus"), file(app, "cpuset.mems"), file(app, "hugetlb.2MB.max"))
	}
	if file(app, "memory.max") != "83886080" || file(pod, "cpu.max") != "150000 100000" || file(app, "cpu.max.burst") != "1000" {
		t.Errorf("after daemon-reload: %s, %s, %s", file(app, "memory.max"), file(pod, "cpu.max"), file(app, "cpu.max.burst"))
	}
	c.in.WriteString("/dev/kmsg\n")
	if a := c.line(t); a != "operation not permitted" {
		t.Errorf("devices after daemon-reload: %s", a)
	}
	// A scope that ends while a process is on its way to it begins anew.
	ending, err := h.Create(pod.Path()+"/ending", &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: to(int64(10))}})
	if err != nil {
		t.Fatal(err)
	}
	first := spawn(t, ending, "wait")
	first.line(t)
	if ending, err = h.Create(ending.Path(), &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: to(int64(10))}}); err != nil {
		t.Fatal(err)
	}
	again, err := spawnAfter(t, ending, "wait", func() {
		first.Process.Kill()
		first.Wait()
		until(t, "the scope has ended", func() bool { return !isDir(ending.unifiedDir()) })
	})
	if err != nil {
		t.Fatalf("spawn in a scope that ends: %v", err)
	}
	again.line(t)
	if got := unitProperty(ending.unit.name, "ActiveState") + " " + file(ending, "pids.max"); got != "active 10" {
		t.Errorf("the scope that began anew is %s", got)
	}
	// Below a group with processes there are no limits; the refusal leaves nothing.
	if _, err := h.Create(app.Path()+"/sub", nil); !errors.Is(err, errs.FailedPrecondition) {
		t.Errorf("a group below processes: %v", err)
	}
	if sub, _ := subdirs(app.unifiedDir()); len(sub) > 0 {
		t.Errorf("left: %v", sub)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := pod.Remove(ctx); !errors.Is(err, errs.InUse) || app.Empty() {
		t.Errorf("Remove with processes: %v", err)
	}
	for _, g := range []*Group{app, ending} {
		if err := g.Kill(syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	for _, g := range []*Group{app, app, ending, pod, pod} {
		if err := g.Remove(t.Context()); err != nil {
			t.Error(err)
		}
		if len(g.Dirs()) > 0 {
			t.Errorf("left: %v", g.Dirs())
		}
	}
	// A refused value leaves neither unit.
	if _, err := h.Create("/"+top+"/pod2", &specs.LinuxResources{Unified: map[string]string{"memory.max": "nonsense"}}); !errors.Is(err, errs.Invalid) {
		t.Errorf("a refused value: %v", err)
	}
	if s := unitProperty(escape(top)+"-pod2.slice", "ActiveState"); s != "inactive" {
		t.Errorf("the refused slice is %s", s)
	}
	topGroup, err := h.group("/" + top)
	if err != nil {
		t.Fatal(err)
	}
	if err := topGroup.Remove(t.Context()); err != nil || len(topGroup.Dirs()) > 0 {
		t.Errorf("left: %v, %v", topGroup.Dirs(), err)
	}
}
