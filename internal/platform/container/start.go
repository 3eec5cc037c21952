package container

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/fault"
	"github.com/orlop-io/orlop/internal/platform/executor"
)

var afterOpened = fault.New("container.start.gate-opened")

// Start has the container's process execute the program. It returns once that has happened; where
// it could not, the process has ended. A container that is not in the state for it is
// errs.FailedPrecondition.
func (c *Container) Start(ctx context.Context) error {
	if c.proc != nil {
		if err := c.listenNotify(); err != nil {
			return err
		}
		if err := c.proc.Start(ctx); err != nil {
			return err
		}
		return c.poststart(ctx)
	}
	if err := c.hold(ctx); err != nil {
		return err
	}
	defer c.release()
	st, err := c.Status()
	if err != nil {
		return err
	}
	switch st {
	case Created:
	case Stopped:
		return errs.New(errs.FailedPrecondition, "cannot start container %s: it has stopped", c.rec.ID)
	case Paused:
		return errs.New(errs.FailedPrecondition, "cannot start container %s: it is paused; resume it first", c.rec.ID)
	default:
		return errs.New(errs.FailedPrecondition, "cannot start container %s: it is already %s", c.rec.ID, st)
	}
	if err := c.listenNotify(); err != nil {
		return fmt.Errorf("start container %s: %w", c.rec.ID, err)
	}
	if err := executor.OpenGate(ctx, c.dir+"/gate"); err != nil {
		return fmt.Errorf("start container %s: %w", c.rec.ID, err)
	}
	afterOpened.Hit()
	// Only a hint: without the gate nobody has to ask what the process executes.
	if err := os.Remove(c.dir + "/gate"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("start container %s: remove the gate: %w", c.rec.ID, err)
	}
	return c.poststart(ctx)
}
