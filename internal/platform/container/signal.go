package container

import (
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/pidfd"
)

// Kill sends a signal to the container's process or, with all, to every process of its
// control group. A SIGKILL ends a container that is frozen too, and every process of one that shares
// another's PID namespace. A container that has ended is errs.FailedPrecondition; with
// all, its remaining processes get the signal.
func (c *Container) Kill(sig syscall.Signal, all bool) error {
	if all || sig == unix.SIGKILL && !c.rec.PIDNamespace {
		g, err := c.group()
		if err != nil {
			return err
		}
		if g != nil && (all || !g.Empty()) {
			return g.Kill(sig)
		}
		if all {
			return nil // it ended, and nothing is left of it
		}
	}
	f, err := c.open()
	if err != nil {
		return err
	}
	if f == nil {
		return errs.New(errs.FailedPrecondition, "%s: container not running", c.rec.ID)
	}
	defer f.Close()
	if err := pidfd.Signal(f, sig); err != nil {
		return fmt.Errorf("signal process %d: %w", c.rec.PID, err)
	}
	if sig == unix.SIGKILL {
		if g, err := c.group(); err == nil && g != nil {
			if frozen, err := g.Frozen(); err == nil && frozen {
				return g.Kill(sig)
			}
		}
	}
	return nil
}
