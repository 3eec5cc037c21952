package server

import (
	"context"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/fault"
	"github.com/orlop-io/orlop/internal/platform/keeper"
	"github.com/orlop-io/orlop/internal/platform/pidfd"
)

var (
	faultExecCloned  = fault.New("keeper.exec.cloned")
	faultExecStarted = fault.New("keeper.exec.started")
)

// execProcess is one more process in a container. Its streams are the client's, who has
// a pidfd of it too; here is only its end.
type execProcess struct {
	owner *client // guarded by Server.mu; nil: nobody will ask
	id    uint64
	pid   int
	stray bool // in Server.strays

	mu    sync.Mutex
	pidfd *os.File
	exit  keeper.Exit
	done  chan struct{}
}

func (s *Server) opExec(ctx context.Context, cl *client, f *frame) (any, []*os.File, error) {
	var r keeper.ExecRequest
	if err := f.Decode(&r); err != nil {
		return nil, nil, err
	}
	if r.Process == nil || len(r.Process.Args) == 0 {
		return nil, nil, errs.New(errs.Invalid, "exec in container %s: no command is given", r.ID)
	}
	if err := wanted("exec", r.Streams, "ioe", f.Files); err != nil {
		return nil, nil, err
	}
	c, err := s.find(r.ID)
	if err != nil {
		return nil, nil, err
	}
	c.mu.Lock()
	state := c.rec.Status
	var first *os.File
	if c.pidfd != nil {
		first, err = duplicate(c.pidfd)
	}
	c.mu.Unlock()
	if err != nil {
		return nil, nil, err
	}
	if first != nil {
		defer first.Close()
	}
	if first == nil || state.State != keeper.Running {
		return nil, nil, errs.New(errs.FailedPrecondition, "container %s is %s; a command can be run only in a running one", r.ID, state.State)
	}
	if r.Process.OOMScoreAdj == nil {
		r.Process.OOMScoreAdj = &c.rec.OOMScore
	}
	var stdio [3]*os.File
	for i, name := range r.Streams {
		stdio[strings.IndexRune("ioe", name)] = f.Files[i]
	}
	s.births.RLock()
	defer s.births.RUnlock()
	p, err := c.runtime().exec(ctx, c, first, &r, stdio)
	if err != nil {
		return nil, nil, err
	}
	defer p.Close()
	faultExecCloned.Hit()
	var files []*os.File
	fail := func(err error) (any, []*os.File, error) {
		closeAll(files)
		if t := p.Console(); t != nil {
			t.Close()
		}
		return nil, nil, err
	}
	e := &execProcess{owner: cl, pid: p.PID(), done: make(chan struct{})}
	theirs, err := duplicate(p.PIDFD())
	if err == nil {
		files = append(files, theirs)
		e.pidfd, err = duplicate(p.PIDFD())
	}
	if err != nil {
		pidfd.Signal(p.PIDFD(), unix.SIGKILL)
		pidfd.Reap(p.PIDFD(), true)
		return fail(err)
	}
	started, _ := pidfd.StartTime(p.PID()) // it waits at the gate, and is ours to reap
	if err := p.Start(ctx); err != nil {
		pidfd.Signal(e.pidfd, unix.SIGKILL)
		pidfd.Reap(e.pidfd, true) // one that was killed before it began
		e.pidfd.Close()
		return fail(err)
	}
	faultExecStarted.Hit()
	s.mu.Lock()
	s.nextExec++
	e.id = s.nextExec
	s.execs[e.id] = e
	if _, there := s.clients[cl]; !there {
		e.owner = nil
	}
	s.mu.Unlock()
	if err := s.poll.watch(int(e.pidfd.Fd()), unix.EPOLLIN, func(uint32) { s.execEnded(e) }); err != nil {
		s.log.Error("the end of a process will not be noticed", "container", r.ID, "error", err)
	}
	if t := p.Console(); t != nil {
		files = append(files, t)
	}
	return keeper.ExecReply{Exec: e.id, PID: p.PID(), Started: started}, files, nil
}

// execEnded reaps the process.
func (s *Server) execEnded(e *execProcess) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.pidfd == nil {
		return
	}
	end, err := pidfd.Reap(e.pidfd, false)
	if err == pidfd.ErrRuns {
		s.poll.watch(int(e.pidfd.Fd()), unix.EPOLLIN, func(uint32) { s.execEnded(e) })
		return
	}
	if err != nil {
		s.log.Warn("the end of a process could not be read", "error", err)
	}
	e.exit = exitOf(end, err == nil)
	s.poll.forget(int(e.pidfd.Fd()))
	e.pidfd.Close()
	e.pidfd = nil
	close(e.done)
	s.mu.Lock()
	if e.stray {
		delete(s.strays, e.pid)
	} else if e.owner == nil {
		delete(s.execs, e.id)
	}
	s.mu.Unlock()
}

// execWait returns the end and forgets the process.
func (s *Server) opExecWait(ctx context.Context, cl *client, f *frame) (any, []*os.File, error) {
	var r keeper.ExecRef
	if err := f.Decode(&r); err != nil {
		return nil, nil, err
	}
	s.mu.Lock()
	e := s.execs[r.Exec]
	if e != nil && e.owner != cl {
		e = nil
	}
	s.mu.Unlock()
	if e == nil {
		return nil, nil, errs.New(errs.NotFound, "process %d does not exist, or its end was asked for before", r.Exec)
	}
	select {
	case <-e.done:
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
	s.mu.Lock()
	delete(s.execs, r.Exec)
	s.mu.Unlock()
	return e.exit, nil, nil
}

// disown is for a client that has gone: nobody will ask for its processes, which run on.
func (s *Server) disown(cl *client) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, e := range s.execs {
		if e.owner != cl {
			continue
		}
		e.owner = nil
		select {
		case <-e.done:
			delete(s.execs, id)
		default:
		}
	}
}
