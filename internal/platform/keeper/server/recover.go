package server

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/platform/keeper"
)

// recover reads every container's directory and goes on with it.
func (s *Server) recover() error {
	ents, err := os.ReadDir(filepath.Join(s.o.Dir, "containers"))
	if err != nil {
		return err
	}
	for _, e := range ents {
		if err := s.recoverOne(e.Name()); err != nil {
			return fmt.Errorf("go on with container %s: %w", e.Name(), err)
		}
	}
	return nil
}

func (s *Server) recoverOne(id string) error {
	c := &container{s: s, dir: s.dir(id), exited: make(chan struct{})}
	raw, err := os.ReadFile(filepath.Join(c.dir, "state.json"))
	if err == nil {
		err = json.Unmarshal(raw, &c.rec)
	}
	if err != nil {
		// Made, and not one word written: a start that had just begun.
		s.log.Warn("a container without a record is removed", "container", id, "error", err)
		return os.RemoveAll(c.dir)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	st := &c.rec.Status
	if st.State == keeper.Creating || st.State == keeper.Created || c.rec.Deleting {
		// The gate is lost with the keeper that held it: init has ended, or will now.
		s.log.Info("an incomplete container is removed", "container", id, "state", st.State)
		return s.remove(ctx, c)
	}
	if c.group, err = s.cg.Load(st.Cgroup); err != nil {
		return err
	}
	if st.State == keeper.Stopped {
		close(c.exited)
		if c.out.log, err = openLog(c.rec.Log, c.dir, c.warn); err != nil {
			return err
		}
		c.out.finish() // what was staged and not logged
		s.containers[id] = c
		return nil
	}
	if err := c.openStreams(); err != nil {
		return err
	}
	fd, err := unix.PidfdOpen(st.PID, 0)
	if err == nil {
		if started, serr := startTime(st.PID); serr != nil || started != c.rec.PIDStart {
			unix.Close(fd)
			err = unix.ESRCH
		}
	}
	if err != nil {
		// It ended while no keeper lived. The daemon may hold a pidfd that knows how.
		s.log.Info("a container ended while no keeper lived", "container", id)
		c.unknown = true
	} else {
		c.pidfd = os.NewFile(uintptr(fd), "pidfd")
		c.child = ownChild(st.PID)
		if err := c.watchExit(); err != nil {
			return err
		}
		s.log.Info("a running container is taken over", "container", id, "pid", st.PID)
	}
	s.containers[id] = c
	if !c.rec.Terminal {
		return c.out.start()
	}
	return nil
}

// ownChild tells whether the process is a child of this one: after an upgrade it is.
func ownChild(pid int) bool {
	var si unix.Siginfo
	return unix.Waitid(unix.P_PID, pid, &si, unix.WEXITED|unix.WNOHANG|unix.WNOWAIT, nil) == nil
}
