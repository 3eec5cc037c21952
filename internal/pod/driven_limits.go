package pod

import (
	"context"
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/keeper"
)

// UpdateContainer changes the limits of a container: at once where it runs, at its start
// where it does not yet. What res leaves out stays as it is.
func (d *Driven) UpdateContainer(ctx context.Context, id ContainerID, res *specs.LinuxResources) error {
	c, err := d.container(id)
	if err != nil {
		return err
	}
	unlock, err := d.locks.Lock(ctx, string(id))
	if err != nil {
		return err
	}
	defer unlock()
	st := c.status()
	if st.State == DrivenExited {
		return errs.New(errs.FailedPrecondition, "container %s has ended; its limits cannot be changed", id)
	}
	release := d.hooks.Hold()
	res, updates, err := d.hooks.Update(ctx, d.hookedPod(c.pod), d.hookedContainer(ctx, c.pod, st), res)
	release()
	if err != nil {
		return fmt.Errorf("container %s: a plugin refuses the update: %w", id, err)
	}
	if err := d.setLimits(ctx, c, res); err != nil {
		return err
	}
	if d.hooked {
		d.tell(ctx, HookPostUpdate, c)
	}
	return d.Apply(ctx, updates)
}

func (d *Driven) setLimits(ctx context.Context, c *drivenContainer, res *specs.LinuxResources) error {
	st := c.status()
	id := st.ID
	switch st.State {
	case DrivenExited:
		return errs.New(errs.FailedPrecondition, "container %s has ended; its limits cannot be changed", id)
	case DrivenRunning:
		if err := d.p.runtime.do(ctx, func(k *keeper.Client) error { return k.Update(ctx, string(id), res) }); err != nil {
			return err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	limits := overlayLimits(c.rec.Config.Limits, res)
	c.rec.Config.Limits = limits
	return d.containers.Put(string(id), c.rec)
}

// overlayLimits is old with what new says.
func overlayLimits(old, new *specs.LinuxResources) *specs.LinuxResources {
	var r specs.LinuxResources
	if old != nil {
		r = *old
	}
	if new.CPU != nil {
		cpu := specs.LinuxCPU{}
		if r.CPU != nil {
			cpu = *r.CPU
		}
		set(&cpu.Shares, new.CPU.Shares)
		set(&cpu.Quota, new.CPU.Quota)
		set(&cpu.Period, new.CPU.Period)
		if new.CPU.Cpus != "" {
			cpu.Cpus = new.CPU.Cpus
		}
		if new.CPU.Mems != "" {
			cpu.Mems = new.CPU.Mems
		}
		r.CPU = &cpu
	}
	if new.Memory != nil {
		mem := specs.LinuxMemory{}
		if r.Memory != nil {
			mem = *r.Memory
		}
		set(&mem.Limit, new.Memory.Limit)
		set(&mem.Swap, new.Memory.Swap)
		r.Memory = &mem
	}
	if len(new.HugepageLimits) > 0 {
		r.HugepageLimits = new.HugepageLimits
	}
	if len(new.Unified) > 0 {
		unified := make(map[string]string)
		for k, v := range r.Unified {
			unified[k] = v
		}
		for k, v := range new.Unified {
			unified[k] = v
		}
		r.Unified = unified
	}
	return &r
}

func set[T any](to **T, from *T) {
	if from != nil {
		*to = from
	}
}
