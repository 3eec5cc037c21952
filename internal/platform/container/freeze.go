package container

import (
	"context"
	"time"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/cgroup"
)

// freezeWait is how long Pause waits until all processes stand still.
const freezeWait = 10 * time.Second

// Pause freezes every process of the container's group, and waits until they stand still.
func (c *Container) Pause(ctx context.Context) error {
	return c.freezing(ctx, Running, func(ctx context.Context, g *cgroup.Group) error { return g.Freeze(ctx) })
}

// Resume lets the processes of a paused container go on.
func (c *Container) Resume(ctx context.Context) error {
	return c.freezing(ctx, Paused, func(ctx context.Context, g *cgroup.Group) error { return g.Thaw(ctx) })
}

func (c *Container) freezing(ctx context.Context, want Status, do func(context.Context, *cgroup.Group) error) error {
	ctx, cancel := context.WithTimeout(ctx, freezeWait)
	defer cancel()
	if err := c.hold(ctx); err != nil {
		return err
	}
	defer c.release()
	st, err := c.Status()
	if err != nil {
		return err
	}
	if st != want && !(want == Running && st == Created) {
		return errs.New(errs.FailedPrecondition, "container %s is %s, not %s", c.rec.ID, st, want)
	}
	g, err := c.group()
	if err != nil {
		return err
	}
	if g == nil {
		return errs.New(errs.FailedPrecondition, "container %s has no control group, and cannot be frozen without", c.rec.ID)
	}
	return do(ctx, g)
}

// Processes returns the numbers of all processes of the container, as this process sees
// them.
func (c *Container) Processes() ([]int, error) {
	g, err := c.group()
	if err != nil || g == nil {
		return nil, err
	}
	return g.Procs()
}
