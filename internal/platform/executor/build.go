package executor

import (
	"maps"
	"os"
	"slices"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/cgroup"
	"github.com/orlop-io/orlop/internal/platform/executor/guards"
	"github.com/orlop-io/orlop/internal/platform/executor/plan"
	"github.com/orlop-io/orlop/internal/platform/overlay"
)

// builder turns a specification into a plan and what the clone needs.
type builder struct {
	plan     plan.Plan
	warnings []string

	clone  uintptr  // CLONE_NEW* flags of the clone
	own    uint64   // CLONE_NEW* of the namespaces that are not the caller's
	pidns  *os.File // PID namespace to join, or
	pidfd  *os.File // process whose PID namespace to join
	give   func(*os.File) uint64
	files  []*os.File // what the child gets from plan.FirstFD on
	opened []*os.File // to close when the child has its own

	gate      *os.File // the FIFO to wait at
	hook      hookPlan
	listener  *listener
	rdt       *rdt
	cpus      []int // where the process starts; none: anywhere
	foreign   bool  // in another user namespace than the caller
	created   func(*Process) error
	extra     []*os.File // descriptors 3, 4, … of the program
	work      string     // of the overlay
	traced    bool
	joining   bool // an exec
	noKeyring bool

	// Where the process is in another user or time namespace: see crossing.go.
	user      *userNS
	host      plan.Plan // what is done before it is entered
	hostClone uintptr
	entered   []entered
	clock     bool     // a new time namespace, which the process of part 3 is born into
	steps     []string // of the program that enters it, for errors
	scheduler []uint64

	cgroup      *cgroup.Group
	clones      func() (whole, threads bool) // cgroup.Clones, asked once
	groupDirs   map[string]string            // its directories, once they were asked for
	cgroupRW    bool                         // it is mounted writable
	nullStreams uint64

	// Mounts: early opens sources on the host while its mounts are peers, layers once they
	// are not, inside in the container's namespaces; late is in the container's root and
	// before the pivot, last when all are there and after it.
	early, layers, inside, late, last plan.Plan
	joins, unshared                   plan.Plan // namespaces
	mountNS                           *os.File  // to join; nil: a new one
	netNS                             *os.File  // that is joined, for
	devs                              []*netDevice
	mappings                          []*userNS // of id-mapped mounts
	bundle                            string
	unowned                           uint64 // CLONE_NEW* of namespaces that are joined and do not belong to the user namespace
	slots                             uint64
	ownDev                            bool
	propagation                       uint64 // of bind mounts that say nothing
}

func newBuilder(g *cgroup.Group, stdin, stdout, stderr *os.File) *builder {
	b := &builder{cgroup: g, ownDev: true, propagation: unix.MS_SLAVE, clones: func() (whole, threads bool) { return true, false }}
	if g != nil {
		b.clones = sync.OnceValues(g.Clones)
	}
	b.give = func(f *os.File) uint64 {
		b.files = append(b.files, f)
		return uint64(plan.FirstFD + len(b.files) - 1)
	}
	for i, f := range []*os.File{stdin, stdout, stderr} {
		if f == nil {
			b.nullStreams |= 1 << i
		}
	}
	return b
}

func (b *builder) close() {
	for _, f := range b.opened {
		f.Close()
	}
}

// forget lets the layers be mounted again: see Rootfs.Upper.
func (b *builder) forget() error {
	if b.work == "" {
		return nil
	}
	return overlay.ForgetVolatile(b.work)
}

func (b *builder) slot() uint64 {
	b.slots++
	return b.slots - 1
}

