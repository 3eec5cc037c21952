package nri

import (
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// editor makes the single changes to a specification of which the library composes an
// adjustment (generate.UnderlyingGenerator).
type editor struct{ s *specs.Spec }

// newEditor makes what changes may be made in; the rest is made by those who change it.
func newEditor(s *specs.Spec) editor {
	if s.Process == nil {
		s.Process = &specs.Process{}
	}
	if s.Linux == nil {
		s.Linux = &specs.Linux{}
	}
	if s.Linux.Resources == nil {
		s.Linux.Resources = &specs.LinuxResources{}
	}
	return editor{s}
}

func (e editor) Spec() *specs.Spec { return e.s }

func (e editor) AddAnnotation(key, value string) { put(&e.s.Annotations, key, value) }

func (e editor) RemoveAnnotation(key string) { drop(&e.s.Annotations, key) }

func (e editor) AddLinuxSysctl(key, value string) { put(&e.s.Linux.Sysctl, key, value) }
func (e editor) RemoveLinuxSysctl(key string)     { drop(&e.s.Linux.Sysctl, key) }

func (e editor) AddLinuxResourcesUnified(key, value string) {
	put(&e.s.Linux.Resources.Unified, key, value)
}

// put changes a copy: what a specification refers to is others' too.
func put(m *map[string]string, key, value string) {
	c := make(map[string]string, len(*m)+1)
	for k, v := range *m {
		c[k] = v
	}
	c[key] = value
	*m = c
}

func drop(m *map[string]string, key string) {
	c := make(map[string]string, len(*m))
	for k, v := range *m {
		if k != key {
			c[k] = v
		}
	}
	*m = c
}

func (e editor) AddProcessEnv(name, value string) {
	e.s.Process.Env = slices.DeleteFunc(slices.Clone(e.s.Process.Env), func(v string) bool { return strings.HasPrefix(v, name+"=") })
	e.s.Process.Env = append(e.s.Process.Env, name+"="+value)
}
func (e editor) ClearProcessEnv()              { e.s.Process.Env = nil }
func (e editor) SetProcessArgs(args []string)  { e.s.Process.Args = args }
func (e editor) SetProcessOOMScoreAdj(adj int) { e.s.Process.OOMScoreAdj = &adj }

func (e editor) hooks() *specs.Hooks {
	if e.s.Hooks == nil {
		e.s.Hooks = &specs.Hooks{}
	}
	return e.s.Hooks
}

//lint:ignore SA1019 plugins still ask for it
func (e editor) AddPreStartHook(h specs.Hook)  { e.hooks().Prestart = append(e.hooks().Prestart, h) }
func (e editor) AddPostStartHook(h specs.Hook) { e.hooks().Poststart = append(e.hooks().Poststart, h) }
func (e editor) AddPostStopHook(h specs.Hook)  { e.hooks().Poststop = append(e.hooks().Poststop, h) }

func (e editor) AddMount(m specs.Mount) { e.s.Mounts = append(e.s.Mounts, m) }
func (e editor) ClearMounts()           { e.s.Mounts = nil }
func (e editor) Mounts() []specs.Mount  { return e.s.Mounts }
func (e editor) RemoveMount(dest string) {
	e.s.Mounts = slices.DeleteFunc(slices.Clone(e.s.Mounts), func(m specs.Mount) bool { return m.Destination == dest })
}

func (e editor) AddDevice(d specs.LinuxDevice) {
	e.RemoveDevice(d.Path)
	e.s.Linux.Devices = append(e.s.Linux.Devices, d)
}
func (e editor) RemoveDevice(path string) {
	e.s.Linux.Devices = slices.DeleteFunc(slices.Clone(e.s.Linux.Devices), func(d specs.LinuxDevice) bool { return d.Path == path })
}
func (e editor) AddLinuxResourcesDevice(allow bool, kind string, major, minor *int64, access string) {
	r := e.s.Linux.Resources
	r.Devices = append(slices.Clone(r.Devices), specs.LinuxDeviceCgroup{Allow: allow, Type: kind, Major: major, Minor: minor, Access: access})
}

func (e editor) AddOrReplaceLinuxNamespace(kind, path string) error {
	if kind != string(specs.CgroupNamespace) {
		// The pod's are shared by its containers, and the executor relies on the mount namespace.
		return errs.New(errs.Unsupported, "a plugin replaces the %s namespace, which is the pod's", kind)
	}
	if err := e.RemoveLinuxNamespace(kind); err != nil {
		return err
	}
	e.s.Linux.Namespaces = append(e.s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.LinuxNamespaceType(kind), Path: path})
	return nil
}
func (e editor) RemoveLinuxNamespace(kind string) error {
	if kind != string(specs.CgroupNamespace) {
		return errs.New(errs.Unsupported, "a plugin removes the %s namespace, which is the pod's", kind)
	}
	e.s.Linux.Namespaces = slices.DeleteFunc(slices.Clone(e.s.Linux.Namespaces), func(n specs.LinuxNamespace) bool { return string(n.Type) == kind })
	return nil
}

