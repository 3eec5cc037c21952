package pod

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/keeper"
)

// link is the way to the keeper. It starts one where there is none, and after a
// loss another, which it gives what it held of the containers of the first.
type link struct {
	o    keeper.SpawnOptions
	log  *slog.Logger
	held keeper.Holdings

	wake    func(container string)
	wakeAll func()
	event   func(keeper.Event) // must not block
	found   func()             // a keeper is connected, another one perhaps; must not block

	mu     sync.Mutex
	client *keeper.Client
}

// connect returns once there is a keeper.
func (r *link) connect(ctx context.Context) error {
	_, err := r.get(ctx)
	return err
}

// get returns the connection, making it where there is none.
func (r *link) get(ctx context.Context) (*keeper.Client, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.client != nil {
		select {
		case <-r.client.Done():
			r.client = nil
		default:
			return r.client, nil
		}
	}
	c, err := keeper.Dial(ctx, keeper.Socket(r.o.Dir), &r.held)
	if err != nil {
		if err := keeper.Spawn(ctx, r.o); err != nil {
			return nil, err
		}
		if c, err = keeper.Dial(ctx, keeper.Socket(r.o.Dir), &r.held); err != nil {
			return nil, err
		}
	}
	if err := c.OnEvent(ctx, func(e keeper.Event) { r.wake(e.ID); r.event(e) }); err != nil {
		c.Close()
		return nil, err
	}
	r.log.Info("connected to the keeper", "pid", c.PID())
	r.client = c
	return c, nil
}

// keepConnected brings a lost keeper back at once, since containers are without a
// log and without a parent until then.
func (r *link) keepConnected(ctx context.Context) {
	for ctx.Err() == nil {
		c, err := r.get(ctx)
		if err != nil {
			if ctx.Err() == nil {
				r.log.Error("there is no keeper; trying again", "error", err)
			}
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
			}
			continue
		}
		r.wakeAll()
		r.found()
		select {
		case <-c.Done():
			r.log.Warn("the keeper is gone; another is started")
		case <-ctx.Done():
		}
	}
}

func (r *link) close() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.client != nil {
		r.client.Close()
		r.client = nil
	}
	r.held.Close()
}

// do calls fn with a connection; where the keeper is lost meanwhile it tries again
// with the next, so fn must be idempotent.
func (r *link) do(ctx context.Context, fn func(*keeper.Client) error) error {
	for try := 0; ; try++ {
		c, err := r.get(ctx)
		if err == nil {
			err = fn(c)
		}
		if err == nil || !errors.Is(err, errs.Unavailable) || try == 3 || ctx.Err() != nil {
			return err
		}
	}
}

func (r *link) list(ctx context.Context) (l []keeper.Status, err error) {
	err = r.do(ctx, func(c *keeper.Client) (err error) { l, err = c.List(ctx); return err })
	return l, err
}

func (r *link) status(ctx context.Context, id string) (s keeper.Status, err error) {
	err = r.do(ctx, func(c *keeper.Client) (err error) { s, err = c.Status(ctx, id); return err })
	return s, err
}

func (r *link) run(ctx context.Context, spec keeper.Spec) (s keeper.Started, err error) {
	err = r.do(ctx, func(c *keeper.Client) (err error) { s, err = c.Run(ctx, spec); return err })
	return s, err
}

func (r *link) signal(ctx context.Context, id string, sig unix.Signal, all bool) error {
	err := r.do(ctx, func(c *keeper.Client) error { return c.Signal(ctx, id, sig, all) })
	if errors.Is(err, errs.NotFound) {
		return nil
	}
	return err
}

func (r *link) wait(ctx context.Context, id string) (x keeper.Exit, err error) {
	err = r.do(ctx, func(c *keeper.Client) (err error) { x, err = c.Wait(ctx, id); return err })
	return x, err
}

func (r *link) remove(ctx context.Context, id string) error {
	return r.do(ctx, func(c *keeper.Client) error { return c.Delete(ctx, id) })
}

// destroy kills and removes a container in whatever state it is: one too that is only being
// made, for a daemon before this one, which the removal waits for.
func (r *link) destroy(ctx context.Context, id string) error {
	err := r.remove(ctx, id)
	if !errors.Is(err, errs.InUse) {
		return err
	}
	if err := r.signal(ctx, id, unix.SIGKILL, true); err != nil {
		return err
	}
	if _, err := r.wait(ctx, id); err != nil && !errors.Is(err, errs.NotFound) {
		return err
	}
	return r.remove(ctx, id)
}

// end ends a container and returns how: by the signal, if it is not 0, and by SIGKILL to
// everything in it when graceful is over.
func (r *link) end(graceful context.Context, id string, signal unix.Signal) (x keeper.Exit, err error) {
	hard := context.WithoutCancel(graceful)
	err = context.DeadlineExceeded
	if signal != 0 {
		if err = r.signal(hard, id, signal, false); err == nil {
			x, err = r.wait(graceful, id)
		}
	}
	if err != nil && !isGone(err) {
		if err = r.signal(hard, id, unix.SIGKILL, true); err == nil {
			last, cancel := context.WithTimeout(hard, 30*time.Second)
			x, err = r.wait(last, id)
			cancel()
		}
	}
	if isGone(err) {
		return lost, nil
	}
	return x, err
}

// shutdown ends the keeper, which must have no container left.
func (r *link) shutdown(ctx context.Context) error {
	c, err := r.get(ctx)
	if err != nil {
		return err
	}
	if err := c.Shutdown(ctx); err != nil {
		return err
	}
	r.close()
	return nil
}
