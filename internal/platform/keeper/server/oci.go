package server

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/fault"
	"github.com/orlop-io/orlop/internal/platform/cgroup"
	"github.com/orlop-io/orlop/internal/platform/executor"
	"github.com/orlop-io/orlop/internal/platform/keeper"
	"github.com/orlop-io/orlop/internal/platform/ociruntime"
	"github.com/orlop-io/orlop/internal/platform/pidfd"
)

var (
	faultOCICreated = fault.New("runtime.create.process-made")
	faultOCIDeleted = fault.New("runtime.delete.deleted")
)

// oci is an OCI runtime's command line. The container's directory is the bundle; its root
// filesystem is mounted on the host, beside and not in it, so that nothing that removes
// the directory can reach the files of a container.
type oci struct{ s *Server }

func (o oci) container(c *container) *ociruntime.Container {
	r := *c.rec.Runtime
	r.Systemd = o.s.cg.Layout().Driver == cgroup.Systemd
	return &ociruntime.Container{Runtime: &r, ID: c.id, Dir: c.dir, Sockets: o.s.o.Dir}
}

// group makes the directories that are ours; the runtime finds them empty, makes those that it has
// beside them, and sets the limits.
func (o oci) group(path string, _ *specs.LinuxResources) (*cgroup.Group, error) {
	return o.s.cg.Create(path, nil)
}

func (o oci) create(ctx context.Context, c *container, spec *keeper.MakeRequest, stdio [3]*os.File) (process, error) {
	if spec.Pause {
		return nil, errs.New(errs.Invalid, "container %s: process 1 of a shared PID namespace is made by the keeper's own executor", c.id)
	}
	ctx = context.WithoutCancel(ctx) // each step has a limit of its own
	root, err := o.mount(c, spec)
	if err != nil {
		return nil, err
	}
	faultOCIMounted.Hit()
	if err := o.writeConfig(c, spec, root); err != nil {
		return nil, err
	}
	if err := giveStreams(spec, stdio); err != nil {
		return nil, err
	}
	defer o.s.parenthood()()
	var started ociruntime.Started
	if r := spec.Restore; r != nil {
		started, err = o.container(c).Restore(ctx, r.Images, r.Work, stdio, c.rec.Terminal)
	} else {
		started, err = o.container(c).Create(ctx, stdio, c.rec.Terminal)
	}
	if err != nil {
		return nil, err
	}
	faultOCICreated.Hit()
	p, err := o.process(started)
	if err != nil {
		return nil, err
	}
	if spec.Restore == nil { // else it runs
		p.start = func(ctx context.Context) error { return o.start(ctx, c) }
	}
	// A runtime need not know all the hierarchies that we count and freeze by.
	if pids, err := c.group.Procs(); err == nil && !slices.Contains(pids, p.pid) {
		if err := c.group.Add(p.pid); err != nil {
			pidfd.Signal(p.pidfd, unix.SIGKILL)
			pidfd.Reap(p.pidfd, true)
			p.discard()
			return nil, err
		}
	}
	return p, nil
}

func (o oci) start(ctx context.Context, c *container) error {
	defer o.s.parenthood()()
	return o.container(c).Start(context.WithoutCancel(ctx))
}

// ociVersion is what the bundle says that it follows: runtimes refuse what they do not know by
// number (crun 1.8 whatever is not 1.0), and fields that are newer pass or are asked for before.
const ociVersion = "1.0.2"

// writeConfig makes the bundle's specification: what we were given, with what is left out
// of that because our own executor has it from elsewhere, and without what this
// machine does not let anybody have, which our executor leaves out as well.
func (o oci) writeConfig(c *container, spec *keeper.MakeRequest, root string) error {
	s := *spec.OCI
	s.Version = ociVersion
	s.Root = &specs.Root{Path: root, Readonly: spec.OCI.Root != nil && spec.OCI.Root.Readonly}
	linux := specs.Linux{}
	if s.Linux != nil {
		linux = *s.Linux
	}
	var err error
	if linux.CgroupsPath, _, err = c.group.OCIPath(); err != nil {
		return err
	}
	s.Linux = &linux
	if s.Process != nil {
		p := *s.Process
		clampOOMScore(&p)
		p.Capabilities = obtainable(p.Capabilities)
		s.Process = &p
	}
	raw, err := json.Marshal(&s)
	if err != nil {
		return err
	}
	return replace(filepath.Join(c.dir, "config.json"), raw)
}