// container makes the plan of a container's first process.
func (b *builder) container(c *Config) error {
	spec := c.Spec
	if spec == nil {
		return errs.New(errs.Invalid, "no specification is given")
	}
	l := spec.Linux
	if l == nil {
		l = &specs.Linux{}
	}
	p := spec.Process
	if c.Pause {
		p = &specs.Process{Cwd: "/", Args: []string{"pause"}}
		b.nullStreams = 0
	} else if p == nil {
		return errs.New(errs.Invalid, "the specification has no process")
	}
	if err := b.class(c.ID, l.IntelRdt); err != nil {
		return err
	}
	if err := checkMountLabel(l.MountLabel); err != nil {
		return err
	}
	b.foreign = ownUsers(l)
	createHooks, startHooks, err := b.hooks(c)
	if err != nil {
		return err
	}
	if err := b.namespaces(l); err != nil {
		return err
	}
	if err := b.netDevices(l.NetDevices); err != nil {
		return err
	}
	final, ok := rootPropagation(l.RootfsPropagation)
	if !ok {
		return errs.New(errs.Invalid, "rootfsPropagation %q is not known", l.RootfsPropagation)
	}
	if final&^unix.MS_REC == unix.MS_PRIVATE {
		b.propagation = unix.MS_PRIVATE
	}
	at, err := b.root(c.Rootfs, c.Pause)
	if err != nil {
		return err
	}
	b.bundle = c.Bundle
	if err := b.mounts(spec.Mounts); err != nil {
		return err
	}
	if !c.Pause {
		if err := b.devices(l.Devices); err != nil {
			return err
		}
	}
	if err := b.maskedPaths(l); err != nil {
		return err
	}
	// Sources are opened on the host's side of a user namespace, if there is one. Nothing
	// that happens after that may reach the host's mounts.
	slave := plan.Op{Code: plan.Propagate, N: plan.N(unix.MS_SLAVE | unix.MS_REC), S: []string{"/"}}
	if !guards.Slave.On() {
		slave.N = plan.N(unix.MS_SHARED | unix.MS_REC)
	}
	switch {
	case b.crosses() && privileged():
		b.host.Ops = slices.Concat(b.joins.Ops, b.early.Ops)
		if len(b.layers.Ops) > 0 {
			b.hostClone = unix.CLONE_NEWNS
			b.host.Ops = slices.Concat(b.host.Ops, []plan.Op{slave}, b.layers.Ops)
		}
		b.plan.Ops = slices.Concat(b.unshared.Ops, b.inside.Ops)
	case b.mountNS == nil:
		b.plan.Ops = slices.Concat(b.joins.Ops, b.unshared.Ops, b.early.Ops, []plan.Op{slave}, b.layers.Ops, b.inside.Ops)
	default:
		// Mounting has to happen where it may: before 6.5 the layers pass over the tree.
		b.plan.Ops = slices.Concat(b.joins.Ops, b.unshared.Ops, b.early.Ops, b.inside.Ops)
	}
	if b.mountNS != nil {
		b.plan.Add(plan.Setns, plan.N(b.give(b.mountNS), unix.CLONE_NEWNS), b.mountNS.Name())
	}
	if at == "" { // the root of the mount namespace that is joined, as it is
		b.plan.Add(plan.EnterRoot, nil)
	} else {
		b.plan.Ops = append(b.plan.Ops, slave)
		if b.mountNS != nil && !(b.crosses() && privileged()) {
			b.plan.Ops = append(b.plan.Ops, b.layers.Ops...)
		}
		b.plan.Add(plan.Root, plan.N(0), at)
	}
	b.plan.Add(plan.Umask, plan.N(0))
	b.plan.Ops = append(b.plan.Ops, b.late.Ops...)
	b.plan.Ops = append(b.plan.Ops, createHooks.Ops...)
	if at == "" {
	} else if c.NoPivot {
		b.plan.Add(plan.MoveRoot, nil)
	} else {
		b.plan.Add(plan.Pivot, nil)
	}
	if !c.Pause {
		b.streams(p, false)
	}
	if !c.Pause && p.Cwd != "/" && (spec.Root != nil && spec.Root.Readonly || len(l.ReadonlyPaths) > 0) {
		b.plan.Add(plan.MakeCwd, nil, p.Cwd)
	}
	b.plan.Ops = append(b.plan.Ops, b.last.Ops...)
	if spec.Root != nil && spec.Root.Readonly || c.Pause {
		b.plan.Add(plan.PathAttr, plan.N(unix.MOUNT_ATTR_RDONLY, 0, 0), "/")
	}
	if final != 0 {
		b.plan.Add(plan.Propagate, plan.N(final), "/")
	}
	if err := b.identity(spec, l); err != nil {
		return err
	}
	if err := b.memory(l.MemoryPolicy, l.Personality); err != nil {
		return err
	}
	if c.Pause {
		b.plan.Add(plan.Session, nil)
		b.plan.Add(plan.Bounding, plan.N(0))
		b.plan.Add(plan.Caps, plan.N(0, 0, 0, 0))
		b.plan.Add(plan.NoNewPrivs, nil)
		b.waitAtGate()
		b.plan.Ops = append(b.plan.Ops, startHooks.Ops...)
		b.plan.Add(plan.Pause, nil)
		return nil
	}
	if err := b.process(p, l.Seccomp, nil, startHooks, false); err != nil {
		return err
	}
	if b.crosses() {
		b.split(p.User.UID, p.Terminal)
	}
	return nil
}

// identity sets what the container's namespaces are known by.
func (b *builder) identity(spec *specs.Spec, l *specs.Linux) error {
	for _, n := range []struct {
		code  plan.Code
		field string
		value string
	}{{plan.Hostname, "hostname", spec.Hostname}, {plan.Domainname, "domainname", spec.Domainname}} {
		if n.value == "" {
			continue
		}
		if b.own&unix.CLONE_NEWUTS == 0 {
			return errs.New(errs.Invalid, "%s needs a uts namespace of the container's own: it would change the host's", n.field)
		}
		if len(n.value) > 64 {
			return errs.New(errs.Invalid, "%s %q is longer than 64 bytes", n.field, n.value)
		}
		b.plan.Add(n.code, nil, n.value)
	}
	return b.sysctls(l.Sysctl)
}

// join makes the plan of a process in a container that runs.
func (b *builder) join(c *ExecConfig, pidfd *os.File) error {
	if c.Process == nil {
		return errs.New(errs.Invalid, "no process is given")
	}
	b.joining = true
	if c.Filter != nil && c.Filter.Notify {
		return errs.New(errs.Invalid, "a compiled seccomp filter does not say who its listener is: give the profile")
	}
	b.hook.state = specs.State{Version: specs.Version, ID: c.ID, Status: specs.StateRunning, Pid: c.PID, Bundle: c.Bundle, Annotations: c.Annotations}
	if err := b.namespacesOf(c.PID, pidfd); err != nil {
		return err
	}
	if err := b.class(c.ID, c.IntelRdt); err != nil {
		return err
	}
	b.plan.Add(plan.EnterRoot, nil)
	b.plan.Add(plan.Umask, plan.N(0))
	if err := b.memory(c.MemoryPolicy, c.Personality); err != nil {
		return err
	}
	b.streams(c.Process, true)
	if err := b.process(c.Process, c.Seccomp, c.Filter, plan.Plan{}, true); err != nil {
		return err
	}
	if b.crosses() {
		b.split(c.Process.User.UID, c.Process.Terminal)
	}
	return nil
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
