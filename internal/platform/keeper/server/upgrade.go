package server

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/fault"
	"github.com/orlop-io/orlop/internal/platform/keeper"
	"github.com/orlop-io/orlop/internal/platform/keeper/wire"
)

var (
	faultUpgradeReady = fault.New("keeper.upgrade.about-to-exec")
	faultUpgradeTaken = fault.New("keeper.upgrade.lock-taken-over")
	faultUpgradeDone  = fault.New("keeper.upgrade.containers-taken-over")
)

// inheritEnv carries what an upgrade hands over beside the files on tmpfs: descriptors,
// as NAME=NUMBER with commas between: lock, listener, and terminals by their container's
// id with a slash before.
const inheritEnv = "ORLOP_KEEPER_INHERIT"

// About is what `orlop-keeper -about` prints: an upgrade asks the new binary first
// whether it is one that can go on.
func About(build string) string {
	return fmt.Sprintf("orlop-keeper %s protocol=%d state=%d", build, wire.Version, recordVersion)
}

// aboutTimeout is for a binary that says nothing.
const aboutTimeout = 10 * time.Second

func checkBinary(ctx context.Context, path string) error {
	if !filepath.IsAbs(path) {
		return errs.New(errs.Invalid, "upgrade: %q is not an absolute path", path)
	}
	ctx, cancel := context.WithTimeout(ctx, aboutTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, "-about")
	cmd.Env = []string{}
	out, err := cmd.Output()
	if err != nil {
		return errs.New(errs.Invalid, "upgrade: %s does not run here: %w", path, err)
	}
	var build string
	var protocol, state int
	if n, _ := fmt.Fscanf(bytes.NewReader(out), "orlop-keeper %s protocol=%d state=%d", &build, &protocol, &state); n != 3 {
		return errs.New(errs.Invalid, "upgrade: %s is not an orlop-keeper", path)
	}
	if state < recordVersion {
		return errs.New(errs.Unsupported, "upgrade: %s (%s) cannot read the state of this keeper: it knows version %d, this is %d", path, build, state, recordVersion)
	}
	return nil
}

// opUpgrade executes another binary in this process's place. It keeps its children,
// so exit codes go on being reaped, and the socket, so that clients find it at once;
// everything else is read again from the files.
func (s *Server) opUpgrade(ctx context.Context, _ *client, f *frame) (any, []*os.File, error) {
	var r keeper.UpgradeRequest
	if err := f.Decode(&r); err != nil {
		return nil, nil, err
	}
	s.births.RLock()
	err := checkBinary(ctx, r.Binary)
	s.births.RUnlock()
	if err != nil {
		return nil, nil, err
	}
	s.gate.Lock() // no operation is under way
	defer s.gate.Unlock()
	s.mu.Lock()
	all := slices.Collect(maps.Values(s.containers))
	s.mu.Unlock()
	// With these locks nothing is read and nothing recorded from here on.
	deadline := time.Now().Add(quietTimeout)
	for _, c := range all {
		if err := lockBy(deadline, &c.mu, c); err != nil {
			return nil, nil, err
		}
		defer c.mu.Unlock()
		if err := lockBy(deadline, &c.out.mu, c); err != nil {
			return nil, nil, err
		}
		defer c.out.mu.Unlock()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var pass []string
	var fds []int
	defer func() { // only if it fails
		for _, fd := range fds {
			unix.Close(fd)
		}
	}()
	add := func(name string, f *os.File) error {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD, 3)
		if err != nil {
			return err
		}
		fds, pass = append(fds, fd), append(pass, name+"="+strconv.Itoa(fd))
		return nil
	}
	if err := add("lock", s.lock); err != nil {
		return nil, nil, err
	}
	l, err := s.listener.File()
	if err != nil {
		return nil, nil, err
	}
	defer l.Close()
	if err := add("listener", l); err != nil {
		return nil, nil, err
	}
	for id, c := range s.containers {
		if c.rec.Status.State == keeper.Created {
			return nil, nil, errs.New(errs.FailedPrecondition, "container %s waits to be started; start or delete it before the upgrade", id)
		}
		if c.out.terminal != nil {
			if err := add("/"+id, c.out.terminal); err != nil {
				return nil, nil, err
			}
		}
	}
	faultUpgradeReady.Hit()
	s.log.Info("becoming another binary", "binary", r.Binary)
	err = unix.Exec(r.Binary, append([]string{r.Binary}, os.Args[1:]...), append(os.Environ(), inheritEnv+"="+strings.Join(pass, ",")))
	return nil, nil, errs.New(errs.Invalid, "become %s: %w", r.Binary, err)
}

// quietTimeout is how long an upgrade waits for output to be written: a disk that hangs
// must not make the keeper hang with it.
const quietTimeout = 5 * time.Second

// lockBy locks, or gives up. It waits in line as any Lock does: a busy lock is never free
// to a TryLock.
func lockBy(deadline time.Time, mu *sync.Mutex, c *container) error {
	got, late := make(chan struct{}), make(chan struct{})
	go func() {
		mu.Lock()
		select {
		case got <- struct{}{}:
		case <-late:
			mu.Unlock()
		}
	}()
	select {
	case <-got:
		return nil
	case <-time.After(time.Until(deadline)):
		close(late)
		return errs.New(errs.Unavailable, "upgrade: container %s is busy writing its log; try again", c.id)
	}
}

// inherit takes what the binary before us handed over.
func (s *Server) inherit() error {
	v, ok := os.LookupEnv(inheritEnv)
	os.Unsetenv(inheritEnv)
	if !ok {
		return nil
	}
	s.inherited = make(map[string]*os.File)
	for pair := range strings.SplitSeq(v, ",") {
		name, num, _ := strings.Cut(pair, "=")
		fd, err := strconv.Atoi(num)
		if err != nil || fd < 3 {
			return errs.New(errs.Invalid, "%s: %q names no descriptor", inheritEnv, pair)
		}
		unix.CloseOnExec(fd)
		s.inherited[name] = os.NewFile(uintptr(fd), name)
	}
	if s.lock = s.inherited["lock"]; s.lock == nil {
		return errs.New(errs.Invalid, "%s hands over no lock", inheritEnv)
	}
	faultUpgradeTaken.Hit()
	if f := s.inherited["listener"]; f != nil {
		l, err := net.FileListener(f)
		if err != nil {
			return err
		}
		f.Close()
		s.listener = l.(*net.UnixListener)
	}
	return nil
}

// inheritRest is for after the containers are known.
func (s *Server) inheritRest() {
	if s.inherited == nil {
		return
	}
	for name, f := range s.inherited {
		id, ok := strings.CutPrefix(name, "/")
		if !ok {
			continue
		}
		if c, err := s.find(id); err == nil {
			if err := c.adoptTerminal(f); err != nil {
				s.log.Warn("a terminal could not be taken over", "container", id, "error", err)
			}
		}
		f.Close()
	}
	s.inherited = nil
	s.subreaper(0)
	s.adoptStrays()
	faultUpgradeDone.Hit()
}
