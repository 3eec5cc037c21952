package control

import (
	"context"
	"errors"
	"io"
	"sync"
	"syscall"
	"time"

	"connectrpc.com/connect"

	orlopv1 "github.com/orlop-io/orlop/api/orlop/v1"
	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/idlecopy"
	"github.com/orlop-io/orlop/internal/pod"
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
	done    chan struct{}
	err     error // of sending, once done is closed
}

// sending is a writer that sends.
type sending func([]byte) error

func (s sending) Write(b []byte) (int, error) {
	if err := s(b); err != nil {
		return 0, err
	}
	return len(b), nil
}

// copyOutput starts to read. If sending fails, cancel is called.
func copyOutput(s *pod.Session, send func(b []byte, stderr bool) error, cancel context.CancelFunc) *output {
	o := &output{session: s, done: make(chan struct{})}
	var wait sync.WaitGroup
	var once sync.Once
	for i, r := range []io.Reader{s.Stdout, s.Stderr} {
		if r == nil {
			continue
		}
		to := sending(func(b []byte) error {
			err := send(b, i == 1)
			if err != nil {
				once.Do(func() { o.err = err })
				cancel()
			}
			return err
		})
		// The error of reading is none: EIO of a terminal that nobody has open.
		wait.Go(func() { idlecopy.Copy(to, r) })
	}
	go func() {
		wait.Wait()
		close(o.done)
	}()
	return o
}

// finish waits until everything that the process wrote has been sent.
func (o *output) finish(ctx context.Context) error {
	var err error
	o.session.Drain(func() {
		select {
		case <-o.done:
			err = o.err
		case <-ctx.Done():
			err = ctx.Err()
		}
	})
	return err
}
