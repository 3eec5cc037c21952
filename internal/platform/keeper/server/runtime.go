package server

import (
	"context"
	"os"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/platform/cgroup"
	"github.com/orlop-io/orlop/internal/platform/executor"
	"github.com/orlop-io/orlop/internal/platform/keeper"
	"github.com/orlop-io/orlop/internal/platform/pidfd"
)

// runtime makes containers and further processes in them. It is all that differs between
// our own executor and an OCI runtime's command line, and where a sandbox of another
// kind would be added. Everything else is the keeper's and the same for all: records, streams,
// terminals, logs, ends, the control group's directory, SIGKILL.
//
// A container has the same one for life, which its record names. Methods are called with the
// container's lock of Server.locks held, except exec, signal and update, and may take as long
// as their context lets them. They are called again after a keeper was killed in them.
type runtime interface {
	// group makes the control group, with its limits unless create sets them.
	group(path string, res *specs.LinuxResources) (*cgroup.Group, error)
	// create makes the container and returns its first process, which waits for its Start.
	// If it fails no process of it may go on; what else there is goes with remove.
	create(ctx context.Context, c *container, spec *keeper.MakeRequest, stdio [3]*os.File) (process, error)
	// exec makes a further process, which waits for its Start if the runtime can do that and
	// runs already if not. first is a descriptor of the container's own.
	exec(ctx context.Context, c *container, first *os.File, r *keeper.ExecRequest, stdio [3]*os.File) (process, error)
	// signal sends a signal other than SIGKILL to the first process or, with all, to every one.
	signal(ctx context.Context, c *container, sig unix.Signal, all bool) error
	update(ctx context.Context, c *container, res *specs.LinuxResources) error
	freeze(ctx context.Context, c *container, on bool) error
	// frozen tells whether the container stands still, where a keeper was killed that changed it.
	frozen(ctx context.Context, c *container) (bool, error)
	// settle waits until it is certain what came of the start of a container whose keeper was killed
	// in it: its program runs, or its process has ended, and how, or (false, nil) it waits for a Start
	// that will never come. An error, after ctx too, is that nobody can tell.
	settle(ctx context.Context, c *container) (runs bool, end *keeper.Exit, err error)
	// remove takes away whatever create has made besides control group and process, which have
	// been killed. It is repeated until it succeeds.
	remove(ctx context.Context, c *container) error
}

// process is one that a runtime has made: *executor.Process is one.
type process interface {
	PID() int
	// PIDFD belongs to the process until Close.
	PIDFD() *os.File
	// Console is the master of its terminal, nil without one. It is the caller's to close.
	Console() *os.File
	// Start lets the program be executed.
	Start(ctx context.Context) error
	// Close lets go of descriptors. A process that waits for its Start ends, or goes with remove.
	Close() error
}

// runtime returns the container's.
func (c *container) runtime() runtime {
	if c.rec.Runtime != nil {
		return oci{c.s}
	}
	return own{c.s}
}

// own is the executor.
type own struct{ s *Server }

func (o own) group(path string, res *specs.LinuxResources) (*cgroup.Group, error) {
	return o.s.cg.Create(path, res)
}

func (o own) create(ctx context.Context, c *container, spec *keeper.MakeRequest, stdio [3]*os.File) (process, error) {
	p, err := o.s.exec.Create(ctx, executor.Config{
		ID: spec.ID, Spec: spec.OCI, Rootfs: spec.Rootfs, Cgroup: c.group, Pause: spec.Pause,
		Stdin: stdio[0], Stdout: stdio[1], Stderr: stdio[2],
	})
	if err != nil {
		return nil, err // and not a process that is nil
	}
	return p, nil
}

func (o own) exec(ctx context.Context, c *container, first *os.File, r *keeper.ExecRequest, stdio [3]*os.File) (process, error) {
	c.mu.Lock()
	conf := executor.ExecConfig{PID: c.rec.Status.PID, PIDFD: first, Process: r.Process, Cgroup: c.group, Stdin: stdio[0], Stdout: stdio[1], Stderr: stdio[2]}
	c.mu.Unlock()
	var err error
	if conf.Seccomp, err = o.s.profile(c.rec.Seccomp); err != nil {
		return nil, err
	}
	p, err := o.s.exec.Exec(ctx, conf)
	if err != nil {
		return nil, err
	}
	return p, nil
}

func (o own) signal(_ context.Context, c *container, sig unix.Signal, all bool) error {
	c.mu.Lock()
	group := c.group
	if !all || group == nil {
		defer c.mu.Unlock() // the descriptor is open as long
		if c.pidfd == nil {
			return nil
		}
		return pidfd.Signal(c.pidfd, sig)
	}
	c.mu.Unlock()
	return group.Kill(sig)
}

func (o own) update(_ context.Context, c *container, res *specs.LinuxResources) error {
	g, err := c.controlGroup()
	if err != nil {
		return err
	}
	return g.Update(res)
}

func (o own) freeze(ctx context.Context, c *container, on bool) error {
	g, err := c.controlGroup()
	if err != nil {
		return err
	}
	if on {
		return g.Freeze(ctx)
	}
	return g.Thaw(ctx)
}

func (o own) frozen(_ context.Context, c *container) (bool, error) {
	g, err := c.controlGroup()
	if err != nil {
		return false, err
	}
	return g.Frozen()
}

// settle: init either executes the program or ends, at once.
func (o own) settle(ctx context.Context, c *container) (bool, *keeper.Exit, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		exe := readExe(c.rec.Status.PID)
		end, known, again, err := c.look()
		switch {
		case err == pidfd.ErrRuns:
			if exe != "" && !strings.HasPrefix(exe, initExe) {
				return true, nil, nil
			}
		case err != nil:
			return false, nil, err
		case !again: // else its parent has yet to reap it
			x := exitOf(end, known)
			return false, &x, nil
		}
		select {
		case <-time.After(settlePause): // and no thread waits
		case <-ctx.Done():
			return false, nil, ctx.Err()
		}
	}
}

// settlePause is between two looks at what init does.
const settlePause = time.Millisecond

func (o own) remove(context.Context, *container) error { return nil }
