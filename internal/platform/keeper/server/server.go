// Package server is the keeper process: the parent of every container of the node.
//
// It keeps no state that it could not read again: each container has a directory on
// tmpfs with its record, its specification, its FIFOs and the journal of its log
// (docs/design/keeper.md). A keeper that starts reads them and goes on; containers
// never notice.
package server

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/keylock"
	"github.com/orlop-io/orlop/internal/platform/cgroup"
	"github.com/orlop-io/orlop/internal/platform/executor"
	"github.com/orlop-io/orlop/internal/platform/keeper"
	"github.com/orlop-io/orlop/internal/platform/keeper/wire"
)

// Options say where a keeper lives.
type Options struct {
	Dir    string // on tmpfs: socket, lock, containers
	Init   string // the orlop-init binary
	Driver cgroup.Driver
	Build  string // version, told to clients
	Log    *slog.Logger
}

// Server is a keeper.
type Server struct {
	o    Options
	log  *slog.Logger
	exec *executor.Executor
	cg   *cgroup.Host
	poll *poller
	lock *os.File // held as long as the process lives

	upgraded bool // this process was another binary before

	locks keylock.Locks // by container: one mutating operation at a time

	// gate is held for reading by every operation, and for writing by an upgrade.
	gate sync.RWMutex

	mu         sync.Mutex
	containers map[string]*container
	execs      map[uint64]*execProcess
	nextExec   uint64
	clients    map[*client]struct{}
	listener   *net.UnixListener
	stopping   chan struct{}
}

// SocketPath is where the keeper of the directory listens.
func SocketPath(dir string) string { return filepath.Join(dir, "keeper.sock") }

// Open takes the directory's lock (errs.InUse where another keeper has it), reads
// what an earlier keeper has left, and goes on with it.
func Open(o Options) (_ *Server, err error) {
	s := &Server{
		o: o, log: o.Log,
		containers: make(map[string]*container), execs: make(map[uint64]*execProcess),
		clients: make(map[*client]struct{}), stopping: make(chan struct{}),
	}
	if err := os.MkdirAll(filepath.Join(o.Dir, "containers"), 0o700); err != nil {
		return nil, err
	}
	if s.inherit(); s.lock == nil {
		if s.lock, err = takeLock(filepath.Join(o.Dir, "lock")); err != nil {
			return nil, err
		}
	}
	if s.exec, err = executor.New(executor.Options{InitPath: o.Init, Log: o.Log}); err != nil {
		return nil, err
	}
	if s.cg, err = cgroup.Open(cgroup.Options{Driver: o.Driver}); err != nil {
		return nil, err
	}
	if s.poll, err = newPoller(); err != nil {
		return nil, err
	}
	go s.poll.run()
	if err := s.recover(); err != nil {
		return nil, err
	}
	s.inheritTerminals()
	if s.upgraded {
		s.adoptStrays()
	}
	return s, nil
}

const (
	lockTries = 200
	lockPause = 5 * time.Millisecond
)

// takeLock locks the file for the life of the process. Its descriptor is inherited
// by an upgrade, which thereby keeps the lock.
func takeLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	// A keeper that was just killed lets go of its lock a moment after its socket.
	for try := 0; ; try++ {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err != unix.EWOULDBLOCK || try == lockTries {
			break
		}
		time.Sleep(lockPause)
	}
	if err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errs.New(errs.InUse, "another keeper has %s", filepath.Dir(path))
		}
		return nil, err
	}
	return f, nil
}

// Serve answers clients until Shutdown.
func (s *Server) Serve() error {
	path := SocketPath(s.o.Dir)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	old := unix.Umask(0o177)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	unix.Umask(old)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.listener = l
	s.mu.Unlock()
	s.log.Info("ready", "socket", path, "containers", len(s.containers))
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			select {
			case <-s.stopping:
				return nil
			default:
			}
			if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ECONNABORTED) {
				s.log.Error("accept", "error", err)
				continue
			}
			return err
		}
		go s.serve(c)
	}
}

// client is one connection.
type client struct {
	conn   *wire.Conn
	events bool // guarded by Server.mu
	hold   bool // guarded by Server.mu
}