func (e editor) SetLinuxRootPropagation(p string) error {
	e.s.Linux.RootfsPropagation = p
	return nil
}
func (e editor) SetLinuxCgroupsPath(path string) { e.s.Linux.CgroupsPath = path }

// cpu and memory are copies, as what they were copied from is the container's configuration.
func (e editor) cpu(change func(*specs.LinuxCPU)) {
	var c specs.LinuxCPU
	if old := e.s.Linux.Resources.CPU; old != nil {
		c = *old
	}
	change(&c)
	e.s.Linux.Resources.CPU = &c
}
func (e editor) memory(change func(*specs.LinuxMemory)) {
	var m specs.LinuxMemory
	if old := e.s.Linux.Resources.Memory; old != nil {
		m = *old
	}
	change(&m)
	e.s.Linux.Resources.Memory = &m
}

func (e editor) SetLinuxResourcesCPUCpus(v string) { e.cpu(func(c *specs.LinuxCPU) { c.Cpus = v }) }
func (e editor) SetLinuxResourcesCPUMems(v string) { e.cpu(func(c *specs.LinuxCPU) { c.Mems = v }) }
func (e editor) SetLinuxResourcesCPUPeriod(v uint64) {
	e.cpu(func(c *specs.LinuxCPU) { c.Period = &v })
}
func (e editor) SetLinuxResourcesCPUQuota(v int64) { e.cpu(func(c *specs.LinuxCPU) { c.Quota = &v }) }
func (e editor) SetLinuxResourcesCPURealtimePeriod(v uint64) {
	e.cpu(func(c *specs.LinuxCPU) { c.RealtimePeriod = &v })
}
func (e editor) SetLinuxResourcesCPURealtimeRuntime(v int64) {
	e.cpu(func(c *specs.LinuxCPU) { c.RealtimeRuntime = &v })
}
func (e editor) SetLinuxResourcesCPUShares(v uint64) {
	e.cpu(func(c *specs.LinuxCPU) { c.Shares = &v })
}
func (e editor) SetLinuxResourcesMemoryLimit(v int64) {
	e.memory(func(m *specs.LinuxMemory) { m.Limit = &v })
}
func (e editor) SetLinuxResourcesMemorySwap(v int64) {
	e.memory(func(m *specs.LinuxMemory) { m.Swap = &v })
}

func (e editor) AddLinuxResourcesHugepageLimit(size string, limit uint64) {
	r := e.s.Linux.Resources
	r.HugepageLimits = slices.DeleteFunc(slices.Clone(r.HugepageLimits), func(l specs.LinuxHugepageLimit) bool { return l.Pagesize == size })
	r.HugepageLimits = append(r.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: size, Limit: limit})
}
