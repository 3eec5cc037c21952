package pod

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/platform/keeper"
)

// stopContainers stops everything: main containers side by side, then sidecars in
// reverse order, with what is left of the grace. It returns early, with an error, only if
// ctx ends or a container does not; done again it goes on from there.
func (w *worker) stopContainers(ctx context.Context, grace time.Duration) error {
	spec := w.spec()
	end := time.Now().Add(grace)
	var wg sync.WaitGroup
	bad := make([]error, len(spec.Containers))
	for i := range spec.Containers {
		wg.Go(func() { bad[i] = w.stopContainer(ctx, &spec.Containers[i], grace) })
	}
	wg.Wait()
	if err := errors.Join(bad...); err != nil {
		return err
	}
	for i := len(spec.Init) - 1; i >= 0; i-- {
		left := time.Until(end)
		if grace > 0 { // a sidecar gets a moment even if the others have used it up
			left = max(left, minGrace)
		}
		if err := w.stopContainer(ctx, &spec.Init[i], left); err != nil {
			return err
		}
	}
	return nil
}

// minGrace is what a container has for its stop signal when the others, or its preStop
// hook, have used up the grace: Kubernetes' too.
const minGrace = 2 * time.Second

// stopContainer ends the present incarnation: preStop hook, stop signal, and SIGKILL
// when the grace is over. If ctx ends it returns at once and the container has its grace
// still: a daemon that stops must not cut it short, and one that is asked to be
// quicker comes again.
func (w *worker) stopContainer(ctx context.Context, c *Container, grace time.Duration) error {
	st := w.container(c.Name)
	if st.State != RunningNow {
		return nil
	}
	w.stopProbe(st.ID)
	id := string(st.ID)
	w.note(c.Name, false, "Killing", "stopping container "+c.Name)
	end := time.Now().Add(grace)
	if grace > 0 {
		w.preStop(ctx, c, st.ID, end)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if left := time.Now().Add(minGrace); end.Before(left) && grace >= minGrace {
			end = left
		}
		graceful, cancel := context.WithDeadline(ctx, end)
		var x keeper.Exit
		err := w.p.runtime.signal(graceful, id, w.stopSignal(ctx, c), false)
		if err == nil {
			x, err = w.p.runtime.wait(graceful, id)
		}
		over := graceful.Err() != nil
		cancel()
		switch {
		case err == nil:
			w.exited(c, x)
			return nil
		case isGone(err):
			w.exited(c, lost)
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case !over: // the keeper could not be asked: that is no reason to kill
			return err
		}
	}
	err := w.p.runtime.signal(ctx, id, unix.SIGKILL, true)
	x := lost
	if err == nil {
		last, cancel := context.WithTimeout(ctx, killPatience)
		x, err = w.p.runtime.wait(last, id)
		cancel()
	}
	switch {
	case isGone(err):
		w.exited(c, lost)
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil:
		return fmt.Errorf("container %s does not end: %w", c.Name, err)
	default:
		w.exited(c, x)
	}
	return nil
}

// killPatience is how long a process may take to die of SIGKILL: one that waits for a
// disk dies when the disk answers.
const killPatience = 30 * time.Second

// preStop runs the hook, once for each incarnation, until it or the grace ends.
func (w *worker) preStop(ctx context.Context, c *Container, id ContainerID, end time.Time) {
	w.mu.Lock()
	again := w.hooked[id]
	w.hooked[id] = true
	w.mu.Unlock()
	if c.PreStop == nil || again {
		return
	}
	within, cancel := context.WithDeadline(ctx, end)
	defer cancel()
	if o := w.hook(within, c, id, &c.PreStop.Action); !o.OK && ctx.Err() == nil {
		message := o.Message
		if within.Err() != nil {
			message = "it did not end within the grace"
		}
		w.note(c.Name, true, "FailedPreStopHook", "preStop hook of container "+c.Name+": "+message)
	}
}

func (w *worker) stopSignal(ctx context.Context, c *Container) unix.Signal {
	name := c.StopSignal
	if name == "" {
		if img, err := w.p.o.Images.Find(ctx, c.Image); err == nil {
			name = img.Config.StopSignal
		}
	}
	if n, err := strconv.Atoi(name); err == nil && n > 0 && n < 65 {
		return unix.Signal(n)
	}
	if name != "" && !strings.HasPrefix(name, "SIG") {
		name = "SIG" + name
	}
	if s := unix.SignalNum(name); s != 0 {
		return s
	}
	return unix.SIGTERM
}

// removeContainer removes an incarnation: process, control group, writable layer.
func (w *worker) removeContainer(ctx context.Context, id ContainerID) error {
	w.stopProbe(id)
	if err := w.p.runtime.destroy(ctx, string(id)); err != nil {
		return err
	}
	for _, d := range []string{filepath.Join(w.runDir(), "containers", string(id)), filepath.Join(w.p.o.Root, "containers", string(id))} {
		if err := removeTree(ctx, d); err != nil {
			return err
		}
	}
	faultContainerRemoved.Hit()
	return nil
}
