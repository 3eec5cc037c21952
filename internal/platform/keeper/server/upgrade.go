package server

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/fault"
	"github.com/orlop-io/orlop/internal/platform/keeper"
	"github.com/orlop-io/orlop/internal/platform/keeper/wire"
)

var faultUpgrade = fault.New("keeper.upgrade.about-to-exec")

// inheritEnv carries what an upgrade hands over beside the files on tmpfs: the
// masters of terminals, as id=descriptor.
const inheritEnv = "ORLOP_KEEPER_TERMINALS"

// opUpgrade executes another binary in this process's place. It keeps its children,
// so exit codes go on being reaped; everything else is read again from the files.
func (s *Server) opUpgrade(_ context.Context, _ *client, f *wire.Frame) (any, []*os.File, error) {
	var r keeper.UpgradeRequest
	if err := f.Decode(&r); err != nil {
		return nil, nil, err
	}
	if err := unix.Access(r.Binary, unix.X_OK); err != nil || !strings.HasPrefix(r.Binary, "/") {
		return nil, nil, errs.New(errs.Invalid, "upgrade: %q is not the absolute path of a program: %w", r.Binary, err)
	}
	s.gate.Lock()
	defer s.gate.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	// With these locks nothing is read and nothing recorded from here on.
	for _, c := range s.containers {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.out.mu.Lock()
		defer c.out.mu.Unlock()
	}
	var terminals []string
	for id, c := range s.containers {
		if c.rec.Status.State == keeper.Created {
			return nil, nil, errs.New(errs.FailedPrecondition, "container %s waits to be started; start or delete it before the upgrade", id)
		}
		if c.out.terminal != nil {
			fd, err := unix.FcntlInt(c.out.terminal.Fd(), unix.F_DUPFD, 3)
			if err != nil {
				return nil, nil, err
			}
			terminals = append(terminals, id+"="+strconv.Itoa(fd))
		}
	}
	lock, err := unix.FcntlInt(s.lock.Fd(), unix.F_DUPFD, 3)
	if err != nil {
		return nil, nil, err
	}
	env := append(os.Environ(), inheritEnv+"="+strings.Join(terminals, ","), "ORLOP_KEEPER_LOCK="+strconv.Itoa(lock))
	faultUpgrade.Hit()
	s.log.Info("becoming another binary", "binary", r.Binary)
	err = unix.Exec(r.Binary, append([]string{r.Binary}, os.Args[1:]...), env)
	unix.Close(lock)
	for _, t := range terminals {
		if fd, err := strconv.Atoi(t[strings.IndexByte(t, '=')+1:]); err == nil {
			unix.Close(fd)
		}
	}
	return nil, nil, errs.New(errs.Invalid, "become %s: %w", r.Binary, err)
}

// adoptStrays reaps, when they end, the children that the binary before us had
// started by exec in containers: their clients are gone.
func (s *Server) adoptStrays() {
	known := make(map[int]bool)
	for _, c := range s.containers {
		known[c.rec.Status.PID] = true
	}
	lists, _ := filepath.Glob("/proc/self/task/*/children")
	for _, list := range lists {
		raw, _ := os.ReadFile(list)
		for _, w := range strings.Fields(string(raw)) {
			pid, _ := strconv.Atoi(w)
			if known[pid] {
				continue
			}
			fd, err := unix.PidfdOpen(pid, 0)
			if err != nil {
				continue
			}
			e := &execProcess{done: make(chan struct{}), pidfd: os.NewFile(uintptr(fd), "pidfd")}
			s.poll.watch(fd, unix.EPOLLIN, func(uint32) { e.onExit(s) })
		}
	}
}

// inherit takes what the binary before us handed over.
func (s *Server) inherit() {
	if v := os.Getenv("ORLOP_KEEPER_LOCK"); v != "" {
		os.Unsetenv("ORLOP_KEEPER_LOCK")
		if fd, err := strconv.Atoi(v); err == nil {
			unix.CloseOnExec(fd)
			s.lock = os.NewFile(uintptr(fd), "lock")
			s.upgraded = true
		}
	}
}

// inheritTerminals is for after the containers are known.
func (s *Server) inheritTerminals() {
	v := os.Getenv(inheritEnv)
	os.Unsetenv(inheritEnv)
	for pair := range strings.SplitSeq(v, ",") {
		id, num, ok := strings.Cut(pair, "=")
		fd, err := strconv.Atoi(num)
		if !ok || err != nil {
			continue
		}
		f := os.NewFile(uintptr(fd), "terminal")
		if c := s.containers[id]; c != nil {
			if err := c.adoptTerminal(f); err != nil {
				s.log.Warn("a terminal could not be taken over", "container", id, "error", err)
			}
		}
		f.Close()
	}
}
