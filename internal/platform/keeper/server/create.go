package server

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"regexp"
	"slices"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/fault"
	"github.com/orlop-io/orlop/internal/base/trace"
	"github.com/orlop-io/orlop/internal/platform/keeper"
	"github.com/orlop-io/orlop/internal/platform/pidfd"
)

var (
	faultCreateDir     = fault.New("keeper.create.directory-made")
	faultCreateIntent  = fault.New("keeper.create.intent-recorded")
	faultCreateStreams = fault.New("keeper.create.streams-made")
	faultCreateGroup   = fault.New("keeper.create.cgroup-made")
	faultCreateCloned  = fault.New("keeper.create.cloned")
	faultCreateDone    = fault.New("keeper.create.recorded")
)

// opTimeout bounds what a client asks for. An operation does not end with its client: a
// daemon that is killed finds it done, or not begun.
const opTimeout = time.Minute

// idForm keeps ids harmless as names of directories.
var idForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$`)

func (s *Server) opCreate(ctx context.Context, _ *client, f *frame) (any, []*os.File, error) {
	spec, unlock, err := s.begin(ctx, f)
	if err != nil {
		return nil, nil, err
	}
	defer unlock()
	if _, err := s.find(spec.ID); err == nil {
		return nil, nil, nil
	}
	_, err = s.create(ctx, spec, true)
	return nil, nil, err
}

// begin decodes and locks.
func (s *Server) begin(ctx context.Context, f *frame) (spec keeper.MakeRequest, unlock func(), err error) {
	if err := f.Decode(&spec); err != nil {
		return spec, nil, err
	}
	if !idForm.MatchString(spec.ID) {
		return spec, nil, errs.New(errs.Invalid, "%q cannot be a container's id: use letters, digits, '_', '.', '-', at most 128", spec.ID)
	}
	if spec.OCI == nil {
		return spec, nil, errs.New(errs.Invalid, "container %s has no specification", spec.ID)
	}
	if spec.Cgroup == "" {
		return spec, nil, errs.New(errs.Invalid, "container %s has no control group: without one it could not be ended as a whole", spec.ID)
	}
	if spec.Restore != nil && spec.Runtime == nil {
		return spec, nil, errs.New(errs.Unsupported, "container %s: the keeper's own executor restores nothing; name a runtime that does", spec.ID)
	}
	unlock, err = s.locks.Lock(ctx, spec.ID)
	return spec, unlock, err
}

// create makes the container and leaves it at the gate. If it fails nothing is left.
// record tells to record that: Run does not, as it goes on at once.
func (s *Server) create(ctx context.Context, spec keeper.MakeRequest, record bool) (_ *container, err error) {
	c := s.newContainer(spec.ID)
	s.births.RLock()
	defer s.births.RUnlock()
	c.child = true
	c.rec.Status = keeper.Status{ID: spec.ID, State: keeper.Creating, Cgroup: spec.Cgroup, CreatedAt: time.Now(), Labels: spec.Labels}
	c.rec.Log, c.rec.Pause, c.rec.Runtime = spec.Log, spec.Pause, spec.Runtime
	c.rec.Terminal = spec.OCI.Process != nil && spec.OCI.Process.Terminal && !spec.Pause
	if !c.rec.Terminal && !spec.Pause {
		c.rec.Stdin, c.rec.StdinOnce = spec.Stdin, spec.StdinOnce
	}
	if p := spec.OCI.Process; p != nil {
		// Never what the keeper has, whom the kernel is to kill last.
		if p.OOMScoreAdj == nil {
			p.OOMScoreAdj = new(int)
		}
		c.rec.OOMScore = *p.OOMScoreAdj
	}
	var res *specs.LinuxResources
	if l := spec.OCI.Linux; l != nil {
		res = l.Resources
		c.rec.SharesPID = !slices.ContainsFunc(l.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.PIDNamespace && n.Path == "" })
		raw := spec.Seccomp
		if l.Seccomp != nil { // in the specification after all
			if raw, err = json.Marshal(l.Seccomp); err != nil {
				return nil, err
			}
		}
		if c.rec.Seccomp, l.Seccomp, err = s.keepProfile(raw); err != nil {
			return nil, err
		}
	}
	defer func() {
		if err != nil {
			s.discard(c)
		}
	}()
	if err := os.Mkdir(c.dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	faultCreateDir.Hit()
	if err := c.save(); err != nil {
		return nil, err
	}
	faultCreateIntent.Hit()
	_, step := trace.Start(ctx, "keeper streams")
	err = c.openStreams()
	step.End(&err)
	if err != nil {
		return nil, err
	}
	faultCreateStreams.Hit()
	_, step = trace.Start(ctx, "keeper cgroup")
	c.group, err = c.runtime().group(spec.Cgroup, res)
	step.End(&err)
	if err != nil {
		return nil, err
	}
	faultCreateGroup.Hit()
	stdio, err := c.theirEnds()
	if err != nil {
		return nil, err
	}
	p, err := c.runtime().create(ctx, c, &spec, stdio)
	closeAll(stdio[:])
	if err != nil {
		return nil, err
	}
	faultCreateCloned.Hit()
	c.gate = p
	c.child = c.rec.Runtime == nil || ownChild(p.PID())
	if c.pidfd, err = duplicate(p.PIDFD()); err != nil {
		pidfd.Signal(p.PIDFD(), unix.SIGKILL)
		pidfd.Reap(p.PIDFD(), true)
		return nil, err
	}
	if t := p.Console(); t != nil {
		c.out.terminal = t
		c.out.openPeer()
	}
	c.rec.Status.State, c.rec.Status.PID = keeper.Created, p.PID()
	if c.rec.PIDStart, err = pidfd.StartTime(p.PID()); err != nil {
		return nil, err
	}
	if record {
		if err := c.save(); err != nil {
			return nil, err
		}
		faultCreateDone.Hit()
	}
	if err := c.out.start(false); err != nil {
		return nil, err
	}
	s.add(c)
	s.hold(c)
	if err := c.watchExit(unix.EPOLLIN); err != nil {
		return nil, err
	}
	return c, nil
}
