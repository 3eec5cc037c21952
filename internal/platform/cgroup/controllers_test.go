package cgroup

import (
	"errors"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// Every controller that a host with cgroup v2 has is in every group, whoever asked for it.
func TestControllers(t *testing.T) {
	on(t, func(t *testing.T, h *Host) {
		if h.layout.Mode != V2 {
			return // each has a hierarchy of its own, or none
		}
		p := root(t, h)
		g, err := h.Create(p+"/nothing/asked", nil)
		if err != nil {
			t.Fatal(err)
		}
		checkControllers(t, h, g)

		// A group that is removed while it is updated is not made again.
		for _, gone := range []string{p + "/gone", p + "/gone/app"} {
			err := delegate(h.unified.mount, gone, h.unified.controllers, nil)
			if isDir(h.unified.mount+p+"/gone") || strings.HasSuffix(gone, "/app") && !errors.Is(err, errs.NotFound) {
				t.Errorf("controllers for %s, which is not there: %v", gone, err)
			}
		}

		// One that the host has not is refused by name before anything is made.
		less := &Host{layout: h.layout, unified: h.unified}
		less.unified.controllers = []string{"cpu", "memory", "pids", "io"}
		for what, res := range map[string]*specs.LinuxResources{
			"cpuset":  {CPU: &specs.LinuxCPU{Mems: "0"}},
			"hugetlb": {HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB"}}},
			"rdma":    {Rdma: map[string]specs.LinuxRdma{"mlx5_1": {HcaHandles: to(uint32(1))}}},
			"misc":    {Unified: map[string]string{"misc.max": "sev 1"}},
		} {
			if _, err := less.Create(p+"/refused", res); !errors.Is(err, errs.Unsupported) || !strings.Contains(err.Error(), "no "+what+" controller") {
				t.Errorf("without %s: %v", what, err)
			}
			if isDir(h.unified.mount + p + "/refused") {
				t.Fatalf("%s was refused when the group was there already", what)
			}
		}
	})
}

func checkControllers(t *testing.T, h *Host, g *Group) {
	t.Helper()
	has, err := read(g.unifiedDir(), "cgroup.controllers")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range h.unified.controllers {
		if !slices.Contains(strings.Fields(has), c) {
			t.Errorf("the group has %q, not %s", has, c)
		}
	}
	for _, c := range []string{"cpuset", "hugetlb", "rdma", "misc"} { // the test machine's kernel has them
		if !h.unified.has(c) {
			t.Errorf("this host has no %s controller: the test shows less than it should", c)
		}
	}
}

// A set of CPUs is within that of the group above, as the kernel has it: what both have; and all that is above where
// they have nothing in common, or nothing is asked.
func TestCPUSetAbove(t *testing.T) {
	on(t, func(t *testing.T, h *Host) {
		if h.layout.Mode != V2 {
			return // TestResources: v1 refuses what is not above
		}
		p := root(t, h)
		if _, err := h.Create(p, &specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "0", Mems: "0"}}); err != nil {
			t.Fatal(err)
		}
		for cpus, name := range map[string]string{"": "none", "0-1": "more", "1": "other"} {
			g, err := h.Create(p+"/"+name, &specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: cpus}})
			if err != nil {
				t.Fatal(err)
			}
			asked, _ := read(g.unifiedDir(), "cpuset.cpus")
			effective, err := read(g.unifiedDir(), "cpuset.cpus.effective")
			if asked != cpus || effective != "0" || err != nil {
				t.Errorf("asked for %q below 0: it is %q, of which %q count (%v)", cpus, asked, effective, err)
			}
			spawn(t, g, "wait").line(t)
		}
		// It moves with the group above.
		above, err := h.Load(p)
		if err == nil {
			err = above.Update(&specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "1"}})
		}
		if err != nil {
			t.Fatal(err)
		}
		if got, _ := read(h.unified.mount+p+"/more", "cpuset.cpus.effective"); got != "1" {
			t.Errorf("after the group above has moved to 1 there count %q", got)
		}
	})
}
