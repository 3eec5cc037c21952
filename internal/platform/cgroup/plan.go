package cgroup

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// plan is what resources come to on this host: values for files, in the order in which
// they have to be written. It is made before anything is touched, so that what the host
// cannot do is refused with nothing done.
type plan struct {
	steps   []step
	devices *deviceRules // nil: leave as they are
	props   []prop       // the same for systemd, where that is the driver
}

// step sets one file. Where the value depends on what the group has now, do does it.
type step struct {
	controller string
	unified    bool // in cgroup2, not in the controller's v1 hierarchy
	file       string
	value      string
	do         func(dir string) error
}

func (s step) run(dir string) error {
	if s.do != nil {
		return s.do(dir)
	}
	return write(dir, s.file, s.value)
}

func (p *plan) needs(controller string, unified bool) bool {
	return slices.ContainsFunc(p.steps, func(s step) bool { return s.controller == controller && s.unified == unified })
}

// planner collects steps of one controller on the side where that controller is.
type planner struct {
	plan       *plan
	controller string
	v2         bool
}

func (p planner) set(file, value string) {
	p.plan.steps = append(p.plan.steps, step{controller: p.controller, unified: p.v2, file: file, value: value})
}

func (p planner) do(f func(dir string) error) {
	p.plan.steps = append(p.plan.steps, step{controller: p.controller, unified: p.v2, do: f})
}

func (h *Host) plan(res *specs.LinuxResources) (*plan, error) {
	p := &plan{}
	if res == nil {
		return p, nil
	}
	// each runs with the controller's side settled. v1 and v2 names differ only for blkio.
	for _, c := range []struct {
		v1, v2 string
		wanted bool
		what   string
		plan   func(planner) error
	}{
		{"cpu", "cpu", res.CPU != nil && wantsCPU(res.CPU), "cpu", func(p planner) error { return planCPU(p, res.CPU) }},
		{"cpuset", "cpuset", res.CPU != nil && res.CPU.Cpus+res.CPU.Mems != "", "cpu.cpus and cpu.mems", func(p planner) error { return planCPUSet(p, res.CPU) }},
		{"memory", "memory", res.Memory != nil && wantsMemory(res.Memory), "memory", func(p planner) error { return planMemory(p, res.Memory) }},
		{"pids", "pids", res.Pids != nil && res.Pids.Limit != nil, "pids.limit", func(p planner) error { return planPIDs(p, res.Pids) }},
		{"blkio", "io", res.BlockIO != nil && wantsBlockIO(res.BlockIO), "blockIO", func(p planner) error { return planBlockIO(p, res.BlockIO) }},
		{"hugetlb", "hugetlb", len(res.HugepageLimits) > 0, "hugepageLimits", func(p planner) error { return planHugeTLB(p, res.HugepageLimits) }},
		{"rdma", "rdma", len(res.Rdma) > 0, "rdma", func(p planner) error { return planRDMA(p, res.Rdma) }},
		{"net_cls", "", res.Network != nil && res.Network.ClassID != nil, "network.classID", func(p planner) error { return planNetClass(p, res.Network) }},
		{"net_prio", "", res.Network != nil && len(res.Network.Priorities) > 0, "network.priorities", func(p planner) error { return planNetPriority(p, res.Network) }},
	} {
		if !c.wanted {
			continue
		}
		pl := planner{plan: p, controller: c.v1}
		if _, ok := h.hierarchyOf(c.v1); !ok {
			if c.v2 == "" || !h.unified.has(c.v2) {
				return nil, errs.New(errs.Unsupported, "%s: this host's control groups (%s) have no %s controller; leave it out, or enable it in the kernel", c.what, h.layout.Mode, c.v1)
			}
			pl.controller, pl.v2 = c.v2, true
		}
		if err := c.plan(pl); err != nil {
			return nil, err
		}
	}
	if err := h.planUnified(p, res.Unified); err != nil {
		return nil, err
	}
	if h.systemd != nil {
		if err := planProperties(p, res); err != nil {
			return nil, err
		}
	}
	if res.Devices != nil {
		d, err := normalize(res.Devices)
		if err != nil {
			return nil, err
		}
		p.devices = d
		if !h.deviceByBPF(d) {
			if _, ok := h.hierarchyOf("devices"); !ok {
				return nil, errs.New(errs.Unsupported, "devices: this host can neither attach a device program (%v) nor has it a v1 devices controller", h.bpfRefused(d))
			}
			if d.v1Error != nil {
				return nil, d.v1Error
			}
		}
	}
	return p, nil
}

