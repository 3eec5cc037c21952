package server

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/fault"
	"github.com/orlop-io/orlop/internal/platform/cgroup"
	"github.com/orlop-io/orlop/internal/platform/keeper"
)

var (
	faultStdinClosed = fault.New("keeper.stdin.recorded")
	faultFrozen      = fault.New("keeper.pause.frozen")
	faultThawed      = fault.New("keeper.resume.thawed")
)

// container is one container. Locks are taken in the order of Server.locks, mu, out.mu;
// held is taken before mu.
type container struct {
	s   *Server
	id  string
	dir string
	out output

	exited chan struct{} // closed once status has its Exit

	held sync.Mutex // keeps what is sent to those who hold in the order of what happened

	mu      sync.Mutex
	rec     record
	group   *cgroup.Group // nil: its control group was gone when a keeper started
	gate    process       // until it is started
	pidfd   *os.File
	child   bool     // ours to reap
	seen    bool     // its end was noticed while starting
	stdin   *os.File // our end of the FIFO
	unknown bool     // ended while no keeper lived; the exit code may yet be brought
	oomBase uint64   // OOM kills that were counted when we killed it ourselves
}

func (s *Server) dir(id string) string { return filepath.Join(s.o.Dir, "containers", id) }

func (s *Server) newContainer(id string) *container {
	c := &container{s: s, id: id, dir: s.dir(id), exited: make(chan struct{})}
	c.out.poll = s.poll
	return c
}

func (c *container) status() keeper.Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rec.Status
}

func (c *container) warn(msg string, args ...any) {
	c.s.log.Warn(msg, append(args, "container", c.id)...)
}

