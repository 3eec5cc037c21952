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

const recoverTimeout = 10 * time.Second // for the removal of one container

// recover reads every container's directory and goes on with it. One that cannot be
// gone on with does not keep the others from it. Starts that were under way are settled when
// it returns: a client is told of none that is not decided.
func (s *Server) recover() error {
	if err := ociruntime.SweepConsoles(s.o.Dir); err != nil {
		return err
	}
	ents, err := os.ReadDir(filepath.Join(s.o.Dir, "containers"))
	if err != nil {
		return err
	}
	failed := func(c *container, err error) {
		s.log.Error("a container could not be gone on with", "container", c.id, "error", err)
	}
	var starting []*container
	for _, e := range ents {
		c := s.newContainer(e.Name())
		undecided, err := s.recoverOne(c)
		switch {
		case errors.Is(err, errs.Unsupported):
			return err // a newer keeper's: it must come back, not be swept by us
		case err != nil:
			failed(c, err)
		case undecided:
			starting = append(starting, c)
		}
	}
	s.settleAll(starting, failed)
	s.sweepProfiles()
	return nil
}

// recoverOne goes on with one container, unless its start is undecided.
func (s *Server) recoverOne(c *container) (undecided bool, err error) {
	if err := c.load(); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			// Made, and not one word written: a start that had just begun.
			s.log.Info("a container that was not begun is removed", "container", c.id)
			return false, os.RemoveAll(c.dir)
		}
		return false, err // left for somebody to look at: nobody but us writes there
	}
	st := &c.rec.Status
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
		return false, nil
	case st.State == keeper.Stopped:
		close(c.exited)
		c.out.ended = true
		s.add(c)
		return false, nil
	}
	s.add(c)
	if err := c.openStreams(); err != nil {
		c.warn("a container goes on without its log", "error", err)
	}
	starting := st.State == keeper.Starting
	if c.pidfd, err = pidfd.Open(st.PID, c.rec.PIDStart); err != nil {
		// It ended while no keeper lived. The daemon may hold a pidfd that knows how.
		s.log.Info("a container ended while no keeper lived", "container", c.id, "state", st.State)
		c.pidfd, c.unknown = nil, true
		if starting {
			return false, nil // and that may tell whether it was started
		}
		return false, c.out.start(true)
	}
	c.child = ownChild(st.PID)
	if starting {
		return true, nil
	}
	return false, c.takeOver()
}

// takeOver goes on with a container that runs.
func (c *container) takeOver() error {
	ctx, cancel := context.WithTimeout(context.Background(), recoverTimeout)
	defer cancel()
	st := &c.rec.Status
	if c.group != nil {
		if frozen, err := c.runtime().frozen(ctx, c); err == nil && frozen {
			st.State = keeper.Paused
		} else if err == nil {
			st.State = keeper.Running
		}
	}
	c.s.log.Info("a running container is taken over", "container", c.id, "pid", st.PID)
	if err := c.out.start(true); err != nil {
		return err
	}
	return c.watchExit(unix.EPOLLIN)
}

// ownChild tells whether the process is a child of this one: after an upgrade it is.
func ownChild(pid int) bool {
	var si unix.Siginfo
	return unix.Waitid(unix.P_PID, pid, &si, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil) == nil
}
