package container

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/platform/cgroup"
	"github.com/orlop-io/orlop/internal/platform/pidfd"
)

// Status is where a container is in its life.
type Status string

// Those of the runtime specification, and paused.
const (
	Creating Status = "creating"
	Created  Status = "created"
	Running  Status = "running"
	Paused   Status = "paused"
	Stopped  Status = "stopped"
)

// State is what the state command tells of a container, field by field as runc does.
type State struct {
	OCIVersion  string            `json:"ociVersion"`
	ID          string            `json:"id"`
	PID         int               `json:"pid"` // 0: it has ended
	Status      Status            `json:"status"`
	Bundle      string            `json:"bundle"`
	Rootfs      string            `json:"rootfs"`
	Created     time.Time         `json:"created"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Owner       string            `json:"owner"`
}

// State asks the kernel for the container's state.
func (c *Container) State() (State, error) {
	st, err := c.Status()
	if err != nil {
		return State{}, err
	}
	s := State{
		OCIVersion: c.rec.OCIVersion, ID: c.rec.ID, PID: c.rec.PID, Status: st, Bundle: c.rec.Bundle, Rootfs: c.rec.Rootfs,
		Created: c.rec.Created, Annotations: c.rec.Annotations, Owner: userName(c.rec.Owner),
	}
	if st == Stopped {
		s.PID = 0
	}
	return s, nil
}

// Status asks the kernel where the container is in its life.
func (c *Container) Status() (Status, error) {
	st, f, _, err := c.look()
	if f != nil {
		f.Close()
	}
	return st, err
}

// look is Status, with the process and the group by which it was found out: nil where they are
// not there.
func (c *Container) look() (st Status, f *os.File, g *cgroup.Group, err error) {
	if c.rec.PID == 0 {
		if held(c.dir) {
			return Creating, nil, nil, nil
		}
		return Stopped, nil, nil, nil // whoever created it was killed
	}
	if f, err = c.open(); err != nil || f == nil {
		return Stopped, nil, nil, err
	}
	waiting, err := c.waiting()
	if err == nil {
		g, err = c.group()
	}
	if err != nil {
		f.Close()
		return "", nil, nil, err
	}
	if g != nil {
		// A group that is just going away is not frozen.
		if frozen, err := g.Frozen(); err == nil && frozen {
			return Paused, f, g, nil
		}
	}
	if waiting {
		return Created, f, g, nil
	}
	return Running, f, g, nil
}

// open returns a descriptor of the container's process, nil if it has ended: reaped or
// not, there is nothing left in it to run.
func (c *Container) open() (*os.File, error) {
	if c.rec.PID == 0 || c.rec.Boot != bootID() {
		return nil, nil
	}
	f, err := pidfd.Open(c.rec.PID, c.rec.Start)
	if err == unix.ESRCH || errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look at process %d: %w", c.rec.PID, err)
	}
	if pidfd.Poll(f)&(unix.POLLIN|unix.POLLHUP) != 0 {
		f.Close()
		return nil, nil
	}
	return f, nil
}

// waiting tells whether the process waits at the gate. Start takes the gate away when it
// has opened it; where it was killed before it could, the process tells by what it
// executes.
func (c *Container) waiting() (bool, error) {
	if err := unix.Access(c.dir+"/gate", unix.F_OK); err == unix.ENOENT {
		return false, nil
	} else if err != nil {
		return false, fmt.Errorf("look at the gate: %w", err)
	}
	exe, err := os.Readlink("/proc/" + strconv.Itoa(c.rec.PID) + "/exe")
	if err != nil {
		// Not to be seen by who is not root: then the gate's word counts.
		return true, nil
	}
	return strings.HasPrefix(exe, "/memfd:orlop-init"), nil
}
