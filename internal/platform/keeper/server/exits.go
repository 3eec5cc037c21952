package server

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/fault"
	"github.com/orlop-io/orlop/internal/platform/keeper"
	"github.com/orlop-io/orlop/internal/platform/pidfd"
)

var (
	faultExitReaped   = fault.New("keeper.exit.reaped")
	faultExitDrained  = fault.New("keeper.exit.output-drained")
	faultExitRecorded = fault.New("keeper.exit.recorded")
)

// watchExit notices the end of the process. A child is reaped then; of another's child
// the end may be known only once its parent has reaped it, which is a hang-up.
func (c *container) watchExit(events uint32) error {
	return c.s.poll.watch(int(c.pidfd.Fd()), events, func(uint32) { c.onExit() })
}

// lookAgain is the pause between two looks at a process that has ended and is not reaped.
const lookAgain = 100 * time.Millisecond

// onExit finds out how the process ended, if it has.
func (c *container) onExit() {
	c.mu.Lock()
	if c.pidfd == nil || c.rec.Status.Exit != nil {
		c.mu.Unlock()
		return
	}
	if c.rec.Status.State == keeper.Starting {
		c.seen = true // start looks again when it is done
		c.mu.Unlock()
		return
	}
	end, known, again, err := c.look()
	switch {
	case err == pidfd.ErrRuns:
		err = c.watchExit(unix.EPOLLIN)
	case err == nil && again:
		// Before Linux 6.9 there is no hang-up to wait for.
		err = c.watchExit(0)
		time.AfterFunc(lookAgain, c.onExit)
	default:
		if c.gate != nil {
			c.gate.Close()
			c.gate = nil
		}
		c.mu.Unlock()
		if err != nil {
			c.warn("a container's end could not be read", "error", err)
			known = false
		}
		faultExitReaped.Hit()
		c.finish(exitOf(end, known))
		return
	}
	c.mu.Unlock()
	if err != nil {
		c.warn("a container's end will not be noticed", "error", err)
	}
}

// look returns how the process ended, as pidfd.Look does, and reaps a child of ours. It is
// called with mu held.
func (c *container) look() (end pidfd.End, known, again bool, err error) {
	if !c.child {
		return pidfd.Look(c.pidfd, c.rec.Status.PID, c.rec.PIDStart)
	}
	if end, err = pidfd.Reap(c.pidfd, false); err == pidfd.ErrRuns {
		return end, false, true, err
	}
	c.child = false // what there was to reap is reaped
	if errors.Is(err, unix.ECHILD) {
		// The executor has reaped it, or a debugger: somebody who holds a pidfd knows.
		end, known = pidfd.Kept(c.pidfd)
		return end, known, false, nil
	}
	return end, err == nil, false, err
}

func exitOf(e pidfd.End, known bool) keeper.Exit {
	if !known {
		return keeper.Exit{Code: 255, At: time.Now()}
	}
	return keeper.Exit{Code: e.Code, Signal: e.Signal, Known: true, At: time.Now()}
}

// finish records the end once the last output is in the log.
func (c *container) finish(x keeper.Exit) {
	c.mu.Lock()
	if c.rec.Status.Exit != nil {
		c.mu.Unlock()
		return
	}
	group, shares, oomBase := c.group, c.rec.SharesPID, c.oomBase
	c.mu.Unlock()
	if group != nil {
		if shares && !group.Empty() {
			// What the first process leaves behind ends with it, as it does in a PID
			// namespace of its own.
			if err := group.Kill(unix.SIGKILL); err != nil {
				c.warn("processes of an ended container could not be killed", "error", err)
			}
		}
		if x.Signal == int(unix.SIGKILL) || x.Code == 128+int(unix.SIGKILL) || !x.Known {
			n, err := group.OOMKills()
			x.OOMKilled = err == nil && n > oomBase
		}
	}
	c.out.finish()
	faultExitDrained.Hit()
	c.mu.Lock()
	ended := c.ended(x)
	pid := c.rec.Status.PID
	c.mu.Unlock()
	faultExitRecorded.Hit()
	if ended {
		c.s.unhold(c)
		c.s.publish(keeper.Event{Type: "exited", ID: c.id, PID: pid, Exit: &x})
	}
}

// ended records the end and tells whether it is new. It is called with mu held.
func (c *container) ended(x keeper.Exit) bool {
	if c.rec.Status.Exit != nil {
		return false
	}
	c.rec.Status.State, c.rec.Status.Exit, c.unknown = keeper.Stopped, &x, false
	if err := c.save(); err != nil {
		c.warn("a container's end could not be recorded", "error", err)
	}
	c.closePIDFD()
	if c.stdin != nil {
		c.stdin.Close()
		c.stdin = nil
	}
	close(c.exited)
	return true
}
