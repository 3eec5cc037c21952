package cgroup

import (
	"errors"
	"maps"
	"os"
	"strconv"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/orlop-io/orlop/internal/base/errs"
)

func TestOwn(t *testing.T) {
	h := &Host{
		unified: hierarchy{mount: "/c/unified", root: "/"},
		v1: []hierarchy{
			{mount: "/c/cpu", root: "/", controllers: []string{"cpu", "cpuacct"}},
			{mount: "/c/memory", root: "/docker/x", controllers: []string{"memory"}}, // a container's, without a cgroup namespace
			{mount: "/c/systemd", root: "/", controllers: []string{"name=systemd"}},
		},
	}
	for _, tt := range []struct {
		list string
		want Place // nil is an error
	}{
		{"0::/\n", Place{}},
		{"0::/a\n4:memory:/docker/x\n2:cpu,cpuacct:/b/c\n1:name=systemd:/s:t\n", Place{"": "/a", "cpu,cpuacct": "/b/c", "name=systemd": "/s:t"}},
		{"4:memory:/docker/x/y\n9:pids:/not/mounted\nnonsense\n", Place{"memory": "/y"}},
		{"4:memory:/docker/xy\n", nil},
		{"4:memory:/\n", nil},
		{"0::/../other\n", nil}, // outside of the cgroup namespace
		{"0::/..other\n", Place{"": "/..other"}},
	} {
		got, err := h.own(tt.list)
		if tt.want == nil {
			if !errors.Is(err, errs.FailedPrecondition) {
				t.Errorf("%q: %v, %v", tt.list, got, err)
			}
		} else if err != nil || !maps.Equal(got, tt.want) {
			t.Errorf("%q: %v, %v, want %v", tt.list, got, err, tt.want)
		}
	}
	if _, err := h.Below(Place{"pids": "/a"}); !errors.Is(err, errs.FailedPrecondition) {
		t.Errorf("a hierarchy that is not there: %v", err)
	}
	if _, err := h.Below(Place{"": "/a/../.."}); !errors.Is(err, errs.Invalid) {
		t.Errorf("a place above: %v", err)
	}
}

// Groups below different places of the hierarchies: made, joined, found and removed there, and
// nowhere else.
func TestBelow(t *testing.T) {
	on(t, func(t *testing.T, h *Host) {
		if h.layout.Mode == V2 {
			return // one hierarchy
		}
		top := root(t, h)
		memory, err := h.Create(top+"/limited", nil)
		if err != nil {
			t.Fatal(err)
		}
		b, err := h.Below(Place{"memory": top + "/limited", "pids": top})
		if err != nil {
			t.Fatal(err)
		}
		name := "/" + instance() + "-below"
		g, err := b.Create(name, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: to(int64(32 << 20))}})
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if err := g.Remove(t.Context()); err != nil {
				t.Error(err)
			}
			if dirs := g.Dirs(); len(dirs) > 0 {
				t.Errorf("left: %v", dirs)
			}
		}()
		pids, _ := h.hierarchyOf("pids")
		cpu, _ := h.hierarchyOf("cpu")
		for controller, want := range map[string]string{"memory": memory.Dirs()["memory"] + name, "pids": pids.mount + top + name, "cpu": cpu.mount + name} {
			if got := g.Dirs()[controller]; got != want {
				t.Errorf("%s is at %q, want %q", controller, got, want)
			}
		}
		p := spawn(t, g, "wait")
		list, err := os.ReadFile("/proc/" + strconv.Itoa(p.Process.Pid) + "/cgroup")
		if err != nil || !strings.Contains(string(list), "memory:"+top+"/limited"+name+"\n") {
			t.Errorf("%v: %s", err, list)
		}
		p.Process.Kill()
		p.Wait()
	})
}