// giveStreams makes the container's ends of its streams those of its root, where that is another user: a
// runtime gives them to who is to run only if their owner is somebody in the container.
func giveStreams(spec *keeper.MakeRequest, stdio [3]*os.File) error {
	if !spec.Rootfs.IDMap {
		return nil
	}
	uid, gid, ok := idMaps(spec.OCI).Root()
	if !ok {
		return errs.New(errs.Invalid, "the mappings of the user namespace have no id 0")
	}
	for _, f := range stdio {
		if f == nil {
			continue
		}
		if fi, err := f.Stat(); err != nil || fi.Mode()&os.ModeNamedPipe == 0 {
			continue // it is no stream of the container's own
		}
		if err := f.Chown(uid, gid); err != nil {
			return err
		}
	}
	return nil
}

// ociProcess is a process that a runtime has left to us.
type ociProcess struct {
	pid             int
	pidfd, terminal *os.File
	start           func(context.Context) error // nil: it runs
}

func (p *ociProcess) PID() int          { return p.pid }
func (p *ociProcess) PIDFD() *os.File   { return p.pidfd }
func (p *ociProcess) Console() *os.File { return p.terminal }
func (p *ociProcess) Close() error      { return p.pidfd.Close() }

func (p *ociProcess) Start(ctx context.Context) error {
	if p.start == nil {
		return nil
	}
	return p.start(ctx)
}

func (p *ociProcess) discard() {
	p.pidfd.Close()
	if p.terminal != nil {
		p.terminal.Close()
	}
}

// process takes a descriptor of what a runtime has left. As our child, to which parenthood
// makes it, it is there until we reap it, and its number is nobody else's.
func (o oci) process(s ociruntime.Started) (*ociProcess, error) {
	fd, err := unix.PidfdOpen(s.PID, 0)
	if err != nil {
		if s.Terminal != nil {
			s.Terminal.Close()
		}
		return nil, errs.New(errs.FailedPrecondition, "the runtime's process %d is gone: %w", s.PID, err)
	}
	return &ociProcess{pid: s.PID, pidfd: os.NewFile(uintptr(fd), "pidfd"), terminal: s.Terminal}, nil
}

func (o oci) exec(ctx context.Context, c *container, _ *os.File, r *keeper.ExecRequest, stdio [3]*os.File) (process, error) {
	p := *r.Process
	clampOOMScore(&p)
	p.Capabilities = obtainable(p.Capabilities)
	defer o.s.parenthood()()
	started, err := o.container(c).Exec(context.WithoutCancel(ctx), &p, stdio)
	if err != nil {
		return nil, err
	}
	made, err := o.process(started)
	if err != nil {
		return nil, err
	}
	return made, nil
}

func (o oci) signal(ctx context.Context, c *container, sig unix.Signal, all bool) error {
	defer o.s.parenthood()()
	err := o.container(c).Kill(context.WithoutCancel(ctx), sig, all)
	if err != nil && c.hasEnded() {
		return nil
	}
	return err
}

// hasEnded tells whether the container's process has, noticed or not.
func (c *container) hasEnded() bool { return c.endsWithin(0) }

// endsWithin waits that long for the end of the container's process.
func (c *container) endsWithin(d time.Duration) bool {
	c.mu.Lock()
	var f *os.File
	var err error
	if c.pidfd != nil {
		f, err = duplicate(c.pidfd)
	}
	c.mu.Unlock()
	if f == nil || err != nil {
		return err == nil
	}
	defer f.Close()
	for end := time.Now().Add(d); ; {
		p := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLIN}}
		n, err := unix.Poll(p, int(max(0, time.Until(end)).Milliseconds()))
		if err != unix.EINTR {
			return err == nil && n > 0
		}
	}
}

