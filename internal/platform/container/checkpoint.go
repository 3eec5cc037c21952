package container

import (
	"context"
	"fmt"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/fault"
	"github.com/orlop-io/orlop/internal/platform/checkpoint"
)

var afterSaved = fault.New("container.checkpoint.saved")

// Checkpoint saves a running container. Unless it is to go on, its processes have ended and
// it has been deleted when Checkpoint returns; on error it runs as before. What is wrong with CRIU or
// the kernel is errs.Unsupported.
//
// Signals do not end it half way: the processes would be left as CRIU has them.
func (c *Container) Checkpoint(ctx context.Context, o checkpoint.Options) (err error) {
	if err := c.hold(ctx); err != nil {
		return err
	}
	defer c.release()
	st, err := c.Status()
	if err != nil {
		return err
	}
	if st != Running && st != Paused {
		return errs.New(errs.FailedPrecondition, "container %s cannot be checkpointed: it is %s", c.rec.ID, st)
	}
	spec, err := c.Spec()
	if err != nil {
		return err
	}
	if err := checkpoint.Savable(spec); err != nil {
		return err
	}
	tool, err := o.Open(ctx)
	if err != nil {
		return err
	}
	g, err := c.group()
	if err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	saved := checkpoint.Container{PID: c.rec.PID, Spec: spec, Group: g}
	if err := saved.Dump(ctx, tool, o); err != nil {
		return fmt.Errorf("checkpoint %s: %w", c.rec.ID, err)
	}
	if o.LeaveRunning || o.PreDump {
		return nil
	}
	afterSaved.Hit()
	if !o.TCPEstablished { // else others' packets would be answered by a reset, and the connections be lost
		if err := unlockNetwork(spec); err != nil {
			c.store.o.Log.Warn("the network stays locked", "container", c.rec.ID, "error", err)
		}
	}
	return c.remove(ctx)
}