// planUnified takes files of cgroup2 by their names. They come last: they are the more
// exact wish.
func (h *Host) planUnified(p *plan, files map[string]string) error {
	for _, file := range slices.Sorted(maps.Keys(files)) {
		controller, _, ok := strings.Cut(file, ".")
		if !ok || strings.ContainsAny(file, "/\x00") {
			return errs.New(errs.Invalid, "unified: %q is not the name of a cgroup2 file", file)
		}
		if controller == "cgroup" && file != "cgroup.max.depth" && file != "cgroup.max.descendants" && file != "cgroup.pressure" {
			return errs.New(errs.Invalid, "unified: %s is not a limit and cannot be set", file)
		}
		if controller == "cgroup" && h.unified.mount == "" || controller != "cgroup" && !h.unified.has(controller) {
			return errs.New(errs.Unsupported, "unified: %s: this host's control groups (%s) have no %s controller in cgroup2", file, h.layout.Mode, controller)
		}
		for line := range strings.SplitSeq(strings.TrimRight(files[file], "\n"), "\n") {
			p.steps = append(p.steps, step{controller: controller, unified: true, file: file, value: line})
		}
	}
	return nil
}

func planPIDs(p planner, r *specs.LinuxPids) error {
	v := "max"
	if *r.Limit >= 0 { // 0 is 1, as systemd has no 0 and runc does the same; neither lets a process fork
		v = strconv.FormatInt(max(*r.Limit, 1), 10)
	}
	p.set("pids.max", v)
	return nil
}

// planHugeTLB limits use, and where the kernel can (5.7), reservations, without which a
// process is killed by SIGBUS at the first touch instead of being refused its mapping.
func planHugeTLB(p planner, limits []specs.LinuxHugepageLimit) error {
	for _, l := range limits {
		size, err := hugepageName(l.Pagesize)
		if err != nil {
			return err
		}
		if sizes := hugepageSizes(); len(sizes) > 0 && !slices.Contains(sizes, size) {
			return errs.New(errs.Unsupported, "hugepageLimits: page size %s: this host has %s", l.Pagesize, strings.Join(sizes, ", "))
		}
		use, reserve := ".limit_in_bytes", ".rsvd.limit_in_bytes"
		if p.v2 {
			use, reserve = ".max", ".rsvd.max"
		}
		name, value := "hugetlb."+size, strconv.FormatUint(l.Limit, 10)
		p.set(name+use, value)
		p.do(func(dir string) error {
			if !exists(dir, name+reserve) {
				return nil
			}
			return write(dir, name+reserve, value)
		})
	}
	return nil
}

// hugepageName turns a page size as people write it ("2MB", "2Mi", "1GB", "64KB") into
// the kernel's name for it.
func hugepageName(s string) (string, error) {
	digits := strings.TrimRight(s, "KMGiB")
	unit := s[len(digits):]
	n, err := strconv.ParseUint(digits, 10, 32)
	shift, ok := map[string]uint{"KB": 10, "MB": 20, "GB": 30, "Ki": 10, "Mi": 20, "Gi": 30, "KiB": 10, "MiB": 20, "GiB": 30}[unit]
	if err != nil || !ok || n == 0 {
		return "", errs.New(errs.Invalid, "hugepageLimits: page size %q: write it like 2MB or 1GB", s)
	}
	switch b := n << shift; {
	case b%(1<<30) == 0:
		return fmt.Sprintf("%dGB", b>>30), nil
	case b%(1<<20) == 0:
		return fmt.Sprintf("%dMB", b>>20), nil
	default:
		return fmt.Sprintf("%dKB", b>>10), nil
	}
}

func planRDMA(p planner, limits map[string]specs.LinuxRdma) error {
	for _, dev := range slices.Sorted(maps.Keys(limits)) {
		if dev == "" || strings.ContainsAny(dev, " \n\x00") {
			return errs.New(errs.Invalid, "rdma: %q is not the name of a device", dev)
		}
		v := dev
		if n := limits[dev].HcaHandles; n != nil {
			v += " hca_handle=" + strconv.FormatUint(uint64(*n), 10)
		}
		if n := limits[dev].HcaObjects; n != nil {
			v += " hca_object=" + strconv.FormatUint(uint64(*n), 10)
		}
		if v != dev {
			p.set("rdma.max", v)
		}
	}
	return nil
}

func planNetClass(p planner, r *specs.LinuxNetwork) error {
	p.set("net_cls.classid", strconv.FormatUint(uint64(*r.ClassID), 10))
	return nil
}

func planNetPriority(p planner, r *specs.LinuxNetwork) error {
	for _, i := range r.Priorities {
		if i.Name == "" || strings.ContainsAny(i.Name, " \n\x00") {
			return errs.New(errs.Invalid, "network.priorities: %q is not the name of an interface", i.Name)
		}
		p.set("net_prio.ifpriomap", i.Name+" "+strconv.FormatUint(uint64(i.Priority), 10))
	}
	return nil
}

// apply sets the plan's values in the files of the group.
func (g *Group) apply(p *plan) error {
	for _, s := range p.steps {
		dir := g.unifiedDir()
		if !s.unified {
			dir = g.dir(s.controller)
		}
		if err := s.run(dir); err != nil {
			return err
		}
	}
	if p.devices != nil && devicesGuard.On() {
		return g.setDevices(p.devices)
	}
	return nil
}
