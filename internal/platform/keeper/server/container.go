package server

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/atomicfile"
	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/cgroup"
	"github.com/orlop-io/orlop/internal/platform/executor"
	"github.com/orlop-io/orlop/internal/platform/keeper"
	"github.com/orlop-io/orlop/internal/platform/keeper/wire"
)

// record is what a restarted keeper needs to know: <dir>/state.json.
type record struct {
	Status    keeper.Status
	PIDStart  uint64 // field 22 of /proc/PID/stat: tells a process from a later one of the same number
	Log       keeper.LogConfig
	Terminal  bool
	Stdin     bool
	StdinOnce bool
	Deleting  bool `json:",omitempty"`
}

// container is one container.
type container struct {
	s   *Server
	dir string
	out output

	exited chan struct{} // closed once status has its Exit

	mu      sync.Mutex
	rec     record
	group   *cgroup.Group
	gate    *executor.Process // until it is started
	pidfd   *os.File
	child   bool     // ours to reap
	stdin   *os.File // our end of the FIFO
	unknown bool     // ended while no keeper lived; the exit code may yet be brought
}

func (s *Server) dir(id string) string { return filepath.Join(s.o.Dir, "containers", id) }

func (c *container) id() string { return c.rec.Status.ID }

func (c *container) status() keeper.Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rec.Status
}

// save writes the record. It is called with mu held, or before c is known to others.
func (c *container) save() error {
	raw, err := json.Marshal(c.rec)
	if err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(c.dir, "state.json"), raw, 0o600, false)
}

func (c *container) warn(msg string, args ...any) {
	c.s.log.Warn(msg, append(args, "container", c.id())...)
}

// makeFIFOs makes the FIFOs that are missing and opens our ends, for reading and
// writing: a FIFO that always has a reader never breaks its writer, and one that
// always has a writer never ends.
func (c *container) openStreams() (err error) {
	if c.out.log, err = openLog(c.rec.Log, c.dir, c.warn); err != nil {
		return err
	}
	c.out.poll = c.s.poll
	if c.rec.Terminal {
		return nil
	}
	open := func(name string) (*os.File, error) {
		path := filepath.Join(c.dir, name)
		if err := unix.Mkfifo(path, 0o600); err != nil && err != unix.EEXIST {
			return nil, fmt.Errorf("make %s: %w", name, err)
		}
		return openFIFO(path, unix.O_RDWR)
	}
	if c.out.fifos[0], err = open("stdout"); err != nil {
		return err
	}
	if c.out.fifos[1], err = open("stderr"); err != nil {
		return err
	}
	if c.rec.Stdin {
		c.stdin, err = open("stdin")
	}
	return err
}

