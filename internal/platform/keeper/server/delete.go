package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/fault"
	"github.com/orlop-io/orlop/internal/platform/keeper"
	"github.com/orlop-io/orlop/internal/platform/pidfd"
)

var (
	faultDeleteIntent = fault.New("keeper.delete.intent-recorded")
	faultDeleteKilled = fault.New("keeper.delete.processes-killed")
	faultDeleteGroup  = fault.New("keeper.delete.cgroup-removed")
	faultDeleteDone   = fault.New("keeper.delete.files-removed")
)

func (s *Server) delete(ctx context.Context, r keeper.IDRequest) (any, error) {
	unlock, err := s.locks.Lock(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	defer unlock()
	c, err := s.find(r.ID)
	if err != nil {
		return nil, nil // gone already
	}
	c.mu.Lock()
	switch c.rec.Status.State {
	case keeper.Running, keeper.Paused:
		c.mu.Unlock()
		return nil, errs.New(errs.InUse, "container %s runs; stop it first", r.ID)
	}
	c.rec.Deleting = true
	err = c.save()
	c.mu.Unlock()
	if err != nil {
		return nil, err
	}
	faultDeleteIntent.Hit()
	c.stop()
	if err := s.remove(ctx, c); err != nil {
		return nil, fmt.Errorf("delete container %s: %w", r.ID, err)
	}
	s.forget(c)
	return nil, nil
}

func (s *Server) add(c *container) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.containers[c.id] = c
}

// forget takes the container out of the list.
func (s *Server) forget(c *container) {
	s.mu.Lock()
	if s.containers[c.id] == c {
		delete(s.containers, c.id)
	}
	s.mu.Unlock()
	s.unhold(c)
}

// stop ends the process of a container that waits at the gate or was not made whole,
// reaps it, and lets go of every descriptor.
func (c *container) stop() {
	c.mu.Lock()
	f, child := c.pidfd, c.child
	c.pidfd = nil // so that nobody else sees its end
	gate := c.gate
	c.gate = nil
	if c.rec.Status.Exit == nil {
		c.rec.Status.Exit = &keeper.Exit{Code: 128 + int(unix.SIGKILL), Signal: int(unix.SIGKILL), Known: true, At: time.Now()}
		c.rec.Status.State = keeper.Stopped
		close(c.exited)
	}
	c.mu.Unlock()
	if f != nil {
		c.s.poll.forget(int(f.Fd()))
		pidfd.Signal(f, unix.SIGKILL)
		if child {
			pidfd.Reap(f, true)
		}
		f.Close()
	}
	if gate != nil {
		gate.Close()
	}
	c.close()
}

// discard removes a container that could not be made, or not be started.
func (s *Server) discard(c *container) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c.stop()
	if err := s.remove(ctx, c); err != nil {
		// It stays in the list, stopped, so that somebody can delete it again.
		s.log.Error("what is left of a container could not be removed", "container", c.id, "error", err)
		s.add(c)
		s.unhold(c)
		return
	}
	s.forget(c)
}

// remove removes control group and files, whatever there is of them.
func (s *Server) remove(ctx context.Context, c *container) error {
	c.mu.Lock()
	g, path := c.group, c.rec.Status.Cgroup
	c.mu.Unlock()
	if g == nil && path != "" {
		var err error
		if g, err = s.cg.Load(path); err != nil && !errors.Is(err, errs.NotFound) && !errors.Is(err, errs.Invalid) {
			return err // an invalid path was never made
		}
	}
	if g != nil {
		if !g.Empty() {
			if err := g.Kill(unix.SIGKILL); err != nil && !errors.Is(err, errs.NotFound) {
				return err
			}
		}
		faultDeleteKilled.Hit()
	}
	if err := c.runtime().remove(ctx, c); err != nil {
		return err
	}
	if c.rec.Runtime != nil { // which may have used up the time
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), recoverTimeout)
		defer cancel()
	}
	if g != nil {
		if err := g.Remove(ctx); err != nil {
			return err
		}
	}
	faultDeleteGroup.Hit()
	if err := os.RemoveAll(c.dir); err != nil {
		return err
	}
	faultDeleteDone.Hit()
	return nil
}