// openStreams opens journal and log, makes the FIFOs that are missing and opens our
// ends, for reading and writing: a FIFO that always has a reader never breaks its writer,
// and one that always has a writer never ends.
func (c *container) openStreams() (err error) {
	conf := c.rec.Log
	if c.rec.Pause {
		conf.Path = ""
	}
	if c.out.log, err = openLog(conf, c.dir, c.warn); err != nil {
		return err
	}
	if c.rec.Pause {
		return nil
	}
	open := func(name string) (*os.File, error) {
		path := filepath.Join(c.dir, name)
		if err := unix.Mkfifo(path, 0o600); err != nil && err != unix.EEXIST {
			return nil, fmt.Errorf("make %s: %w", name, err)
		}
		return openFIFO(path, unix.O_RDWR)
	}
	if c.out.fifos[0], err = open("stdout"); err != nil || c.rec.Terminal {
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

// openFIFO opens without waiting for the other end, as a file that Go leaves alone. The directory is nobody
// else's, and O_NOFOLLOW would stay with the descriptor: a container that has it is restored from a
// checkpoint by opening a link of /proc with the same flags.
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
// too, so that a keeper that dies does not break it; input for writing too, so that it
// does not end then, unless it is to end once.
func (c *container) theirEnds() (stdio [3]*os.File, err error) {
	if c.rec.Terminal || c.rec.Pause {
		return stdio, nil
	}
	for i, name := range [3]string{"stdin", "stdout", "stderr"} {
		mode := unix.O_RDWR
		if i == 0 {
			if !c.rec.Stdin {
				continue
			}
			if c.rec.StdinOnce {
				mode = unix.O_RDONLY
			}
		}
		if stdio[i], err = openFIFO(filepath.Join(c.dir, name), mode); err != nil {
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

// close lets go of every descriptor.
func (c *container) close() {
	c.out.abandon()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closePIDFD()
	if c.gate != nil {
		c.gate.Close()
		c.gate = nil
	}
	if c.stdin != nil {
		c.stdin.Close()
		c.stdin = nil
	}
}

// closePIDFD is called with mu held.
func (c *container) closePIDFD() {
	if c.pidfd != nil {
		c.s.poll.forget(int(c.pidfd.Fd()))
		c.pidfd.Close()
		c.pidfd = nil
	}
}

func (s *Server) signal(ctx context.Context, r keeper.SignalRequest) (any, error) {
	c, err := s.find(r.ID)
	if err != nil {
		return nil, err
	}
	if r.Signal < 0 || r.Signal > 64 {
		return nil, errs.New(errs.Invalid, "signal container %s: %d is no signal", r.ID, r.Signal)
	}
	sig := unix.Signal(r.Signal)
	c.mu.Lock()
	group, state := c.group, c.rec.Status.State
	if sig == unix.SIGKILL && group != nil {
		// From here on an end by SIGKILL is ours, unless the count goes on.
		c.oomBase, _ = group.OOMKills()
	}
	c.mu.Unlock()
	if state == keeper.Stopped {
		return nil, nil
	}
	rt := c.runtime()
	if sig == unix.SIGKILL {
		rt = own{s} // the kernel does it, whatever the runtime does
	}
	if err := rt.signal(ctx, c, sig, r.All); err != nil {
		return nil, fmt.Errorf("signal container %s: %w", r.ID, err)
	}
	if state == keeper.Paused && sig == unix.SIGKILL {
		// The v1 freezer holds back even SIGKILL. That of v2 does not, and who asks a runtime
		// to thaw one that was killed then may be told that there is nothing to thaw.
		if err := s.freeze(ctx, r.ID, false); err != nil && !c.endsWithin(killedWithin) {
			return nil, err
		}
	}
	return nil, nil
}

// killedWithin is how long a process may take to end by SIGKILL before that counts as held back.
const killedWithin = 2 * time.Second

func (s *Server) update(ctx context.Context, r keeper.UpdateRequest) (any, error) {
	c, err := s.find(r.ID)
	if err != nil {
		return nil, err
	}
	if r.Resources == nil {
		return nil, errs.New(errs.Invalid, "update container %s: no resources are given", r.ID)
	}
	return nil, c.runtime().update(ctx, c, r.Resources)
}

func (c *container) controlGroup() (*cgroup.Group, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.group == nil {
		return nil, errs.New(errs.FailedPrecondition, "container %s has no control group any more; somebody has removed it", c.id)
	}
	return c.group, nil
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
	from, to := keeper.Running, keeper.Paused
	if !on {
		from, to = to, from
	}
	switch state := c.status().State; state {
	case to:
		return nil
	case from:
	default:
		return errs.New(errs.FailedPrecondition, "container %s is %s, not %s", id, state, from)
	}
	if err := c.runtime().freeze(ctx, c, on); err != nil {
		return err
	}
	// A keeper that dies here finds out what is true by asking the kernel.
	if on {
		faultFrozen.Hit()
	} else {
		faultThawed.Hit()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.rec.Status.State == from {
		c.rec.Status.State = to
	}
	return c.save()
}

func (s *Server) opWait(ctx context.Context, _ *client, f *frame) (any, []*os.File, error) {
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

func (s *Server) reopenLog(_ context.Context, r keeper.IDRequest) (any, error) {
	c, err := s.find(r.ID)
	if err != nil {
		return nil, err
	}
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	if c.out.ended || c.out.log == nil {
		return nil, errs.New(errs.FailedPrecondition, "container %s has ended, and its log with it", r.ID)
	}
	return nil, c.out.log.reopen()
}

func (s *Server) opAttach(_ context.Context, _ *client, f *frame) (any, []*os.File, error) {
	var r keeper.AttachRequest
	if err := f.Decode(&r); err != nil {
		return nil, nil, err
	}
	if err := wanted("attach", r.Streams, "oe", f.Files); err != nil {
		return nil, nil, err
	}
	c, err := s.find(r.ID)
	if err != nil {
		return nil, nil, err
	}
	for i, what := range r.Streams {
		file, err := duplicate(f.Files[i])
		if err != nil {
			return nil, nil, err
		}
		stream := 0
		if what == 'e' {
			stream = 1
		}
		if err := c.out.attach(file, stream); err != nil {
			return nil, nil, err
		}
	}
	return nil, nil, nil
}

// wanted checks that a request brings one descriptor for each letter, and only letters
// that are known.
func wanted(op, letters, known string, files []*os.File) error {
	if len(letters) != len(files) {
		return errs.New(errs.Invalid, "%s: %d descriptors for the streams %q", op, len(files), letters)
	}
	for i, l := range letters {
		ok := false
		for _, k := range known {
			ok = ok || k == l
		}
		for _, other := range letters[:i] {
			ok = ok && other != l
		}
		if !ok {
			return errs.New(errs.Invalid, "%s: %q does not name descriptors; each of %q may come once", op, letters, known)
		}
	}
	return nil
}

func (s *Server) resize(_ context.Context, r keeper.ResizeRequest) (any, error) {
	c, err := s.find(r.ID)
	if err != nil {
		return nil, err
	}
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	if c.out.terminal == nil {
		return nil, errs.New(errs.FailedPrecondition, "container %s has no terminal, or has ended", r.ID)
	}
	return nil, unix.IoctlSetWinsize(int(c.out.terminal.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: r.Cols, Row: r.Rows})
}

func duplicate(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}
