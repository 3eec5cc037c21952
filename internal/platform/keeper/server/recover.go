package server

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/keeper"
	"github.com/orlop-io/orlop/internal/platform/ociruntime"
	"github.com/orlop-io/orlop/internal/platform/pidfd"
)

// initExe is what /proc/PID/exe says of a process that is still orlop-init: the
// executor's sealed memfd.
const initExe = "/memfd:orlop-init"

func readExe(pid int) string {
	exe, _ := os.Readlink("/proc/" + strconv.Itoa(pid) + "/exe")
	return exe
}

const (
	recoverTimeout = 10 * time.Second // for the removal of one container
	settleTimeout  = 2 * time.Second
)

// recover reads every container's directory and goes on with it. One that cannot be
// gone on with does not keep the others from it.
func (s *Server) recover() error {
	if err := ociruntime.SweepConsoles(s.o.Dir); err != nil {
		return err
	}
	ents, err := os.ReadDir(filepath.Join(s.o.Dir, "containers"))
	if err != nil {
		return err
	}
	for _, e := range ents {
		c := s.newContainer(e.Name())
		c.recovered = true
		if err := s.recoverOne(c); err != nil {
			if errors.Is(err, errs.Unsupported) {
				return err // a newer keeper's: it must come back, not be swept by us
			}
			s.log.Error("a container could not be gone on with", "container", e.Name(), "error", err)
		}
	}
	s.sweepProfiles()
	return nil
}

func (s *Server) recoverOne(c *container) error {
	if err := c.load(); err != nil {
		if errors.Is(err, errs.Unsupported) {
			return err
		}
		if errors.Is(err, os.ErrNotExist) {
			// Made, and not one word written: a start that had just begun.
			s.log.Info("a container that was not begun is removed", "container", c.id)
			return os.RemoveAll(c.dir)
		}
		return err // left for somebody to look at: nobody but us writes there
	}
	ctx, cancel := context.WithTimeout(context.Background(), recoverTimeout)
	defer cancel()
	st := &c.rec.Status
	var err error
	if c.group, err = s.cg.Load(st.Cgroup); err != nil {
		c.group = nil
		if !errors.Is(err, errs.NotFound) {
			s.log.Warn("a container's control group could not be read", "container", c.id, "error", err)
		}
	}
	switch {
	case st.State == keeper.Creating || st.State == keeper.Created || c.rec.Deleting:
		// The gate is lost with the keeper that held it: init has ended, or will now.
		s.log.Info("an incomplete container is removed", "container", c.id, "state", st.State)
		s.discard(c)
		return nil
	case st.State == keeper.Stopped:
		close(c.exited)
		c.out.ended = true
		s.add(c)
		return nil
	}
	s.add(c)
	if err := c.openStreams(); err != nil {
		c.warn("a container goes on without its log", "error", err)
	}
	if c.pidfd, err = pidfd.Open(st.PID, c.rec.PIDStart); err != nil {
		if c.unanswered() {
			s.log.Info("a container whose start was never answered, and that has ended, is removed", "container", c.id)
			c.pidfd = nil
			s.discard(c)
			return nil
		}
		// It ended while no keeper lived. The daemon may hold a pidfd that knows how.
		s.log.Info("a container ended while no keeper lived", "container", c.id)
		c.pidfd, c.unknown = nil, true
		return c.out.start(true)
	}
	c.child = ownChild(st.PID)
	if c.group != nil {
		if frozen, err := c.runtime().frozen(ctx, c); err == nil && frozen {
			st.State = keeper.Paused
		} else if err == nil {
			st.State = keeper.Running
		}
	}
	if c.out.log != nil && !c.out.log.pos.begun {
		ctx, cancel := context.WithTimeout(ctx, settleTimeout)
		unstarted := c.runtime().settle(ctx, c)
		cancel()
		if unstarted {
			s.log.Info("a container that was never started is removed", "container", c.id)
			s.discard(c)
			return nil
		}
		// One that never began is gone before anybody asks for it.
		p := []unix.PollFd{{Fd: int32(c.pidfd.Fd()), Events: unix.POLLIN}}
		if n, _ := unix.Poll(p, 0); n > 0 {
			c.onExit()
			if _, err := s.find(c.id); err != nil {
				return nil
			}
		}
	}
	s.log.Info("a running container is taken over", "container", c.id, "pid", st.PID)
	if err := c.out.start(true); err != nil {
		return err
	}
	if c.pidfd == nil {
		return nil
	}
	return c.watchExit(unix.EPOLLIN)
}

// ownChild tells whether the process is a child of this one: after an upgrade it is.
func ownChild(pid int) bool {
	var si unix.Siginfo
	return unix.Waitid(unix.P_PID, pid, &si, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil) == nil
}
