package pod

import (
	"context"
	"io"
	"os"
	"time"

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

// Drain lets what the process has written be read to its end. What the process left
// running may keep the streams open for ever; that is not waited for.
func (s *Session) Drain(read func()) {
	done := make(chan struct{})
	go func() { read(); close(done) }()
	select {
	case <-done:
	case <-time.After(drainPatience):
		s.Close()
		<-done
	}
}

// drainPatience is how long the last output of a process that has ended may take.
const drainPatience = 300 * time.Millisecond