func (s *Server) serve(nc *net.UnixConn) {
	c := &client{conn: wire.NewConn(nc)}
	defer c.conn.Close()
	if uid, err := c.conn.PeerUID(); err != nil || uid != 0 && int(uid) != os.Geteuid() {
		s.log.Warn("a connection was refused", "uid", uid, "error", err)
		return
	}
	s.mu.Lock()
	s.clients[c] = struct{}{}
	s.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	defer func() {
		cancel()
		s.mu.Lock()
		delete(s.clients, c)
		s.mu.Unlock()
	}()
	greeted := false
	for {
		f, err := c.conn.Receive()
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
				s.log.Warn("a connection was ended", "error", err)
			}
			return
		}
		if !greeted {
			var h keeper.Hello
			if f.Op != "hello" || f.Decode(&h) != nil || h.Version != wire.Version {
				a := &wire.Frame{ID: f.ID}
				a.Fail(errs.New(errs.Unsupported, "the keeper speaks version %d; this client says %q, version %d", wire.Version, f.Op, h.Version))
				f.CloseFiles()
				c.conn.Send(a)
				return
			}
			greeted = true
			a := &wire.Frame{ID: f.ID}
			a.Encode(keeper.HelloReply{Version: wire.Version, PID: os.Getpid(), Build: s.o.Build})
			f.CloseFiles()
			if c.conn.Send(a) != nil {
				return
			}
			continue
		}
		if f.ID == 0 {
			f.CloseFiles()
			return
		}
		if f.Op == "adopt" || f.Op == "hold" || f.Op == "events" {
			s.answer(ctx, c, f) // in the order in which they come
			continue
		}
		go s.answer(ctx, c, f)
	}
}

// answer carries out one request. A panic ends that request only.
func (s *Server) answer(ctx context.Context, c *client, f *wire.Frame) {
	a := &wire.Frame{ID: f.ID}
	defer func() {
		if p := recover(); p != nil {
			s.log.Error("a request panicked", "op", f.Op, "panic", p)
			a = &wire.Frame{ID: f.ID}
			a.Fail(errs.New(errs.Internal, "the keeper failed in %s; see its log", f.Op))
		}
		f.CloseFiles()
		if err := c.conn.Send(a); err != nil {
			s.log.Debug("an answer was not taken", "op", f.Op, "error", err)
		}
		a.CloseFiles()
	}()
	op, ok := operations[f.Op]
	if !ok {
		a.Fail(errs.New(errs.Unsupported, "the keeper does not know the request %q", f.Op))
		return
	}
	if !op.waits {
		s.gate.RLock()
		defer s.gate.RUnlock()
	}
	reply, files, err := op.do(s, ctx, c, f)
	if err != nil {
		for _, file := range files {
			file.Close()
		}
		a.Fail(err)
		return
	}
	a.Files = files
	if err := a.Encode(reply); err != nil {
		a.Fail(err)
	}
}

// operation carries out a request. It takes files out of the frame by clearing
// f.Files; the files that it returns are sent and then closed.
type operation struct {
	do    func(s *Server, ctx context.Context, c *client, f *wire.Frame) (reply any, files []*os.File, err error)
	waits bool // may take as long as it wants: does not hold up an upgrade
}

// on makes an operation of a function of a request of type R.
func on[R any](fn func(s *Server, ctx context.Context, r R) (any, error)) operation {
	return operation{do: func(s *Server, ctx context.Context, _ *client, f *wire.Frame) (any, []*os.File, error) {
		var r R
		if err := f.Decode(&r); err != nil {
			return nil, nil, err
		}
		reply, err := fn(s, ctx, r)
		return reply, nil, err
	}}
}

var operations map[string]operation

