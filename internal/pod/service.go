package pod

import (
	"context"
	"errors"
	"io"
	"os"
	"sync/atomic"
	"time"

	"github.com/orlop-io/orlop/internal/base/idlecopy"
	"github.com/orlop-io/orlop/internal/platform/keeper"
)

// ExecOptions say what to run in a container.
type ExecOptions struct {
	Container string // "": the pod's only one, or its first
	Command   []string
	TTY       bool
	Stdin     bool
}

// AttachOptions say what to attach to.
type AttachOptions struct {
	Container string
	Stdin     bool
}

// Session is a process with its streams. Close it.
type Session struct {
	Container string
	TTY       bool
	Stdin     io.WriteCloser // nil where none was asked for
	Stdout    io.Reader
	Stderr    io.Reader // nil with a terminal

	wait   func(context.Context) (keeper.Exit, error)
	resize func(cols, rows uint16) error
	signal func(context.Context, int) error
	kill   func() error
	files  []*os.File
}

// Wait returns how the process ended.
func (s *Session) Wait(ctx context.Context) (code, signal int, err error) {
	x, err := s.wait(ctx)
	return x.Code, x.Signal, err
}

// Resize sets the terminal's size; without a terminal it does nothing.
func (s *Session) Resize(cols, rows uint16) error {
	if s.resize == nil {
		return nil
	}
	return s.resize(cols, rows)
}

// Signal sends the process a signal.
func (s *Session) Signal(ctx context.Context, sig int) error {
	if s.signal == nil {
		return nil
	}
	return s.signal(ctx, sig)
}

// Kill ends the process, with what it has started where the kernel can tell.
func (s *Session) Kill() error {
	if s.kill == nil {
		return nil
	}
	return s.kill()
}

// Close lets go of the streams. A process whose terminal is closed gets SIGHUP.
func (s *Session) Close() error {
	for _, f := range s.files {
		f.Close()
	}
	return nil
}

// Logs tells where a container's log is.
type Logs struct {
	Container string
	// Path is the file being written; older ones are Path.1, Path.2 …
	Path string
	// More tells whether anything may still be written: the container runs, or will
	// run again. A follower asks it at the end of the file.
	More func() bool
	// Next returns the log of the incarnation that followed, once there is one.
	Next func() (path string, ok bool)
}

// DeleteOptions say how to delete a pod.
type DeleteOptions struct {
	Grace *time.Duration // nil: the pod's own
	Wait  bool           // until it is gone
}

// Drain lets what the process has written be read to its end, however slowly. What the
// process left running may keep the streams open for ever, and write to them: that is not
// waited for.
func (s *Session) Drain(read func()) {
	for _, r := range []io.Reader{s.Stdout, s.Stderr} {
		if o, ok := r.(*processOutput); ok && o.end() {
			continue
		}
		if r != nil { // without deadlines all that can be done is to close it
			t := time.AfterFunc(drainPatience, func() { s.Close() })
			defer t.Stop()
		}
	}
	read()
}

const (
	// drainPatience is how long each piece of the last output of a process may take.
	drainPatience = 300 * time.Millisecond
	// drainBytes is more than a pipe holds (pipe(7), pipe-max-size).
	drainBytes = 2 << 20
)

// processOutput is the reading end of a process's pipe, which ends soon after the process.
type processOutput struct {
	f     *os.File
	ended atomic.Bool
	rest  int // what may be read after that
}

// Read reads. Once the process has ended, each read has its time: one who reads slowly
// loses nothing.
func (o *processOutput) Read(b []byte) (int, error) {
	ended := o.ended.Load()
	if ended {
		if o.rest <= 0 {
			return 0, io.EOF
		}
		o.f.SetReadDeadline(time.Now().Add(drainPatience))
	}
	n, err := o.f.Read(b)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		err = io.EOF
	}
	if ended {
		o.rest -= n
	}
	return n, err
}

// Wait waits until there is something to read, or no more.
func (o *processOutput) Wait() error {
	if o.ended.Load() {
		return nil // Read has its time
	}
	return idlecopy.Wait(o.f)
}

// SetReadDeadline bounds the reads from now on.
func (o *processOutput) SetReadDeadline(t time.Time) error { return o.f.SetReadDeadline(t) }

// end tells that the process has ended. It is false where reading cannot be bounded.
func (o *processOutput) end() bool {
	o.ended.Store(true)
	return o.SetReadDeadline(time.Now().Add(drainPatience)) == nil
}
