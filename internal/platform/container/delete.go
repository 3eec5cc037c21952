package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/fault"
	"github.com/orlop-io/orlop/internal/platform/executor"
	"github.com/orlop-io/orlop/internal/platform/pidfd"
)

var (
	afterKilled       = fault.New("container.delete.processes-ended")
	afterGroupRemoved = fault.New("container.delete.cgroup-removed")
	afterHooks        = fault.New("container.delete.hooks-run")
	afterRecordGone   = fault.New("container.delete.record-removed")
)

// endWait is how long Delete waits for a process that it has killed: the kernel may have
// to write back what it maps, or wait for a server of NFS.
const endWait = 10 * time.Second

// lostWait is how long it waits for a process whose creator was killed.
const lostWait = 2 * time.Second

// Delete takes a container away that has ended or was never started; with force also one that runs.
// What a killed Create or Delete left is a container that has ended. A container that is
// not there is errs.NotFound.
func (s *Store) Delete(ctx context.Context, id string, force bool) error {
	if err := checkID(id); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*endWait)
	defer cancel()
	c := &Container{store: s, dir: s.path(id)}
	lock, err := acquire(ctx, c.dir)
	if err != nil {
		if errors.Is(err, errs.NotFound) {
			return errs.New(errs.NotFound, "%s: container does not exist", id)
		}
		return err
	}
	c.lock = lock
	defer c.release()
	if err := c.read(); errors.Is(err, errs.NotFound) {
		// No intent, so nothing but the directory was made.
		return c.forget()
	} else if err != nil {
		return err
	}
	st, err := c.Status()
	if err != nil {
		return err
	}
	if !force && (st == Running || st == Paused) {
		return errs.New(errs.FailedPrecondition, "cannot delete container %s that is not stopped: %s", id, st)
	}
	return c.remove(ctx)
}

// remove ends what is left of the container and takes everything away, the record last.
func (c *Container) remove(ctx context.Context) error {
	if err := c.end(ctx); err != nil {
		return err
	}
	afterKilled.Hit()
	if err := c.removeGroup(ctx); err != nil {
		return err
	}
	if spec, err := c.Spec(); err == nil && spec.Linux != nil && spec.Linux.IntelRdt != nil {
		if err := executor.RemoveClass(c.rec.ID, spec.Linux.IntelRdt); err != nil {
			return err
		}
	}
	afterGroupRemoved.Hit()
	c.poststop(ctx)
	afterHooks.Hit()
	return c.forget()
}

// end kills the container's process and waits for its end.
func (c *Container) end(ctx context.Context) error {
	f, err := c.open()
	if err != nil || f == nil {
		return err
	}
	defer f.Close()
	if err := pidfd.Signal(f, unix.SIGKILL); err != nil {
		return fmt.Errorf("kill process %d: %w", c.rec.PID, err)
	}
	if g, err := c.group(); err == nil && g != nil {
		if frozen, err := g.Frozen(); err == nil && frozen {
			g.Kill(unix.SIGKILL) // lets a v1 group go as well
		}
	}
	return waitEnd(ctx, f, c.rec.PID)
}

// waitEnd waits for the end of a process that need not be our child.
func waitEnd(ctx context.Context, f *os.File, pid int) error {
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(endWait)
	}
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return errs.New(errs.Timeout, "process %d was killed but does not end: it waits in the kernel (see /proc/%d/stack)", pid, pid)
		}
		p := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLIN}}
		n, err := unix.Poll(p, int(left/time.Millisecond)+1)
		if err != nil && err != unix.EINTR {
			return fmt.Errorf("wait for process %d: %w", pid, err)
		}
		if n > 0 {
			return nil
		}
	}
}

// removeGroup ends what still runs in the container's group, and removes it. Of a create
// that was killed nothing runs, or no more in a moment, as the process ends with it: what
// stays in the group is somebody else's, who made use of the same path; of a restore it is
// what CRIU was making.
func (c *Container) removeGroup(ctx context.Context) error {
	g, err := c.group()
	if err != nil || g == nil {
		return err
	}
	if c.rec.PID == 0 && !c.made && !c.rec.Restore {
		ctx, cancel := context.WithTimeout(ctx, lostWait)
		defer cancel()
		if err := g.Remove(ctx); !errors.Is(err, errs.InUse) {
			return err
		}
		c.store.o.Log.Warn("a control group is left to the processes in it", "container", c.rec.ID, "cgroup", c.rec.Cgroup)
		return nil
	}
	if !g.Empty() {
		if err := g.Kill(unix.SIGKILL); err != nil {
			return err
		}
	}
	return g.Remove(ctx)
}

// forget removes the container's directory: the record after everything else, as it is
// what a next Delete goes by.
func (c *Container) forget() error {
	remove := func(call func(path string) error, name string) error {
		if err := call(c.dir + name); err != nil && err != unix.ENOENT {
			return fmt.Errorf("remove the record: remove %s: %w", c.dir+name, err)
		}
		return nil
	}
	for _, name := range []string{"/gate", "/notify/notify.sock", "/notify/", "/root/", "/seccomp", "/config.json", "/state.tmp", "/state.json"} {
		call := unix.Unlink
		if strings.HasSuffix(name, "/") {
			call = unix.Rmdir
		}
		if err := remove(call, name); err != nil {
			return err
		}
	}
	afterRecordGone.Hit()
	return remove(unix.Rmdir, "")
}

// Remove deletes a container that this process created and waited for.
func (c *Container) Remove(ctx context.Context) error {
	if err := c.hold(ctx); err != nil {
		if errors.Is(err, errs.NotFound) {
			return nil // somebody else did
		}
		return err
	}
	defer c.release()
	return c.remove(ctx)
}
