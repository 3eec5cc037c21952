package keeper

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/trace"
	"github.com/orlop-io/orlop/internal/platform/keeper/wire"
	"github.com/orlop-io/orlop/internal/platform/pidfd"
)

// Client is a connection to the keeper. It is safe for concurrent use. When the
// keeper goes away every call under way fails with errs.Unavailable and Done is
// closed; the caller dials again, with what it held (Dial's held).
type Client struct {
	conn  *wire.Conn
	hello HelloReply
	done  chan struct{}

	mu      sync.Mutex
	next    uint64
	pending map[uint64]chan *wire.Frame
	waits   map[string]*endWait // by container
	events  []func(Event)
	held    *Holdings
	err     error
}

// Holdings are second descriptors of what a dead keeper could not open again: a
// pidfd (by which an exit code is read later), the FIFOs (whose bytes live as long
// as anybody has them open) and the masters of terminals. The daemon keeps them and
// gives them to the next keeper.
type Holdings struct {
	mu  sync.Mutex
	all map[string]*holding
}

type holding struct {
	what  string
	files []*os.File
}

func (h *Holdings) put(id, what string, files []*os.File) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.all == nil {
		h.all = make(map[string]*holding)
	}
	h.drop(id)
	if len(files) > 0 {
		h.all[id] = &holding{what, files}
	}
}

// drop is called with mu held.
func (h *Holdings) drop(id string) {
	if old := h.all[id]; old != nil {
		for _, f := range old.files {
			f.Close()
		}
		delete(h.all, id)
	}
}

// Len returns how many containers something is held of.
func (h *Holdings) Len() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.all)
}

// Close closes everything that is held.
func (h *Holdings) Close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for id := range h.all {
		h.drop(id)
	}
}

const (
	dialTries = 1000
	dialPause = 2 * time.Millisecond
)

