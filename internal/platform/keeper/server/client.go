package server

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/trace"
	"github.com/orlop-io/orlop/internal/platform/keeper"
	"github.com/orlop-io/orlop/internal/platform/keeper/wire"
)

const (
	// queue is how many frames may wait for a client that does not read before it is
	// dropped: a daemon that hangs must not hold up containers.
	queue = 1024
	// sendTimeout is for one frame.
	sendTimeout = 10 * time.Second
	// inFlight bounds the requests of one connection that are carried out at a time.
	inFlight = 256
)

// client is one connection.
type client struct {
	conn   *wire.Conn
	frames chan *frame
	gone   chan struct{}
	slots  chan struct{}
	events bool // guarded by Server.mu
	hold   bool // guarded by Server.mu
}

// push sends a frame without waiting, and ends the connection of a client that does not
// read what it is sent.
func (c *client) push(f *frame) {
	select {
	case c.frames <- f:
	default:
		f.CloseFiles()
		c.conn.Close()
	}
}

// reply sends an answer. It may wait for others to be sent.
func (c *client) reply(f *frame) {
	select {
	case c.frames <- f:
	case <-c.gone:
		f.CloseFiles()
	}
}

// send is the goroutine that writes to the connection.
func (c *client) send() {
	for {
		select {
		case f := <-c.frames:
			err := c.conn.Send(f)
			if errors.Is(err, errs.Invalid) && f.ID != 0 { // an answer that is too large
				a := &frame{ID: f.ID}
				a.Fail(err)
				err = c.conn.Send(a)
			}
			f.CloseFiles()
			if err != nil {
				c.conn.Close() // which ends its reader
			}
		case <-c.gone:
			for {
				select {
				case f := <-c.frames:
					f.CloseFiles()
				default:
					return
				}
			}
		}
	}
}

func (s *Server) serve(nc *net.UnixConn) {
	c := &client{conn: wire.NewConn(nc), frames: make(chan *frame, queue), gone: make(chan struct{}), slots: make(chan struct{}, inFlight)}
	defer c.conn.Close()
	if uid, err := c.conn.PeerUID(); err != nil || uid != 0 && int(uid) != os.Geteuid() {
		s.log.Warn("a connection was refused", "uid", uid, "error", err)
		return
	}
	c.conn.SetSendTimeout(sendTimeout)
	if err := s.greet(c); errors.Is(err, io.EOF) {
		return // only looked whether somebody listens
	} else if err != nil {
		s.log.Warn("a connection was refused", "error", err)
		return
	}
	s.mu.Lock()
	s.clients[c] = struct{}{}
	s.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	go c.send()
	defer func() {
		cancel()
		s.mu.Lock()
		delete(s.clients, c)
		s.mu.Unlock()
		close(c.gone)
		s.disown(c)
	}()
	for {
		f, err := c.conn.Receive()
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, net.ErrClosed) {
				s.log.Warn("a connection was ended", "error", err)
			}
			return
		}
		if f.ID == 0 {
			s.log.Warn("a connection was ended", "error", "a request without an id")
			f.CloseFiles()
			return
		}
		switch op := operations[f.Op]; {
		case op.do == nil:
			a := &frame{ID: f.ID}
			a.Fail(errs.New(errs.Unsupported, "the keeper does not know the request %.40q", f.Op))
			f.CloseFiles()
			c.reply(a)
		case op.inOrder:
			s.answer(ctx, c, f, op)
		case op.waits:
			go s.answer(ctx, c, f, op)
		default:
			c.slots <- struct{}{}
			go func() {
				defer func() { <-c.slots }()
				s.answer(ctx, c, f, op)
			}()
		}
	}
}

// greet agrees on the version.
func (s *Server) greet(c *client) error {
	f, err := c.conn.Receive()
	if err != nil {
		return err
	}
	defer f.CloseFiles()
	a := &frame{ID: f.ID}
	var h keeper.Hello
	if f.Op != "hello" || f.Decode(&h) != nil || h.Version != wire.Version {
		err = errs.New(errs.Unsupported, "the keeper speaks version %d; this client says %.40q, version %d", wire.Version, f.Op, h.Version)
		a.Fail(err)
	} else {
		err = a.Encode(keeper.HelloReply{Version: wire.Version, PID: os.Getpid(), Build: s.o.Build})
	}
	return errors.Join(err, c.conn.Send(a))
}

