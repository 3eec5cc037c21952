package server

import (
	"context"
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/fault"
	"github.com/orlop-io/orlop/internal/platform/executor/plan"
	"github.com/orlop-io/orlop/internal/platform/keeper"
	"github.com/orlop-io/orlop/internal/platform/pidfd"
)

// How far a start has come is the state in the container's record, and nothing else:
//
//	created   the process waits at the gate
//	starting  the gate may have been opened; nobody was answered
//	running   the program was executed; somebody may have been answered
//
// A keeper that is killed leaves one of them. With created the process goes, as its gate did.
// With running it is taken over, or has ended. With starting the next keeper finds out, before
// it answers anybody (settle), and concludes: it runs, or it has run and ended, or it counts as
// not made, and who asked for it asks again.
var (
	faultStartIntent = fault.New("keeper.start.intent-recorded")
	faultStartOpened = fault.New("keeper.start.gate-opened")
	faultStartDone   = fault.New("keeper.start.recorded")
)

func (s *Server) opRun(ctx context.Context, _ *client, f *frame) (any, []*os.File, error) {
	spec, unlock, err := s.begin(ctx, f)
	if err != nil {
		return nil, nil, err
	}
	defer unlock()
	c, err := s.find(spec.ID)
	if err == nil && c.unstarted() {
		s.discard(c)
		c, err = s.find(spec.ID)
	}
	made := err != nil
	if made {
		if c, err = s.create(ctx, spec, false); err != nil {
			return nil, nil, err
		}
	} else if st := c.status(); st.State == keeper.Stopped && !st.StartedAt.IsZero() {
		// Asked again by a client that did not hear the answer: it has run already.
		return keeper.Started{PID: st.PID, At: st.StartedAt}, nil, nil
	}
	started, err := c.start(ctx)
	if err != nil {
		if made {
			s.discard(c)
		}
		return nil, nil, err
	}
	return started, nil, nil
}

// unstarted tells of what is left of a start that failed, or that nobody can tell anything of:
// a client that did not hear the answer asks again. It is called with the container's lock held.
func (c *container) unstarted() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rec.Status.StartedAt.IsZero() && (c.rec.Status.State == keeper.Stopped || c.rec.Status.State == keeper.Starting)
}

func (s *Server) start(ctx context.Context, r keeper.IDRequest) (any, error) {
	unlock, err := s.locks.Lock(ctx, r.ID)
	if err != nil {
		return nil, err
	}
	defer unlock()
	c, err := s.find(r.ID)
	if err != nil {
		return nil, err
	}
	return c.start(ctx)
}

// start opens the gate.
func (c *container) start(ctx context.Context) (keeper.Started, error) {
	c.mu.Lock()
	st, gate := c.rec.Status, c.gate
	switch {
	case st.State == keeper.Running || st.State == keeper.Paused:
		c.mu.Unlock()
		return keeper.Started{PID: st.PID, At: st.StartedAt}, nil
	case st.State != keeper.Created || gate == nil:
		c.mu.Unlock()
		return keeper.Started{}, errs.New(errs.FailedPrecondition, "container %s is %s; only a created one can start", c.id, st.State)
	}
	c.rec.Status.State, c.rec.StartAt = keeper.Starting, time.Now()
	err := c.save()
	if err != nil {
		c.rec.Status.State, c.rec.StartAt = keeper.Created, time.Time{}
	}
	c.mu.Unlock()
	if err != nil {
		return keeper.Started{}, err
	}
	faultStartIntent.Hit()
	err = gate.Start(ctx)
	faultStartOpened.Hit()
	if err != nil {
		c.startFailed(gate, err)
		return keeper.Started{}, err
	}
	c.mu.Lock()
	c.begun()
	c.gate = nil
	started, seen := keeper.Started{PID: st.PID, At: c.rec.Status.StartedAt}, c.seen
	c.mu.Unlock()
	gate.Close()
	faultStartDone.Hit()
	c.s.publish(keeper.Event{Type: "started", ID: c.id, PID: st.PID})
	go func() {
		c.out.begin()
		if seen {
			c.onExit()
		}
	}()
	return started, nil
}

// begun records that the program was executed. It is called with mu held.
func (c *container) begun() {
	c.rec.Status.State, c.rec.Status.StartedAt = keeper.Running, c.rec.StartAt
	if err := c.save(); err != nil {
		// The record says starting: a later keeper would find out again.
		c.warn("that a container has begun could not be recorded", "error", err)
	}
}

// startFailed records the end of a container whose program could not be executed.
func (c *container) startFailed(gate process, err error) {
	c.mu.Lock()
	c.gate = nil
	c.mu.Unlock()
	f := gate.PIDFD() // not ours, which whoever sees the end meanwhile closes
	x := keeper.Exit{Code: 128, Known: true, At: time.Now()}
	if f != nil {
		// One that somebody killed at the gate has not been reaped by the executor.
		pidfd.Signal(f, unix.SIGKILL)
		if end, rerr := pidfd.Reap(f, true); rerr == nil && errors.Is(err, errs.FailedPrecondition) {
			x = exitOf(end, true)
		}
	}
	gate.Close()
	c.mu.Lock()
	c.child = false
	c.mu.Unlock()
	c.finish(x)
}

// settleTimeout bounds how long a new keeper waits for a process that was being started.
const settleTimeout = 2 * time.Second

// settleAll finds out what came of starts whose keeper was killed in them, side by side, and
// concludes one after the other. The processes are there, or were a moment ago.
func (s *Server) settleAll(starting []*container, failed func(*container, error)) {
	ctx, cancel := context.WithTimeout(context.Background(), settleTimeout)
	defer cancel()
	type outcome struct {
		c    *container
		runs bool
		end  *keeper.Exit
	}
	settled := make(chan outcome)
	for _, c := range starting {
		go func() {
			runs, end, err := c.runtime().settle(ctx, c)
			if err != nil {
				c.warn("a start that was interrupted is undone, as nothing tells whether it was made", "error", err)
			}
			settled <- outcome{c, runs, end}
		}()
	}
	for range starting {
		o := <-settled
		if err := s.conclude(o.c, o.runs, o.end); err != nil {
			failed(o.c, err)
		}
	}
}

// conclude records what came of the start: the program runs, or has ended so, or (false, nil)
// was not executed. An end of which nothing is known does not tell whether it was, and as nobody
// was told of the start it counts as not made. It is called with the container's lock held, or
// before anybody is answered.
func (s *Server) conclude(c *container, runs bool, end *keeper.Exit) error {
	if !runs && (end == nil || !end.Known || c.rec.Runtime == nil && end.Code == plan.NotExecuted) {
		s.log.Info("a container that was never started is removed", "container", c.id)
		s.discard(c)
		return nil
	}
	c.mu.Lock()
	c.begun()
	c.mu.Unlock()
	if runs {
		return c.takeOver()
	}
	c.finish(*end)
	return nil
}