// Dial connects to the keeper's socket. With held, which may be nil, the client
// gives the keeper what is in it, and from then on keeps it up to date: pass the
// same Holdings to the next Dial after a loss.
func Dial(ctx context.Context, socket string, held *Holdings) (*Client, error) {
	nc, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	for try := 0; errors.Is(err, unix.EAGAIN) && try < dialTries && ctx.Err() == nil; try++ {
		// More wait to be accepted than the system lets wait (net.core.somaxconn).
		time.Sleep(dialPause)
		nc, err = (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}
	if err != nil {
		return nil, errs.New(errs.Unavailable, "connect to the keeper: %w", err)
	}
	c := &Client{conn: wire.NewConn(nc.(*net.UnixConn)), done: make(chan struct{}), pending: make(map[uint64]chan *wire.Frame), waits: make(map[string]*endWait), held: held}
	go c.receive()
	if err := c.call(ctx, "hello", Hello{wire.Version}, nil, &c.hello); err != nil {
		c.Close()
		return nil, err
	}
	if held == nil {
		return c, nil
	}
	held.mu.Lock()
	given := make(map[string]holding, len(held.all))
	for id, h := range held.all {
		given[id] = *h
	}
	held.mu.Unlock()
	for id, h := range given {
		if err := c.call(ctx, "adopt", Held{id, h.what}, h.files, nil); err != nil {
			c.Close()
			return nil, fmt.Errorf("give back %s: %w", id, err)
		}
	}
	// From here on the keeper sends what there is to hold, and whatever is added.
	if err := c.call(ctx, "hold", nil, nil, nil); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// Close ends the connection. Containers are not touched.
func (c *Client) Close() error {
	err := c.conn.Close()
	<-c.done
	if errors.Is(err, net.ErrClosed) {
		return nil // it was lost
	}
	return err
}

// Done is closed when the connection is lost, before a request fails of it.
func (c *Client) Done() <-chan struct{} { return c.done }

// PID is the keeper's process.
func (c *Client) PID() int { return c.hello.PID }

func (c *Client) receive() {
	for {
		f, err := c.conn.Receive()
		if err != nil {
			c.conn.Close()
			c.mu.Lock()
			defer c.mu.Unlock()
			c.err = errs.New(errs.Unavailable, "the connection to the keeper was lost: %w", err)
			close(c.done) // before a request fails: who asks again finds that this client is gone
			for id, ch := range c.pending {
				close(ch)
				delete(c.pending, id)
			}
			return
		}
		if f.ID == 0 {
			c.event(f)
			continue
		}
		c.mu.Lock()
		ch := c.pending[f.ID]
		delete(c.pending, f.ID)
		c.mu.Unlock()
		if ch == nil {
			f.CloseFiles() // the caller has given up
			continue
		}
		ch <- f
	}
}

func (c *Client) event(f *wire.Frame) {
	switch f.Op {
	case "held":
		var h Held
		if f.Decode(&h) == nil && c.held != nil {
			c.held.put(h.ID, h.What, f.Files)
			return
		}
	case "event":
		var e Event
		if f.Decode(&e) == nil {
			c.mu.Lock()
			fns := c.events
			c.mu.Unlock()
			for _, fn := range fns {
				fn(e)
			}
		}
	}
	f.CloseFiles()
}

// request sends a request and returns its answer, whose files are the caller's. Where ctx
// ends first, late, if it is given, gets the answer when it comes.
func (c *Client) request(ctx context.Context, op string, body any, files []*os.File, late func(*wire.Frame)) (_ *wire.Frame, err error) {
	ctx, span := trace.Start(ctx, "call keeper "+op)
	defer span.End(&err)
	f := &wire.Frame{Op: op, Files: files, Trace: span.Parent().Traceparent}
	if err := f.Encode(body); err != nil {
		return nil, err
	}
	ch := make(chan *wire.Frame, 1)
	c.mu.Lock()
	if c.err != nil {
		defer c.mu.Unlock()
		return nil, c.err
	}
	c.next++
	f.ID = c.next
	c.pending[f.ID] = ch
	c.mu.Unlock()
	forget := func() {
		c.mu.Lock()
		delete(c.pending, f.ID)
		c.mu.Unlock()
		select { // the answer may have come at this moment
		case f := <-ch:
			if f != nil {
				f.CloseFiles()
			}
		default:
		}
	}
	if err := c.conn.Send(f); err != nil {
		forget()
		if errs.KindOf(err) == errs.Invalid {
			return nil, err
		}
		c.Close() // half a frame may have been sent
		return nil, errs.New(errs.Unavailable, "ask the keeper: %w", err)
	}
	select {
	case a := <-ch:
		if a == nil {
			c.mu.Lock()
			defer c.mu.Unlock()
			return nil, c.err
		}
		span.Replay(a.Spans)
		if err := a.Failure(); err != nil {
			a.CloseFiles()
			return nil, err
		}
		return a, nil
	case <-ctx.Done():
		if late == nil {
			forget()
			return nil, ctx.Err()
		}
		go func() { // it ends with the answer, or with the client
			if a := <-ch; a != nil {
				late(a)
			}
		}()
		return nil, ctx.Err()
	}
}

func (c *Client) call(ctx context.Context, op string, body any, files []*os.File, into any) error {
	a, err := c.request(ctx, op, body, files, nil)
	if err != nil {
		return err
	}
	a.CloseFiles()
	if into == nil {
		return nil
	}
	return a.Decode(into)
}

// Create makes the container and leaves it waiting at the gate. Creating one that
// exists is no error.
func (c *Client) Create(ctx context.Context, s Spec) error {
	r, err := makeRequest(s)
	if err != nil {
		return err
	}
	return c.call(ctx, s.operation("create"), r, nil, nil)
}

// Start opens the gate. Starting one that runs is no error; one that has ended is
// errs.FailedPrecondition.
func (c *Client) Start(ctx context.Context, id string) (s Started, err error) {
	return s, c.call(ctx, "start", IDRequest{id}, nil, &s)
}

// Run is Create and Start in one trip. If it fails, nothing of the container is left.
// Running one that exists is no error, even if it has ended already: a client that did
// not hear the answer asks again.
func (c *Client) Run(ctx context.Context, spec Spec) (s Started, err error) {
	r, err := makeRequest(spec)
	if err != nil {
		return s, err
	}
	return s, c.call(ctx, spec.operation("run"), r, nil, &s)
}

// operation is the request's name. That of a container of another runtime is its own, so
// that a keeper that knows no runtimes refuses it, and does not pass over who is to make it. So with what is
// restored.
func (s *Spec) operation(name string) string {
	if s.Restore != nil {
		return name + "-from-checkpoint"
	}
	if s.Runtime != nil {
		return name + "-by-runtime"
	}
	return name
}

func makeRequest(s Spec) (r MakeRequest, err error) {
	r.Spec = s
	if s.OCI == nil || s.OCI.Linux == nil || s.OCI.Linux.Seccomp == nil {
		return r, nil
	}
	if r.Seccomp, err = json.Marshal(s.OCI.Linux.Seccomp); err != nil {
		return r, err
	}
	oci, linux := *s.OCI, *s.OCI.Linux // the caller's are not touched
	linux.Seccomp, oci.Linux = nil, &linux
	r.OCI = &oci
	return r, nil
}

// Signal sends the signal to the first process or, with all, to every process of the
// container. errs.NotFound where it does not exist; one that has stopped is no error.
func (c *Client) Signal(ctx context.Context, id string, sig unix.Signal, all bool) error {
	return c.call(ctx, "signal", SignalRequest{id, int(sig), all}, nil, nil)
}

// endWait is one question after a container's end, for all who wait for it. The keeper
// answers when the container ends: were each to ask, those that give up would leave the
// keeper a question each for as long as the container runs.
type endWait struct {
	done chan struct{} // closed when the two below are set
	exit Exit
	err  error
}

// Wait returns how the container ended, waiting for it.
func (c *Client) Wait(ctx context.Context, id string) (Exit, error) {
	c.mu.Lock()
	w := c.waits[id]
	if w == nil {
		w = &endWait{done: make(chan struct{})}
		c.waits[id] = w
		go func() { // it ends with the container, or with the client
			w.err = c.call(context.Background(), "wait", IDRequest{id}, nil, &w.exit)
			c.mu.Lock()
			delete(c.waits, id)
			c.mu.Unlock()
			close(w.done)
		}()
	}
	c.mu.Unlock()
	select {
	case <-w.done:
		return w.exit, w.err
	case <-ctx.Done():
		return Exit{}, ctx.Err()
	}
}

// Status returns what is known of the container.
func (c *Client) Status(ctx context.Context, id string) (s Status, err error) {
	return s, c.call(ctx, "status", IDRequest{id}, nil, &s)
}

// List returns every container.
func (c *Client) List(ctx context.Context) (l []Status, err error) {
	return l, c.call(ctx, "list", nil, nil, &l)
}

// Delete removes a stopped container with all that the keeper has of it, its
// control group included; logs stay. One that runs is errs.InUse; one that does not
// exist is no error.
func (c *Client) Delete(ctx context.Context, id string) error {
	return c.call(ctx, "delete", IDRequest{id}, nil, nil)
}

// ReopenLog makes the keeper open the log's path anew, after somebody has moved it.
func (c *Client) ReopenLog(ctx context.Context, id string) error {
	return c.call(ctx, "reopen-log", IDRequest{id}, nil, nil)
}

// Update changes the container's limits.
func (c *Client) Update(ctx context.Context, id string, r *specs.LinuxResources) error {
	return c.call(ctx, "update", UpdateRequest{id, r}, nil, nil)
}

// Pause freezes every process of the container; Resume thaws them.
func (c *Client) Pause(ctx context.Context, id string) error {
	return c.call(ctx, "pause", IDRequest{id}, nil, nil)
}

// Resume undoes Pause.
func (c *Client) Resume(ctx context.Context, id string) error {
	return c.call(ctx, "resume", IDRequest{id}, nil, nil)
}

// OnEvent calls fn, which must not block, for every event from now on. Events that
// happen while no client is connected are not sent later: look at List.
func (c *Client) OnEvent(ctx context.Context, fn func(Event)) error {
	c.mu.Lock()
	c.events = append(c.events, fn)
	c.mu.Unlock()
	return c.call(ctx, "events", nil, nil, nil)
}

// Upgrade makes the keeper execute the binary in its place. Containers do not
// notice; this connection is lost, and the next Dial finds the new keeper.
func (c *Client) Upgrade(ctx context.Context, binary string) error {
	err := c.call(ctx, "upgrade", UpgradeRequest{binary}, nil, nil)
	if errors.Is(err, errs.Unavailable) {
		return nil // it is no longer there to answer
	}
	return err
}

// Shutdown ends the keeper. errs.InUse while containers exist.
func (c *Client) Shutdown(ctx context.Context) error {
	err := c.call(ctx, "shutdown", nil, nil, nil)
	if errors.Is(err, errs.Unavailable) {
		return nil // it is no longer there to answer
	}
	return err
}

// ExecSpec is one more process in a running container. The files are given to the
// process itself: the keeper is not between, and changes nothing about them (programs
// expect streams that block; a Go os.Pipe does not). nil is /dev/null. With
// Process.Terminal they are not used.
type ExecSpec struct {
	Process               *specs.Process
	Stdin, Stdout, Stderr *os.File
}

// Exec is a process started by Client.Exec.
type Exec struct {
	PID     int
	Console *os.File // the terminal's master, the caller's to close; nil without one

	c       *Client
	id      uint64
	started uint64

	using sync.Mutex // of pidfd, whose number is another's once it is closed
	pidfd *os.File

	ask      sync.Once     // the keeper forgets the process when it has answered: it is asked once
	answered chan struct{} // made by ask
	exit     Exit          // set when answered is closed
	err      error
}

// Exec runs a process in the container. It outlives this client, and the keeper. Where ctx
// ends before it has started, it is killed when it has.
func (c *Client) Exec(ctx context.Context, id string, s ExecSpec) (*Exec, error) {
	r := ExecRequest{ID: id, Process: s.Process}
	var files []*os.File
	for _, f := range []struct {
		file *os.File
		name string
	}{{s.Stdin, "i"}, {s.Stdout, "o"}, {s.Stderr, "e"}} {
		if f.file != nil {
			files = append(files, f.file)
			r.Streams += f.name
		}
	}
	a, err := c.request(ctx, "exec", r, files, func(a *wire.Frame) {
		if e, err := c.started(a); err == nil {
			e.Kill()
			e.Wait(context.Background()) // so that the keeper forgets it
			if e.Console != nil {
				e.Console.Close()
			}
		}
	})
	if err != nil {
		return nil, err
	}
	return c.started(a)
}

// started is the process that an answer is about.
func (c *Client) started(a *wire.Frame) (*Exec, error) {
	if err := a.Failure(); err != nil {
		a.CloseFiles()
		return nil, err
	}
	var reply ExecReply
	if err := a.Decode(&reply); err != nil {
		a.CloseFiles()
		return nil, err
	}
	if len(a.Files) == 0 {
		return nil, errs.New(errs.Internal, "the keeper sent no descriptor of the process that it started")
	}
	e := &Exec{PID: reply.PID, c: c, id: reply.Exec, pidfd: a.Files[0], started: reply.Started}
	if len(a.Files) > 1 {
		e.Console = a.Files[1]
	}
	return e, nil
}

// Wait returns how the process ended, waiting for it. After a wait that ctx ended it may be
// called again. Where the keeper is lost meanwhile the kernel is asked (PIDFD_INFO_EXIT,
// Linux 6.15; Exit.Known is false before).
func (e *Exec) Wait(ctx context.Context) (x Exit, err error) {
	ctx, span := trace.Start(ctx, "wait for process")
	defer span.End(&err)
	e.ask.Do(func() {
		e.answered = make(chan struct{})
		go func() { // it ends with the process, or with the client
			defer close(e.answered)
			if e.err = e.c.call(context.Background(), "exec-wait", ExecRef{e.id}, nil, &e.exit); e.err == nil {
				e.close() // whether or not anybody still waits
			}
		}()
	})
	select {
	case <-e.answered:
	case <-ctx.Done():
		return Exit{}, ctx.Err()
	}
	if x, err = e.exit, e.err; errors.Is(err, errs.Unavailable) {
		x, err = e.waitAlone(ctx)
	}
	if err == nil || ctx.Err() == nil {
		e.close()
	}
	return x, err
}

// waitPause bounds how long a canceled wait goes on, in milliseconds.
const waitPause = 200

func (e *Exec) waitAlone(ctx context.Context) (Exit, error) {
	events := int16(unix.POLLIN)
	for ctx.Err() == nil {
		p := []unix.PollFd{{Fd: int32(e.pidfd.Fd()), Events: events}}
		if _, err := unix.Poll(p, waitPause); err != nil && err != unix.EINTR {
			return Exit{}, err
		}
		end, known, again, err := pidfd.Look(e.pidfd, e.PID, e.started)
		switch {
		case err != nil: // it runs
		case again:
			events = 0 // its end shows once it is reaped
		case !known:
			return Exit{Code: 255, At: time.Now()}, nil
		default:
			return Exit{Code: end.Code, Signal: end.Signal, Known: true, At: time.Now()}, nil
		}
	}
	return Exit{}, ctx.Err()
}

func (e *Exec) close() {
	e.using.Lock()
	defer e.using.Unlock()
	e.pidfd.Close()
}

// Signal sends the process a signal. One that has ended is no error.
func (e *Exec) Signal(_ context.Context, sig unix.Signal) error {
	e.using.Lock()
	defer e.using.Unlock()
	if err := pidfd.Signal(e.pidfd, sig); err != nil && !errors.Is(err, unix.EBADF) {
		return fmt.Errorf("signal process %d: %w", e.PID, err)
	}
	return nil
}

// Kill ends the process and, where the kernel can (Linux 6.9), what it has started and left
// in its process group. One that has ended is no error.
func (e *Exec) Kill() error {
	e.using.Lock()
	defer e.using.Unlock()
	if err := pidfd.KillGroup(e.pidfd); err != nil && !errors.Is(err, unix.EBADF) {
		return fmt.Errorf("kill process %d: %w", e.PID, err)
	}
	return nil
}

// Resize sets the size of the process's terminal.
func (e *Exec) Resize(cols, rows uint16) error {
	if e.Console == nil {
		return errs.New(errs.FailedPrecondition, "the process has no terminal")
	}
	return unix.IoctlSetWinsize(int(e.Console.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: cols, Row: rows})
}

// AttachSpec are write ends that a container's output is copied to, from now on. A
// terminal's output goes to Stdout.
type AttachSpec struct{ Stdout, Stderr *os.File }

// Attach copies the container's output, beside its log, from now on until the container
// ends, when the keeper closes its write ends, or the reading end is closed. A client that
// is a megabyte behind is dropped, so that the container never waits for it. The files
// stay the caller's to close; they become non-blocking.
func (c *Client) Attach(ctx context.Context, id string, s AttachSpec) error {
	r := AttachRequest{ID: id}
	var files []*os.File
	if s.Stdout != nil {
		files, r.Streams = append(files, s.Stdout), "o"
	}
	if s.Stderr != nil {
		files, r.Streams = append(files, s.Stderr), r.Streams+"e"
	}
	return c.call(ctx, "attach", r, files, nil)
}

// StdinWriter returns what the container's standard input is written to: a FIFO, or
// its terminal's master. It is the caller's to close.
func (c *Client) StdinWriter(ctx context.Context, id string) (*os.File, error) {
	a, err := c.request(ctx, "stdin", IDRequest{id}, nil, nil)
	if err != nil {
		return nil, err
	}
	if len(a.Files) != 1 {
		a.CloseFiles()
		return nil, errs.New(errs.Internal, "the keeper sent %d descriptors for a standard input", len(a.Files))
	}
	return a.Files[0], nil
}

// CloseStdin ends the standard input of a container with StdinOnce: it reads the end of
// the file once the last writer has closed. That of others lasts as long as they run:
// errs.FailedPrecondition. Without one, or with one that has ended, it does nothing.
func (c *Client) CloseStdin(ctx context.Context, id string) error {
	return c.call(ctx, "close-stdin", IDRequest{id}, nil, nil)
}

// Resize sets the size of the container's terminal.
func (c *Client) Resize(ctx context.Context, id string, cols, rows uint16) error {
	return c.call(ctx, "resize", ResizeRequest{id, cols, rows}, nil, nil)
}