// answer carries out one request. A panic ends that request only.
func (s *Server) answer(ctx context.Context, c *client, f *frame, op operation) {
	a := &frame{ID: f.ID}
	ctx, times := trace.Record(ctx, "keeper "+f.Op, trace.Parent{Traceparent: f.Trace})
	defer func() {
		if p := recover(); p != nil {
			s.log.Error("a request panicked", "op", f.Op, "panic", p, "stack", string(debug.Stack()))
			a = &frame{ID: f.ID}
			a.Fail(errs.New(errs.Internal, "the keeper failed in %s; see its log", f.Op))
		}
		f.CloseFiles()
		c.reply(a)
	}()
	reply, files, err := s.carryOut(ctx, c, f, op)
	a.Files, a.Spans = files, times.Timings(err)
	if err == nil && reply != nil {
		err = a.Encode(reply)
	}
	if err != nil {
		a.CloseFiles()
		a.Fail(err)
	}
}

func (s *Server) carryOut(ctx context.Context, c *client, f *frame, op operation) (any, []*os.File, error) {
	if op.waits {
		return op.do(s, ctx, c, f)
	}
	s.gate.RLock()
	defer s.gate.RUnlock()
	// What is begun is finished, whether or not the client lives to hear of it.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), opTimeout)
	defer cancel()
	if op.litters {
		s.tidy.Reset(tidyAfter)
	}
	return op.do(s, ctx, c, f)
}

// tidyAfter is how long after the last start or command the memory that it took is given
// back to the system. The collector alone would keep it for minutes.
const tidyAfter = 2 * time.Second

// operation carries out a request. The frame's files are closed after it; those that it
// returns are sent and then closed.
type operation struct {
	do      func(s *Server, ctx context.Context, c *client, f *frame) (reply any, files []*os.File, err error)
	waits   bool // may take as long as it wants: does not hold up an upgrade, ends with the client
	inOrder bool // before the next request is read
	litters bool // leaves garbage worth collecting
}

// on makes an operation of a function of a request of type R.
func on[R any](fn func(s *Server, ctx context.Context, r R) (any, error)) operation {
	return operation{do: func(s *Server, ctx context.Context, _ *client, f *frame) (any, []*os.File, error) {
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
		"create": {do: (*Server).opCreate, litters: true},
		"run":    {do: (*Server).opRun, litters: true},

		"create-by-runtime": {do: (*Server).opCreate, litters: true},
		"run-by-runtime":    {do: (*Server).opRun, litters: true},

		"create-from-checkpoint": {do: (*Server).opCreate, litters: true},
		"run-from-checkpoint":    {do: (*Server).opRun, litters: true},

		"start":      on((*Server).start),
		"delete":     on((*Server).delete),
		"signal":     on((*Server).signal),
		"status":     on((*Server).status),
		"list":       on(func(s *Server, _ context.Context, _ struct{}) (any, error) { return s.list(), nil }),
		"wait":       {do: (*Server).opWait, waits: true},
		"reopen-log": on((*Server).reopenLog),
		"update":     on((*Server).update),
		"pause": on(func(s *Server, ctx context.Context, r keeper.IDRequest) (any, error) {
			return nil, s.freeze(ctx, r.ID, true)
		}),
		"resume": on(func(s *Server, ctx context.Context, r keeper.IDRequest) (any, error) {
			return nil, s.freeze(ctx, r.ID, false)
		}),
		"exec":        {do: (*Server).opExec, litters: true},
		"exec-wait":   {do: (*Server).opExecWait, waits: true},
		"attach":      {do: (*Server).opAttach},
		"stdin":       {do: (*Server).opStdin},
		"close-stdin": on((*Server).closeStdin),
		"resize":      on((*Server).resize),
		"events":      {do: (*Server).opEvents, inOrder: true},
		"hold":        {do: (*Server).opHold, inOrder: true},
		"adopt":       {do: (*Server).opAdopt, inOrder: true},
		"upgrade":     {do: (*Server).opUpgrade, waits: true},
		"shutdown":    {do: (*Server).opShutdown, waits: true},
	}
}

// publish tells every client that asked for events.
func (s *Server) publish(e keeper.Event) {
	raw, err := json.Marshal(e)
	if err != nil {
		return
	}
	for _, c := range s.listening(func(c *client) bool { return c.events }) {
		c.push(&frame{Op: "event", Body: raw})
	}
}

// listening returns the clients that are wanted.
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

func (s *Server) opEvents(_ context.Context, c *client, _ *frame) (any, []*os.File, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.events = true
	return nil, nil, nil
}
