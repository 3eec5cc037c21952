// Package server is the keeper process: the parent of every container of the node.
//
// It keeps no state that it could not read again: each container has a directory on
// tmpfs with its record, its specification, its FIFOs and the journal of its log
// (docs/design/keeper.md). A keeper that starts reads them and goes on; containers
// never notice.
package server

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/heap"
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
	Roots  string // directory for root filesystems that others than root reach (rootfs.go); "": none
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

	inherited map[string]*os.File // from the binary that this process was before

	tidy *time.Timer // gives memory back

	locks keylock.Locks // by container: one mutating operation at a time

	roots sync.Mutex // held where Options.Roots is made, filled, or removed

	profiles sync.Mutex // guards decoded, and the directory of seccomp profiles
	decoded  map[string]*specs.LinuxSeccomp

	// gate is held for reading by every operation, and for writing by an upgrade.
	gate sync.RWMutex
	// births is held for reading while a child is made that is not yet known by its container
	// or its exec, and for writing by who looks for children that nobody knows.
	births  sync.RWMutex
	orphans *time.Timer // looks for them

	mu         sync.Mutex
	containers map[string]*container
	execs      map[uint64]*execProcess
	nextExec   uint64
	strays     map[int]struct{} // children that are nobody's, by process
	adopting   int              // commands of runtimes, whose orphans become ours
	clients    map[*client]struct{}
	listener   *net.UnixListener
	stopping   chan struct{}
}

// frame is short for what everything here deals with.
type frame = wire.Frame

// Open takes the directory's lock (errs.InUse where another keeper has it), reads
// what an earlier keeper has left, and goes on with it.
func Open(o Options) (_ *Server, err error) {
	s := &Server{
		o: o, log: o.Log,
		containers: make(map[string]*container), execs: make(map[uint64]*execProcess),
		clients: make(map[*client]struct{}), stopping: make(chan struct{}),
		strays: make(map[int]struct{}), decoded: make(map[string]*specs.LinuxSeccomp), tidy: time.AfterFunc(tidyAfter, heap.Free),
	}
	s.orphans = time.AfterFunc(time.Hour, s.adoptOrphans)
	s.orphans.Stop()
	for _, dir := range []string{"containers", "seccomp"} {
		if err := os.MkdirAll(filepath.Join(o.Dir, dir), 0o700); err != nil {
			return nil, err
		}
	}
	if err := s.inherit(); err != nil {
		return nil, err
	}
	if s.lock == nil {
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
	s.inheritRest()
	return s, nil
}

const (
	lockTries = 200
	lockPause = 5 * time.Millisecond
)

// answers tells whether a keeper listens: then nobody waits for its lock.
func answers(dir string) bool {
	c, err := net.Dial("unix", keeper.Socket(dir))
	if err == nil {
		c.Close()
	}
	return err == nil
}

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
		if err != unix.EWOULDBLOCK || try == lockTries || answers(filepath.Dir(path)) {
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
	if s.listener == nil {
		if err := s.listen(); err != nil {
			return err
		}
	}
	s.log.Info("ready", "directory", s.o.Dir, "containers", len(s.list()))
	for {
		c, err := s.listener.AcceptUnix()
		if err == nil {
			go s.serve(c)
			continue
		}
		select {
		case <-s.stopping:
			return nil
		default:
		}
		if !errors.Is(err, unix.EMFILE) && !errors.Is(err, unix.ENFILE) && !errors.Is(err, unix.ENOMEM) && !errors.Is(err, unix.ECONNABORTED) {
			return err
		}
		s.log.Error("a connection could not be accepted", "error", err)
		time.Sleep(acceptPause)
	}
}

// acceptPause keeps a keeper that has run out of descriptors from spinning.
const acceptPause = 100 * time.Millisecond

func (s *Server) listen() error {
	path := keeper.Socket(s.o.Dir)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	old := unix.Umask(0o177)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	unix.Umask(old)
	if err != nil {
		return err
	}
	l.SetUnlinkOnClose(false)
	s.mu.Lock()
	s.listener = l
	s.mu.Unlock()
	return nil
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

func (s *Server) opShutdown(_ context.Context, _ *client, _ *frame) (any, []*os.File, error) {
	return nil, nil, s.Shutdown()
}

// Shutdown ends Serve. errs.InUse while containers exist: they would lose their parent.
func (s *Server) Shutdown() error {
	s.gate.Lock()
	defer s.gate.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.containers); n > 0 {
		return errs.New(errs.InUse, "the keeper has %d containers; delete them first", n)
	}
	select {
	case <-s.stopping:
	default:
		close(s.stopping)
		os.Remove(keeper.Socket(s.o.Dir))
		s.listener.Close()
	}
	return nil
}
