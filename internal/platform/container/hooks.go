package container

import (
	"context"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/orlop-io/orlop/internal/platform/executor"
)

// hookState is what a hook is told of the container.
func (c *Container) hookState(st specs.ContainerState) *specs.State {
	s := &specs.State{Version: c.rec.OCIVersion, ID: c.rec.ID, Status: st, Bundle: c.rec.Bundle, Annotations: c.rec.Annotations}
	if st != specs.StateStopped {
		s.Pid = c.rec.PID
	}
	return s
}

// poststart runs the hooks of a container whose program has just begun. One that fails ends
// the container (runtime.md, Lifecycle, step 9).
func (c *Container) poststart(ctx context.Context) error {
	spec, err := c.Spec()
	if err != nil || spec.Hooks == nil {
		return err
	}
	err = executor.RunHooks(ctx, spec.Hooks.Poststart, c.hookState(specs.StateRunning))
	if err != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), endWait)
		defer cancel()
		c.end(ctx)
	}
	return err
}

// poststop runs the hooks of a container that is no more. Each of them runs, and one that
// fails is but a warning (runtime.md, Lifecycle, step 13). After a kill of whoever ran
// them they run again.
func (c *Container) poststop(ctx context.Context) {
	spec, err := c.Spec()
	if err != nil || spec.Hooks == nil {
		return // without the specification nobody knows them
	}
	for i := range spec.Hooks.Poststop {
		if err := executor.RunHooks(ctx, spec.Hooks.Poststop[i:i+1], c.hookState(specs.StateStopped)); err != nil {
			c.store.o.Log.Warn("poststop hook", "container", c.rec.ID, "error", err)
		}
	}
}
