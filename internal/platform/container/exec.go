package container

import (
	"context"

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
	// Detach tells that the caller does not stay.
	Detach bool
	// IgnorePaused starts it in a frozen container, where it waits frozen too.
	IgnorePaused bool
	// Cgroup is a group below the container's that it joins instead.
	Cgroup       string
	NoNewKeyring bool
}

// Exec makes a process in the container and returns with it waiting for its Start.
func (c *Container) Exec(ctx context.Context, o ExecOptions) (_ *executor.Process, err error) {
	if err := checkConsole(o.Process, o.ConsoleSocket, o.Detach); err != nil {
		return nil, err
	}
	st, err := c.Status()
	if err != nil {
		return nil, err
	}
	switch {
	case st == Stopped || st == Creating:
		return nil, errs.New(errs.FailedPrecondition, "cannot exec in container %s: it is %s", c.rec.ID, st)
	case st == Paused && !o.IgnorePaused:
		return nil, errs.New(errs.FailedPrecondition, "cannot exec in container %s: it is paused (use --ignore-paused to override)", c.rec.ID)
	}
	spec, err := c.Spec()
	if err != nil {
		return nil, err
	}
	of, err := c.open()
	if err != nil {
		return nil, err
	}
	if of == nil {
		return nil, errs.New(errs.FailedPrecondition, "cannot exec in container %s: it has stopped", c.rec.ID)
	}
	defer of.Close()
	g, err := c.group()
	if err != nil {
		return nil, err
	}
	e, err := executor.New(executor.Options{InitPath: c.store.o.InitPath, Log: c.store.o.Log})
	if err != nil {
		return nil, err
	}
	defer e.Close()
	cfg := executor.ExecConfig{
		PID: c.rec.PID, PIDFD: of, Process: o.Process, Bundle: c.rec.Bundle, Cgroup: g,
		Stdin: o.In, Stdout: o.Out, Stderr: o.Err, ExtraFiles: o.Extra, NoNewKeyring: o.NoNewKeyring,
	}
	if spec.Linux != nil {
		cfg.Seccomp = spec.Linux.Seccomp
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
		if err := SendConsole(o.ConsoleSocket, p.Console()); err != nil {
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
