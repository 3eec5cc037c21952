package server

import (
	"context"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/executor"
	"github.com/orlop-io/orlop/internal/platform/keeper"
	"github.com/orlop-io/orlop/internal/platform/keeper/wire"
)

// execProcess is one more process in a container. Its streams are the client's; here
// is only its end.
type execProcess struct {
	mu    sync.Mutex
	pidfd *os.File
	exit  keeper.Exit
	done  chan struct{}
}

func (s *Server) opExec(ctx context.Context, _ *client, f *wire.Frame) (any, []*os.File, error) {
	var r keeper.ExecRequest
	if err := f.Decode(&r); err != nil {
		return nil, nil, err
	}
	if r.Process == nil || len(r.Process.Args) == 0 {
		return nil, nil, errs.New(errs.Invalid, "exec in container %s: no command is given", r.ID)
	}
	if len(r.Streams) != len(f.Files) {
		return nil, nil, errs.New(errs.Invalid, "exec: %d descriptors for the streams %q", len(f.Files), r.Streams)
	}
	c, err := s.find(r.ID)
	if err != nil {
		return nil, nil, err
	}
	spec, err := c.spec()
	if err != nil {
		return nil, nil, err
	}
	c.mu.Lock()
	state := c.rec.Status
	var pidfd *os.File
	if c.pidfd != nil {
		pidfd, err = duplicate(c.pidfd)
	}
	c.mu.Unlock()
	if err != nil {
		return nil, nil, err
	}
	if pidfd == nil || state.State != keeper.Running {
		if pidfd != nil {
			pidfd.Close()
		}
		return nil, nil, errs.New(errs.FailedPrecondition, "container %s is %s; a command can be run only in a running one", r.ID, state.State)
	}
	defer pidfd.Close()
	conf := executor.ExecConfig{PID: state.PID, PIDFD: pidfd, Process: r.Process, Cgroup: c.group}
	if spec.OCI.Linux != nil {
		conf.Seccomp = spec.OCI.Linux.Seccomp
	}
	for i, name := range r.Streams {
		switch name {
		case 'i':
			conf.Stdin = f.Files[i]
		case 'o':
			conf.Stdout = f.Files[i]
		case 'e':
			conf.Stderr = f.Files[i]
		}
	}
	p, err := s.exec.Exec(ctx, conf)
	if err != nil {
		return nil, nil, err
	}
	defer p.Close()
	e := &execProcess{done: make(chan struct{})}
	if e.pidfd, err = duplicate(p.PIDFD()); err != nil {
		return nil, nil, err
	}
	if err := p.Start(ctx); err != nil {
		e.pidfd.Close()
		if t := p.Console(); t != nil {
			t.Close()
		}
		return nil, nil, err
	}
	s.mu.Lock()
	s.nextExec++
	id := s.nextExec
	s.execs[id] = e
	s.mu.Unlock()
	if err := s.poll.watch(int(e.pidfd.Fd()), unix.EPOLLIN, func(uint32) { e.onExit(s) }); err != nil {
		return nil, nil, err
	}
	var files []*os.File
	if t := p.Console(); t != nil {
		files = []*os.File{t}
	}
	return keeper.ExecReply{Exec: id, PID: p.PID()}, files, nil
}

func (e *execProcess) onExit(s *Server) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.pidfd == nil {
		return
	}
	x, err := reap(e.pidfd, false)
	if err != nil {
		s.log.Warn("the end of a process could not be read", "error", err)
		x.Code = 255
	}
	s.poll.forget(int(e.pidfd.Fd()))
	e.pidfd.Close()
	e.pidfd, e.exit = nil, x
	close(e.done)
}

func (s *Server) findExec(id uint64) (*execProcess, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.execs[id]
	if e == nil {
		return nil, errs.New(errs.NotFound, "process %d does not exist, or its end was asked for before", id)
	}
	return e, nil
}

// execWait returns the end and forgets the process.
func (s *Server) execWait(ctx context.Context, id uint64) (any, error) {
	e, err := s.findExec(id)
	if err != nil {
		return nil, err
	}
	select {
	case <-e.done:
	case <-ctx.Done():
		// The client is gone, and nobody else will ask.
		go func() { <-e.done; s.forgetExec(id) }()
		return nil, ctx.Err()
	}
	s.forgetExec(id)
	return e.exit, nil
}

func (s *Server) forgetExec(id uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.execs, id)
}

func (s *Server) execSignal(_ context.Context, r keeper.ExecSignal) (any, error) {
	e, err := s.findExec(r.Exec)
	if err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.pidfd == nil {
		return nil, nil
	}
	if err := unix.PidfdSendSignal(int(e.pidfd.Fd()), unix.Signal(r.Signal), nil, 0); err != nil && err != unix.ESRCH {
		return nil, err
	}
	return nil, nil
}
