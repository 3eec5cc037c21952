package control

import (
	"context"
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"connectrpc.com/connect"

	orlopv1 "github.com/orlop-io/orlop/api/orlop/v1"
	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/pod"
)

const (
	// chunkBytes is the largest piece of a stream that the server sends.
	chunkBytes = 32 << 10
	// drainTime is how long the next piece of output is waited for after a command has
	// ended: what it wrote is in the pipe; what its children left behind write later is not its.
	drainTime = 200 * time.Millisecond
	// restBytes is more than a pipe holds.
	restBytes = 2 << 20
)

// Exec implements the service.
//
// The command belongs to the client: one that goes away without waiting for the
// exit takes it along (SIGHUP from the terminal, else SIGTERM).
func (p pods) Exec(ctx context.Context, stream *connect.BidiStream[orlopv1.ExecRequest, orlopv1.ExecResponse]) error {
	first, err := stream.Receive()
	if err != nil {
		return err
	}
	start := first.GetStart()
	if start == nil {
		return errs.New(errs.Invalid, "the first message must be start")
	}
	s, err := p.o.Pods.Exec(ctx, key(start.GetNamespace(), start.GetPod()), pod.ExecOptions{
		Container: start.GetContainer(), Command: start.GetCommand(), TTY: start.GetTty(), Stdin: start.GetStdin(),
	})
	if err != nil {
		return err
	}
	// Whatever ends this request, a command that still runs ends with it.
	var ended bool
	defer func() {
		if !ended && !s.TTY {
			quick, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
			defer cancel()
			if err := s.Signal(quick, int(syscall.SIGTERM)); err != nil {
				p.log.Debug("end a command whose client has gone", "error", err)
			}
		}
		s.Close()
	}()
	p.resize(s, start.GetSize())
	send := newSender(stream.Send)
	if err := send.message(&orlopv1.ExecResponse{Message: &orlopv1.ExecResponse_Started{Started: true}}); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go p.feed(ctx, cancel, s, func() (input, error) {
		m, err := stream.Receive()
		if err != nil {
			return input{}, err
		}
		return input{stdin: m.GetStdin(), close: m.GetCloseStdin(), size: m.GetResize(), signal: int(m.GetSignal())}, nil
	})
	out := copyOutput(s, func(b []byte, stderr bool) error {
		if stderr {
			return send.message(&orlopv1.ExecResponse{Message: &orlopv1.ExecResponse_Stderr{Stderr: b}})
		}
		return send.message(&orlopv1.ExecResponse{Message: &orlopv1.ExecResponse_Stdout{Stdout: b}})
	}, cancel)
	code, signal, err := s.Wait(ctx)
	if err != nil {
		return err
	}
	ended = true
	if err := out.finish(ctx); err != nil {
		return err
	}
	return send.message(&orlopv1.ExecResponse{Message: &orlopv1.ExecResponse_Exit{Exit: &orlopv1.Exit{Code: int32(code), Signal: int32(signal)}}})
}

// Attach implements the service.
func (p pods) Attach(ctx context.Context, stream *connect.BidiStream[orlopv1.AttachRequest, orlopv1.AttachResponse]) error {
	first, err := stream.Receive()
	if err != nil {
		return err
	}
	start := first.GetStart()
	if start == nil {
		return errs.New(errs.Invalid, "the first message must be start")
	}
	s, err := p.o.Pods.Attach(ctx, key(start.GetNamespace(), start.GetPod()), pod.AttachOptions{Container: start.GetContainer(), Stdin: start.GetStdin()})
	if err != nil {
		return err
	}
	defer s.Close()
	p.resize(s, start.GetSize())
	send := newSender(stream.Send)
	attached := &orlopv1.AttachResponse_Attached{Tty: s.TTY, Container: s.Container}
	if err := send.message(&orlopv1.AttachResponse{Message: &orlopv1.AttachResponse_Attached_{Attached: attached}}); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go p.feed(ctx, cancel, s, func() (input, error) {
		m, err := stream.Receive()
		if err != nil {
			return input{}, err
		}
		return input{stdin: m.GetStdin(), close: m.GetCloseStdin(), size: m.GetResize()}, nil
	})
	out := copyOutput(s, func(b []byte, stderr bool) error {
		if stderr {
			return send.message(&orlopv1.AttachResponse{Message: &orlopv1.AttachResponse_Stderr{Stderr: b}})
		}
		return send.message(&orlopv1.AttachResponse{Message: &orlopv1.AttachResponse_Stdout{Stdout: b}})
	}, cancel)
	code, signal, err := s.Wait(ctx)
	if err != nil {
		return err
	}
	if err := out.finish(ctx); err != nil {
		return err
	}
	return send.message(&orlopv1.AttachResponse{Message: &orlopv1.AttachResponse_Exit{Exit: &orlopv1.Exit{Code: int32(code), Signal: int32(signal)}}})
}

