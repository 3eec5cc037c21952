package container

import (
	"context"
	"errors"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/cgroup"
	"github.com/orlop-io/orlop/internal/platform/executor"
)

// UpdateOptions are what a container's limits are to be. What is nil or empty stays as it is.
type UpdateOptions struct {
	Resources specs.LinuxResources // devices always stay
	// L3CacheSchema and MemBwSchema are for the container's class of Intel RDT.
	L3CacheSchema, MemBwSchema string
}

// Update changes limits of the container. If one is refused, all are as they were.
func (c *Container) Update(ctx context.Context, o UpdateOptions) error {
	if err := c.hold(ctx); err != nil {
		return err
	}
	defer c.release()
	st, err := c.Status()
	if err != nil {
		return err
	}
	g, err := c.group()
	if err != nil {
		return err
	}
	if st == Stopped || st == Creating || g == nil {
		return errs.New(errs.FailedPrecondition, "container not running: %s is %s, and has no limits to change", c.rec.ID, st)
	}
	spec, err := c.Spec()
	if err != nil {
		return err
	}
	linux := spec.Linux
	if linux == nil {
		linux = &specs.Linux{}
	}
	undo := func() error { return nil }
	if o.L3CacheSchema != "" || o.MemBwSchema != "" {
		if undo, err = executor.UpdateClass(c.rec.ID, linux.IntelRdt, o.L3CacheSchema, o.MemBwSchema); err != nil {
			return err
		}
	}
	r := o.Resources
	r.Devices, r.Memory = nil, keepSum(g, linux.Resources, &r)
	if err := g.Update(&r); err != nil {
		return errors.Join(err, undo())
	}
	return nil
}

// keepSum adds to a limit of memory alone the one of memory and swap together that the
// container has: cgroup v2 has one of swap instead, and with that alone the sum would change. Who
// asked for the file of cgroup v2 by its name means that, and not the sum.
func keepSum(g *cgroup.Group, had, r *specs.LinuxResources) *specs.LinuxMemory {
	for _, r := range []*specs.LinuxResources{had, r} {
		if r != nil && r.Unified["memory.swap.max"] != "" {
			return r.Memory
		}
	}
	if r.Memory == nil || r.Memory.Limit == nil || *r.Memory.Limit <= 0 || r.Memory.Swap != nil {
		return r.Memory
	}
	total, limited := g.MemoryAndSwap()
	if !limited {
		return r.Memory
	}
	m := *r.Memory
	m.Swap = &total
	return &m
}

// Stats is what the container's group has used, and how often the kernel killed in it for
// want of memory.
func (c *Container) Stats() (cgroup.Stats, uint64, error) {
	g, err := c.group()
	if err != nil {
		return cgroup.Stats{}, 0, err
	}
	if g == nil {
		return cgroup.Stats{}, 0, errs.New(errs.FailedPrecondition, "container %s has no control group to read", c.rec.ID)
	}
	s, err := g.Stats()
	if err != nil {
		return s, 0, err
	}
	kills, _ := g.OOMKills() // a host without the memory controller counts none
	return s, kills, nil
}