// openFIFO opens without waiting for the other end, as a file that Go leaves alone.
func openFIFO(path string, mode int) (*os.File, error) {
	fd, err := unix.Open(path, mode|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	if err := unix.SetNonblock(fd, false); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

// theirEnds opens the container's ends of its streams. Output is opened for reading
// too, so that a keeper that dies does not break it.
func (c *container) theirEnds() (stdio [3]*os.File, err error) {
	if c.rec.Terminal {
		return stdio, nil
	}
	for i, s := range []struct {
		name string
		mode int
	}{{"stdin", unix.O_RDONLY}, {"stdout", unix.O_RDWR}, {"stderr", unix.O_RDWR}} {
		if i == 0 && !c.rec.Stdin {
			continue
		}
		if stdio[i], err = openFIFO(filepath.Join(c.dir, s.name), s.mode); err != nil {
			closeAll(stdio[:])
			return stdio, err
		}
	}
	return stdio, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}

// closeStdin closes our end, and has those who hold the FIFO for us close theirs.
func (s *Server) closeStdin(c *container) error {
	c.mu.Lock()
	if c.stdin != nil {
		c.stdin.Close()
		c.stdin = nil
	}
	c.rec.Stdin = false // a restart must not open it again
	err := c.save()
	c.mu.Unlock()
	s.hold(c)
	return err
}

// close lets go of every descriptor.
func (c *container) close() {
	c.out.abandon()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pidfd != nil {
		c.s.poll.forget(int(c.pidfd.Fd()))
		c.pidfd.Close()
		c.pidfd = nil
	}
	if c.gate != nil {
		c.gate.Close()
		c.gate = nil
	}
	if c.stdin != nil {
		c.stdin.Close()
		c.stdin = nil
	}
}

func (s *Server) signal(_ context.Context, r keeper.SignalRequest) (any, error) {
	c, err := s.find(r.ID)
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	pidfd, group, state := c.pidfd, c.group, c.rec.Status.State
	c.mu.Unlock()
	if state == keeper.Stopped || pidfd == nil {
		return nil, nil
	}
	if r.All {
		return nil, group.Kill(unix.Signal(r.Signal))
	}
	if err := unix.PidfdSendSignal(int(pidfd.Fd()), unix.Signal(r.Signal), nil, 0); err != nil && err != unix.ESRCH {
		return nil, fmt.Errorf("signal container %s: %w", r.ID, err)
	}
	return nil, nil
}

func (s *Server) update(_ context.Context, r keeper.UpdateRequest) (any, error) {
	c, err := s.find(r.ID)
	if err != nil {
		return nil, err
	}
	if r.Resources == nil {
		return nil, errs.New(errs.Invalid, "update container %s: no resources are given", r.ID)
	}
	return nil, c.group.Update(r.Resources)
}

func (s *Server) freeze(ctx context.Context, id string, on bool) error {
	unlock, err := s.locks.Lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	c, err := s.find(id)
	if err != nil {
		return err
	}
	from, to, do := keeper.Running, keeper.Paused, c.group.Freeze
	if !on {
		from, to, do = to, from, c.group.Thaw
	}
	switch c.status().State {
	case to:
		return nil
	case from:
	default:
		return errs.New(errs.FailedPrecondition, "container %s is %s, not %s", id, c.status().State, from)
	}
	if err := do(ctx); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rec.Status.State == from {
		c.rec.Status.State = to
	}
	return c.save()
}

func (s *Server) opWait(ctx context.Context, _ *client, f *wire.Frame) (any, []*os.File, error) {
	var r keeper.IDRequest
	if err := f.Decode(&r); err != nil {
		return nil, nil, err
	}
	c, err := s.find(r.ID)
	if err != nil {
		return nil, nil, err
	}
	select {
	case <-c.exited:
		return *c.status().Exit, nil, nil
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
}

func (s *Server) opAttach(_ context.Context, _ *client, f *wire.Frame) (any, []*os.File, error) {
	var r keeper.AttachRequest
	if err := f.Decode(&r); err != nil {
		return nil, nil, err
	}
	if len(r.Streams) != len(f.Files) {
		return nil, nil, errs.New(errs.Invalid, "attach: %d descriptors for the streams %q", len(f.Files), r.Streams)
	}
	c, err := s.find(r.ID)
	if err != nil {
		return nil, nil, err
	}
	files := f.Files
	f.Files = nil
	for i, file := range files {
		if err := c.out.attach(file, r.Streams[i:i+1]); err != nil {
			return nil, nil, err
		}
	}
	return nil, nil, nil
}

func (s *Server) opStdin(_ context.Context, _ *client, f *wire.Frame) (any, []*os.File, error) {
	var r keeper.IDRequest
	if err := f.Decode(&r); err != nil {
		return nil, nil, err
	}
	c, err := s.find(r.ID)
	if err != nil {
		return nil, nil, err
	}
	if c.rec.Terminal {
		c.out.mu.Lock()
		defer c.out.mu.Unlock()
		if c.out.terminal == nil {
			return nil, nil, errs.New(errs.FailedPrecondition, "container %s does not run", r.ID)
		}
		dup, err := duplicate(c.out.terminal)
		return nil, []*os.File{dup}, err
	}
	c.mu.Lock()
	open := c.stdin != nil
	c.mu.Unlock()
	if !open {
		return nil, nil, errs.New(errs.FailedPrecondition, "container %s has no open standard input (stdin: true in its manifest gives it one)", r.ID)
	}
	w, err := openFIFO(filepath.Join(c.dir, "stdin"), unix.O_WRONLY)
	if err != nil {
		return nil, nil, err
	}
	if c.rec.StdinOnce { // the end of this writer is the end of the input
		if err := s.closeStdin(c); err != nil {
			w.Close()
			return nil, nil, err
		}
	}
	return nil, []*os.File{w}, nil
}

func (s *Server) resize(_ context.Context, r keeper.ResizeRequest) (any, error) {
	return nil, s.with(r.ID, func(c *container) error {
		c.out.mu.Lock()
		defer c.out.mu.Unlock()
		if c.out.terminal == nil {
			return errs.New(errs.FailedPrecondition, "container %s has no terminal", r.ID)
		}
		return unix.IoctlSetWinsize(int(c.out.terminal.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: r.Cols, Row: r.Rows})
	})
}

func duplicate(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}