func init() {
	operations = map[string]operation{
		"create": {do: (*Server).opCreate},
		"run":    {do: (*Server).opRun},
		"start":  on(func(s *Server, ctx context.Context, r keeper.IDRequest) (any, error) { return s.start(ctx, r.ID) }),
		"delete": on(func(s *Server, ctx context.Context, r keeper.IDRequest) (any, error) { return nil, s.delete(ctx, r.ID) }),
		"signal": on((*Server).signal),
		"status": on((*Server).status),
		"list":   on(func(s *Server, _ context.Context, _ struct{}) (any, error) { return s.list(), nil }),
		"wait":   {do: (*Server).opWait, waits: true},
		"reopen-log": on(func(s *Server, _ context.Context, r keeper.IDRequest) (any, error) {
			return nil, s.with(r.ID, func(c *container) error { c.out.mu.Lock(); defer c.out.mu.Unlock(); return c.out.log.reopen() })
		}),
		"update": on((*Server).update),
		"pause": on(func(s *Server, ctx context.Context, r keeper.IDRequest) (any, error) {
			return nil, s.freeze(ctx, r.ID, true)
		}),
		"resume": on(func(s *Server, ctx context.Context, r keeper.IDRequest) (any, error) {
			return nil, s.freeze(ctx, r.ID, false)
		}),
		"exec": {do: (*Server).opExec},
		"exec-wait": {waits: true, do: func(s *Server, ctx context.Context, _ *client, f *wire.Frame) (any, []*os.File, error) {
			var r keeper.ExecSignal
			if err := f.Decode(&r); err != nil {
				return nil, nil, err
			}
			x, err := s.execWait(ctx, r.Exec)
			return x, nil, err
		}},
		"exec-signal": on((*Server).execSignal),
		"attach":      {do: (*Server).opAttach},
		"stdin":       {do: (*Server).opStdin},
		"close-stdin": on(func(s *Server, _ context.Context, r keeper.IDRequest) (any, error) {
			return nil, s.with(r.ID, s.closeStdin)
		}),
		"resize":   on((*Server).resize),
		"events":   {do: (*Server).opEvents},
		"hold":     {do: (*Server).opHold},
		"adopt":    {do: (*Server).opAdopt},
		"upgrade":  {do: (*Server).opUpgrade, waits: true},
		"shutdown": {do: (*Server).opShutdown, waits: true},
	}
}

// find returns the container, or errs.NotFound.
func (s *Server) find(id string) (*container, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.containers[id]
	if c == nil {
		return nil, errs.New(errs.NotFound, "container %s does not exist", id)
	}
	return c, nil
}

func (s *Server) with(id string, fn func(*container) error) error {
	c, err := s.find(id)
	if err != nil {
		return err
	}
	return fn(c)
}

func (s *Server) list() []keeper.Status {
	s.mu.Lock()
	all := make([]*container, 0, len(s.containers))
	for _, c := range s.containers {
		all = append(all, c)
	}
	s.mu.Unlock()
	list := make([]keeper.Status, 0, len(all))
	for _, c := range all {
		list = append(list, c.status())
	}
	return list
}

func (s *Server) status(_ context.Context, r keeper.IDRequest) (any, error) {
	c, err := s.find(r.ID)
	if err != nil {
		return nil, err
	}
	return c.status(), nil
}

// publish tells every client that asked for events.
func (s *Server) publish(e keeper.Event) {
	raw, err := json.Marshal(e)
	if err != nil {
		return
	}
	for _, c := range s.listening(func(c *client) bool { return c.events }) {
		if err := c.conn.Send(&wire.Frame{Op: "event", Body: raw}); err != nil {
			s.log.Debug("an event was not taken", "error", err)
		}
	}
}

func (s *Server) listening(want func(*client) bool) (list []*client) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.clients {
		if want(c) {
			list = append(list, c)
		}
	}
	return list
}

func (s *Server) opEvents(_ context.Context, c *client, _ *wire.Frame) (any, []*os.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.events = true
	return nil, nil, nil
}

func (s *Server) opShutdown(_ context.Context, _ *client, _ *wire.Frame) (any, []*os.File, error) {
	s.gate.Lock()
	defer s.gate.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.containers); n > 0 {
		return nil, nil, errs.New(errs.InUse, "the keeper has %d containers; delete them first", n)
	}
	select {
	case <-s.stopping:
	default:
		close(s.stopping)
		os.Remove(SocketPath(s.o.Dir))
		s.listener.Close()
	}
	return nil, nil, nil
}