// update asks the runtime, who knows what stands for the limits, and sets in the group what older
// ones pass over in silence (huge pages, values of cgroup v2 by their names).
func (o oci) update(ctx context.Context, c *container, res *specs.LinuxResources) error {
	defer o.s.parenthood()()
	g, err := c.controlGroup()
	if err != nil {
		return err
	}
	if err := o.container(c).Update(context.WithoutCancel(ctx), res); err != nil {
		return err
	}
	if len(res.HugepageLimits) == 0 && len(res.Unified) == 0 {
		return nil
	}
	return g.Update(&specs.LinuxResources{HugepageLimits: res.HugepageLimits, Unified: res.Unified})
}

func (o oci) freeze(ctx context.Context, c *container, on bool) error {
	// One that is killed here does not know what became of it.
	c.mu.Lock()
	c.rec.Unsettled = true
	err := c.save()
	c.mu.Unlock()
	if err != nil {
		return err
	}
	defer o.s.parenthood()()
	ctx = context.WithoutCancel(ctx)
	if on {
		err = o.container(c).Pause(ctx)
	} else {
		err = o.container(c).Resume(ctx)
	}
	c.mu.Lock()
	c.rec.Unsettled = err != nil // the caller saves it
	c.mu.Unlock()
	return err
}

func (o oci) frozen(ctx context.Context, c *container) (bool, error) {
	if !c.rec.Unsettled {
		return c.rec.Status.State == keeper.Paused, nil
	}
	st, err := o.container(c).State(ctx)
	if err == nil {
		c.rec.Unsettled = false
	}
	return st == "paused", err
}

func (o oci) settle(ctx context.Context, c *container) (bool, *keeper.Exit, error) {
	st, err := o.container(c).State(ctx)
	return err == nil && st != specs.StateCreated && st != specs.StateCreating, nil, err
}

func (o oci) remove(ctx context.Context, c *container) error {
	ctx = context.WithoutCancel(ctx)
	done := o.s.parenthood()
	err := o.container(c).Delete(ctx)
	done()
	if err != nil {
		// Its processes are killed, and its files and groups removed, all the same.
		c.warn("a container is removed without its runtime", "error", err)
	}
	faultOCIDeleted.Hit()
	return o.unmount(ctx, c)
}

// clampOOMScore raises a score that this process may not give (proc(5), oom_score_adj):
// without CAP_SYS_RESOURCE there is none below its own.
func clampOOMScore(p *specs.Process) {
	if p.OOMScoreAdj == nil || mayLowerOOMScore() {
		return
	}
	raw, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return
	}
	if least, err := strconv.Atoi(strings.TrimSpace(string(raw))); err == nil && *p.OOMScoreAdj < least {
		p.OOMScoreAdj = &least
	}
}

var mayLowerOOMScore = sync.OnceValue(func() bool {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	return unix.Capget(&head, &data[0]) == nil && data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
})

// obtainable leaves out capabilities that nobody on this machine can have: runtimes fail on
// them where the specification (config.md, "capabilities") wants a warning.
func obtainable(c *specs.LinuxCapabilities) *specs.LinuxCapabilities {
	if c == nil {
		return nil
	}
	lost := unobtainable()
	if len(lost) == 0 {
		return c
	}
	without := func(l []string) []string {
		return slices.DeleteFunc(slices.Clone(l), func(name string) bool { return slices.Contains(lost, name) })
	}
	return &specs.LinuxCapabilities{Bounding: without(c.Bounding), Effective: without(c.Effective), Inheritable: without(c.Inheritable),
		Permitted: without(c.Permitted), Ambient: without(c.Ambient)}
}

// unobtainable are the capabilities that this kernel has and this process's bounding set has not.
var unobtainable = sync.OnceValue(func() (lost []string) {
	for i, name := range executor.Capabilities() {
		if has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(i), 0, 0, 0); err == nil && has == 0 {
			lost = append(lost, name)
		}
	}
	return lost
})