// input is one message of a client.
type input struct {
	stdin  []byte
	close  bool
	size   *orlopv1.TerminalSize
	signal int
}

// feed gives the session what the client sends, until the client or the session
// ends. It ends with the request: Receive then fails. A client that breaks off
// cancels the request; one that only closes its side does not.
func (p pods) feed(ctx context.Context, cancel context.CancelFunc, s *pod.Session, receive func() (input, error)) {
	open := s.Stdin != nil
	shut := func() {
		if open {
			open = false
			s.Stdin.Close()
		}
	}
	defer shut()
	for {
		in, err := receive()
		if err != nil {
			if !errors.Is(err, io.EOF) {
				cancel()
			}
			return
		}
		if len(in.stdin) > 0 && open {
			if _, err := s.Stdin.Write(in.stdin); err != nil {
				shut() // the process reads no more
			}
		}
		if in.close {
			shut()
		}
		p.resize(s, in.size)
		if in.signal > 0 {
			if err := s.Signal(ctx, in.signal); err != nil {
				p.log.Debug("send a signal", "signal", in.signal, "error", err)
			}
		}
	}
}

// resize sets the size of a session's terminal, if there are both.
func (p pods) resize(s *pod.Session, size *orlopv1.TerminalSize) {
	if size == nil || !s.TTY {
		return
	}
	if err := s.Resize(uint16(size.GetColumns()), uint16(size.GetRows())); err != nil {
		p.log.Debug("set a terminal's size", "error", err)
	}
}

// sender lets several goroutines send on one stream, and nobody after the handler
// returned.
type sender[T any] struct {
	mu   sync.Mutex
	send func(*T) error
}

func newSender[T any](send func(*T) error) *sender[T] { return &sender[T]{send: send} }

func (s *sender[T]) message(m *T) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.send(m)
}

// output reads a session's streams.
type output struct {
	session *pod.Session
	ended   atomic.Bool // the process has; what it wrote is still in the pipe
	done    chan struct{}
	err     error
}

// deadliner is a stream of which waiting can be bounded.
type deadliner interface{ SetReadDeadline(time.Time) error }

// copyOutput starts to read. If sending fails, cancel is called.
func copyOutput(s *pod.Session, send func(b []byte, stderr bool) error, cancel context.CancelFunc) *output {
	o := &output{session: s, done: make(chan struct{})}
	var wait sync.WaitGroup
	var once sync.Once
	read := func(r io.Reader, stderr bool) {
		buf := make([]byte, chunkBytes)
		rest := restBytes
		for rest > 0 {
			if o.ended.Load() {
				// Each piece has its time: a slow client must not cost the next one.
				if d, ok := r.(deadliner); ok {
					d.SetReadDeadline(time.Now().Add(drainTime)) // without deadlines, finish closes it
				}
			}
			n, err := r.Read(buf)
			if n > 0 {
				if o.ended.Load() {
					rest -= n
				}
				if err := send(buf[:n], stderr); err != nil {
					once.Do(func() { o.err = err })
					cancel()
					return
				}
			}
			if err != nil {
				return // EOF; EIO of a terminal that nobody has open; the deadline
			}
		}
	}
	if s.Stdout != nil {
		wait.Go(func() { read(s.Stdout, false) })
	}
	if s.Stderr != nil {
		wait.Go(func() { read(s.Stderr, true) })
	}
	go func() {
		wait.Wait()
		close(o.done)
	}()
	return o
}

// finish waits until everything that the process wrote has been sent.
func (o *output) finish(ctx context.Context) error {
	o.ended.Store(true)
	for _, r := range []io.Reader{o.session.Stdout, o.session.Stderr} {
		d, ok := r.(deadliner)
		if r != nil && (!ok || d.SetReadDeadline(time.Now().Add(drainTime)) != nil) {
			t := time.AfterFunc(drainTime, func() { o.session.Close() })
			defer t.Stop()
		}
	}
	select {
	case <-o.done:
	case <-ctx.Done():
		return ctx.Err()
	}
	return o.err
}
