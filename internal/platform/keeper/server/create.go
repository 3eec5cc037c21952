package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/fault"
	"github.com/orlop-io/orlop/internal/platform/executor"
	"github.com/orlop-io/orlop/internal/platform/keeper"
	"github.com/orlop-io/orlop/internal/platform/keeper/wire"
)

var (
	faultCreateIntent  = fault.New("keeper.create.intent-recorded")
	faultCreateStreams = fault.New("keeper.create.streams-made")
	faultCreateGroup   = fault.New("keeper.create.cgroup-made")
	faultCreateCloned  = fault.New("keeper.create.cloned")
	faultCreateDone    = fault.New("keeper.create.recorded")
	faultStartIntent   = fault.New("keeper.start.intent-recorded")
	faultStartOpened   = fault.New("keeper.start.gate-opened")
	faultStartDone     = fault.New("keeper.start.recorded")
	faultDeleteIntent  = fault.New("keeper.delete.intent-recorded")
	faultDeleteGroup   = fault.New("keeper.delete.cgroup-removed")
	faultDeleteDone    = fault.New("keeper.delete.files-removed")
)

// idForm keeps ids harmless as names of directories.
var idForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$`)

func (s *Server) opCreate(ctx context.Context, _ *client, f *wire.Frame) (any, []*os.File, error) {
	spec, unlock, err := s.begin(ctx, f)
	if err != nil {
		return nil, nil, err
	}
	defer unlock()
	if _, err := s.find(spec.ID); err == nil {
		return nil, nil, nil
	}
	_, err = s.create(ctx, spec, f.Body)
	return nil, nil, err
}

func (s *Server) opRun(ctx context.Context, _ *client, f *wire.Frame) (any, []*os.File, error) {
	spec, unlock, err := s.begin(ctx, f)
	if err != nil {
		return nil, nil, err
	}
	defer unlock()
	c, err := s.find(spec.ID)
	made := err != nil
	if made {
		if c, err = s.create(ctx, spec, f.Body); err != nil {
			return nil, nil, err
		}
	}
	started, err := c.start(ctx)
	if err != nil && made {
		s.discard(c)
	}
	return started, nil, err
}

// begin decodes and locks.
func (s *Server) begin(ctx context.Context, f *wire.Frame) (spec keeper.Spec, unlock func(), err error) {
	if err := f.Decode(&spec); err != nil {
		return spec, nil, err
	}
	if !idForm.MatchString(spec.ID) {
		return spec, nil, errs.New(errs.Invalid, "%q cannot be a container's id: use letters, digits, '_', '.', '-', at most 128", spec.ID)
	}
	if spec.OCI == nil {
		return spec, nil, errs.New(errs.Invalid, "container %s has no specification", spec.ID)
	}
	unlock, err = s.locks.Lock(ctx, spec.ID)
	return spec, unlock, err
}

// create makes the container and leaves it at the gate. If it fails nothing is left.
func (s *Server) create(ctx context.Context, spec keeper.Spec, raw []byte) (_ *container, err error) {
	c := &container{s: s, dir: s.dir(spec.ID), exited: make(chan struct{}), child: true}
	c.rec = record{
		Status: keeper.Status{ID: spec.ID, State: keeper.Creating, Cgroup: spec.Cgroup, CreatedAt: time.Now(), Labels: spec.Labels},
		Log:    spec.Log, Stdin: spec.Stdin, StdinOnce: spec.StdinOnce,
		Terminal: spec.OCI.Process != nil && spec.OCI.Process.Terminal && !spec.Pause,
	}
	defer func() {
		if err != nil {
			s.discard(c)
		}
	}()
	if err := os.Mkdir(c.dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	if err := c.save(); err != nil {
		return nil, err
	}
	faultCreateIntent.Hit()
	// The request itself is what is kept: exec and inspection read it when they need it.
	if err := os.WriteFile(filepath.Join(c.dir, "spec.json"), raw, 0o600); err != nil {
		return nil, err
	}
	if err := c.openStreams(); err != nil {
		return nil, err
	}
	faultCreateStreams.Hit()
	var res *specs.LinuxResources
	if spec.OCI.Linux != nil {
		res = spec.OCI.Linux.Resources
	}
	if c.group, err = s.cg.Create(spec.Cgroup, res); err != nil {
		return nil, err
	}
	faultCreateGroup.Hit()
	stdio, err := c.theirEnds()
	if err != nil {
		return nil, err
	}
	p, err := s.exec.Create(ctx, executor.Config{
		ID: spec.ID, Spec: spec.OCI, Rootfs: spec.Rootfs, Cgroup: c.group, Pause: spec.Pause,
		Stdin: stdio[0], Stdout: stdio[1], Stderr: stdio[2],
	})
	closeAll(stdio[:])
	if err != nil {
		return nil, err
	}
	faultCreateCloned.Hit()
	c.gate = p
	if c.pidfd, err = duplicate(p.PIDFD()); err != nil {
		return nil, err
	}
	if t := p.Console(); t != nil {
		if err := unix.SetNonblock(int(t.Fd()), true); err != nil {
			return nil, err
		}
		c.out.terminal = t
	}
	c.rec.Status.State, c.rec.Status.PID = keeper.Created, p.PID()
	if c.rec.PIDStart, err = startTime(p.PID()); err != nil {
		return nil, err
	}
	if err := c.save(); err != nil {
		return nil, err
	}
	faultCreateDone.Hit()
	if err := c.out.start(); err != nil {
		return nil, err
	}
	if err := c.watchExit(); err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.containers[spec.ID] = c
	s.mu.Unlock()
	s.hold(c)
	return c, nil
}

func (s *Server) start(ctx context.Context, id string) (keeper.Started, error) {
	unlock, err := s.locks.Lock(ctx, id)
	if err != nil {
		return keeper.Started{}, err
	}
	defer unlock()
	c, err := s.find(id)
	if err != nil {
		return keeper.Started{}, err
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
		return keeper.Started{}, errs.New(errs.FailedPrecondition, "container %s is %s; only a created one can start", st.ID, st.State)
	}
	// From here a keeper that dies leaves a process that may or may not run the
	// program: its successor takes it for one that runs, and sees its end if not.
	c.rec.Status.State, c.rec.Status.StartedAt = keeper.Running, time.Now()
	started := keeper.Started{PID: st.PID, At: c.rec.Status.StartedAt}
	err := c.save()
	c.mu.Unlock()
	if err != nil {
		return keeper.Started{}, err
	}
	faultStartIntent.Hit()
	err = gate.Start(ctx)
	faultStartOpened.Hit()
	c.mu.Lock()
	c.gate = nil
	if err != nil && c.rec.Status.Exit == nil {
		// The executor has reaped it.
		c.child = false
		c.ended(keeper.Exit{Code: 128, Known: true, At: time.Now()})
	}
	c.mu.Unlock()
	gate.Close()
	faultStartDone.Hit()
	if err != nil {
		c.out.finish()
		return keeper.Started{}, err
	}
	c.s.publish(keeper.Event{Type: "started", ID: st.ID, PID: st.PID})
	return started, nil
}

// discard removes a container that could not be made, or not be started.
func (s *Server) discard(c *container) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	s.mu.Lock()
	delete(s.containers, c.id())
	s.mu.Unlock()
	c.mu.Lock()
	if c.pidfd != nil && c.rec.Status.Exit == nil {
		unix.PidfdSendSignal(int(c.pidfd.Fd()), unix.SIGKILL, nil, 0)
		s.poll.forget(int(c.pidfd.Fd()))
		if c.child {
			reap(c.pidfd, true)
		}
	}
	c.mu.Unlock()
	c.close()
	if err := s.remove(ctx, c); err != nil {
		s.log.Error("what is left of a container could not be removed", "container", c.id(), "error", err)
	}
	s.unhold(c.id())
}

// remove removes control group and files.
func (s *Server) remove(ctx context.Context, c *container) error {
	g := c.group
	if g == nil && c.rec.Status.Cgroup != "" {
		var err error
		if g, err = s.cg.Load(c.rec.Status.Cgroup); err != nil && !errors.Is(err, errs.NotFound) {
			return err
		}
	}
	if g != nil {
		if err := g.Kill(unix.SIGKILL); err != nil && !errors.Is(err, errs.NotFound) {
			return err
		}
		if err := g.Remove(ctx); err != nil {
			return err
		}
	}
	faultDeleteGroup.Hit()
	if err := os.RemoveAll(c.dir); err != nil {
		return err
	}
	faultDeleteDone.Hit()
	return nil
}

func (s *Server) delete(ctx context.Context, id string) error {
	unlock, err := s.locks.Lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	c, err := s.find(id)
	if err != nil {
		return nil // gone already
	}
	c.mu.Lock()
	switch c.rec.Status.State {
	case keeper.Running, keeper.Paused:
		c.mu.Unlock()
		return errs.New(errs.InUse, "container %s runs; stop it first", id)
	case keeper.Created:
		c.mu.Unlock()
		s.discard(c)
		return nil
	}
	c.rec.Deleting = true
	err = c.save()
	c.mu.Unlock()
	if err != nil {
		return err
	}
	faultDeleteIntent.Hit()
	c.close()
	if err := s.remove(ctx, c); err != nil {
		return fmt.Errorf("delete container %s: %w", id, err)
	}
	s.mu.Lock()
	delete(s.containers, id)
	s.mu.Unlock()
	s.unhold(id)
	return nil
}

// spec reads the specification that the container was made from.
func (c *container) spec() (*keeper.Spec, error) {
	raw, err := os.ReadFile(filepath.Join(c.dir, "spec.json"))
	if err != nil {
		return nil, err
	}
	s := new(keeper.Spec)
	return s, json.Unmarshal(raw, s)
}
