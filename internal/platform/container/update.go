package container

import (
	"context"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/cgroup"
)

// Update changes limits of the container's group. What is nil stays as it is; devices
// always do.
func (c *Container) Update(ctx context.Context, res *specs.LinuxResources) error {
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
	r := *res
	r.Devices = nil
	return g.Update(&r)
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
