package pod

import (
	"context"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/keeper"
)

// DrivenEvent is something that happened to a container or, where Container is "", to a
// sandbox.
type DrivenEvent struct {
	Type      DrivenEventType
	Sandbox   ID
	Container ContainerID
	At        time.Time
}

// DrivenEventType says what happened.
type DrivenEventType string

const (
	EventCreated DrivenEventType = "created"
	EventStarted DrivenEventType = "started"
	EventStopped DrivenEventType = "stopped"
	EventDeleted DrivenEventType = "deleted"
)

// Watch calls fn for every event from now on, until ctx ends or fn fails. A watcher that
// is slower than the events is ended with errs.ResourceExhausted: it has to look anew.
func (d *Driven) Watch(ctx context.Context, fn func(DrivenEvent) error) error {
	ch := make(chan DrivenEvent, 1024)
	d.mu.Lock()
	d.subs[ch] = true
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		delete(d.subs, ch)
		d.mu.Unlock()
	}()
	for {
		select {
		case e, ok := <-ch:
			if !ok {
				return errs.New(errs.ResourceExhausted, "events came faster than they were read; list the containers and watch again")
			}
			if err := fn(e); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (d *Driven) publish(t DrivenEventType, pod ID, c ContainerID) {
	e := DrivenEvent{Type: t, Sandbox: pod, Container: c, At: time.Now()}
	d.mu.Lock()
	defer d.mu.Unlock()
	for ch := range d.subs {
		select {
		case ch <- e:
		default:
			close(ch)
			delete(d.subs, ch)
		}
	}
}

// onKeeper takes the keeper's events; it must not block.
func (d *Driven) onKeeper(e keeper.Event) {
	c, err := d.container(ContainerID(e.ID))
	if err != nil {
		return
	}
	switch {
	case e.Type == "started" && c.status().State == DrivenCreated:
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			if err := d.agree(ctx, c); err != nil {
				d.p.log.Error("a container that was started could not be recorded as such", "container", e.ID, "error", err)
			}
		}()
	case e.Type == "exited" && e.Exit != nil:
		go d.exited(c, *e.Exit)
	}
}

// onFound looks anew at what runs, beside what goes on: a keeper that came back may have
// news of the time before.
func (d *Driven) onFound() {
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := d.reconcile(ctx); err != nil {
			d.p.log.Error("the containers of driven pods could not be compared with the keeper's", "error", err)
		}
	}()
}

// reconcile makes the records agree with what the keeper says.
func (d *Driven) reconcile(ctx context.Context) error {
	list, err := d.p.runtime.list(ctx)
	if err != nil {
		return err
	}
	return d.agreeAll(ctx, list)
}

// agreeAll makes the records of those containers agree of which the list says something else.
func (d *Driven) agreeAll(ctx context.Context, list []keeper.Status) error {
	known := make(map[string]keeper.Status, len(list))
	for _, s := range list {
		known[s.ID] = s
	}
	var g errgroup.Group // one whose start is under way holds up no other
	for _, st := range d.Containers("") {
		s, there := known[string(st.ID)]
		if st.State == DrivenRunning && (!there || s.Exit != nil) || st.State == DrivenCreated && there && !s.StartedAt.IsZero() {
			if c, err := d.container(st.ID); err == nil {
				g.Go(func() error { return d.agree(ctx, c) })
			}
		}
	}
	return g.Wait()
}

// agree makes the container's record agree with what the keeper says of it now: a list that
// was made before may know nothing of a container that was started since.
func (d *Driven) agree(ctx context.Context, c *drivenContainer) error {
	st := c.status()
	if st.State == DrivenCreated {
		// Started for a daemon before this one, or for a client that gave up. A request that is
		// at it now records that itself.
		unlock, err := d.locks.Lock(ctx, string(st.ID))
		if err != nil {
			return err
		}
		defer unlock()
		st = c.status()
	}
	s, err := d.p.runtime.status(ctx, string(st.ID))
	if err != nil && !isGone(err) {
		return err
	}
	switch {
	case err != nil && st.State == DrivenRunning:
		d.exited(c, lost)
	case err != nil:
		return nil
	case st.State == DrivenCreated && !s.StartedAt.IsZero():
		if err := d.started(c, keeper.Started{PID: s.PID, At: s.StartedAt}); err != nil {
			return err
		}
	}
	if s.Exit != nil {
		d.exited(c, *s.Exit)
	}
	return nil
}

// owned are the containers and directories that sweeping leaves alone.
func (d *Driven) owned(pods, containers map[string]bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for id, pod := range d.pods {
		pods[string(id)] = true
		containers[pod.w.pauseID()] = true
	}
	for id := range d.all {
		containers[string(id)] = true
	}
}
