package container

import (
	"context"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/executor"
	"github.com/orlop-io/orlop/internal/platform/pidfd"
)

// ExecOptions says how a further process of a container is made.
type ExecOptions struct {
	Stdio
	Process *specs.Process
	PIDFile string
	// PIDFDSocket is as in CreateOptions.
	PIDFDSocket string
	// Detach tells that the caller does not stay.
	Detach bool
	// IgnorePaused waits until a paused container is resumed.
	IgnorePaused bool
	// Cgroups are groups below the container's that it joins instead: one PATH, or any
	// number of CONTROLLER[,CONTROLLER...]:PATH.
	Cgroups      []string
	NoNewKeyring bool
	// ListenFDs are as in CreateOptions.
	ListenFDs int
}

// Exec makes a process in the container and returns with it waiting for its Start.
func (c *Container) Exec(ctx context.Context, o ExecOptions) (_ *executor.Process, err error) {
	if err := checkConsole(o.Process, o.ConsoleSocket, o.Detach); err != nil {
		return nil, err
	}
	pidfds, err := awaitsPIDFD(o.PIDFDSocket)
	if err != nil {
		return nil, err
	}
	if pidfds != nil {
		defer pidfds.Close()
	}
	st, of, own, err := c.look()
	for wait := time.Millisecond; err == nil && st == Paused && o.IgnorePaused; wait = min(2*wait, 50*time.Millisecond) {
		// A process that joined it would stand still before it could say that it is there.
		of.Close()
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil, context.Cause(ctx)
		case <-t.C:
		}
		st, of, own, err = c.look()
	}
	if err != nil {
		return nil, err
	}
	if of != nil {
		defer of.Close()
	}
	switch st {
	case Stopped, Creating:
		return nil, errs.New(errs.FailedPrecondition, "cannot exec in container %s: it is %s", c.rec.ID, st)
	case Paused:
		return nil, errs.New(errs.FailedPrecondition, "cannot exec in container %s: it is paused (use --ignore-paused to override)", c.rec.ID)
	}
	spec, err := c.further()
	if err != nil {
		return nil, err
	}
	filter, profile, err := c.filter()
	if err != nil {
		return nil, err
	}
	g, err := c.subgroup(own, o.Cgroups)
	if err != nil {
		return nil, err
	}
	e, err := executor.New(executor.Options{InitPath: c.store.o.InitPath, Once: true, Log: c.store.o.Log})
	if err != nil {
		return nil, err
	}
	defer e.Close()
	process := inherit(o.Process, o.ListenFDs)
	cfg := executor.ExecConfig{
		PID: c.rec.PID, PIDFD: of, Process: process, ID: c.rec.ID, Bundle: c.rec.Bundle, Annotations: c.rec.Annotations, Cgroup: g,
		Stdin: o.In, Stdout: o.Out, Stderr: o.Err, ExtraFiles: o.Extra, NoNewKeyring: o.NoNewKeyring,
		Seccomp: profile, Filter: filter, IntelRdt: spec.Linux.IntelRdt, Personality: spec.Linux.Personality, MemoryPolicy: spec.Linux.MemoryPolicy,
	}
	p, err := e.Exec(ctx, cfg)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			pidfd.Signal(p.PIDFD(), unix.SIGKILL)
			pidfd.Reap(p.PIDFD(), true)
			p.Close()
		}
	}()
	if o.ConsoleSocket != "" && p.Console() != nil {
		if err := sendConsole(o.ConsoleSocket, p.Console()); err != nil {
			return nil, err
		}
	}
	if pidfds != nil {
		if err := pidfds.send(pidfdFurther, p.PIDFD()); err != nil {
			return nil, err
		}
	}
	if o.PIDFile != "" {
		if err := WritePIDFile(o.PIDFile, p.PID()); err != nil {
			return nil, err
		}
	}
	return p, nil
}
