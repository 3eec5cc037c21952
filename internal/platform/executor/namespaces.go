package executor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/executor/guards"
	"github.com/orlop-io/orlop/internal/platform/executor/plan"
	"github.com/orlop-io/orlop/internal/platform/namespace"
)

var nsFlags = map[specs.LinuxNamespaceType]uint64{
	specs.PIDNamespace: unix.CLONE_NEWPID, specs.NetworkNamespace: unix.CLONE_NEWNET, specs.MountNamespace: unix.CLONE_NEWNS,
	specs.IPCNamespace: unix.CLONE_NEWIPC, specs.UTSNamespace: unix.CLONE_NEWUTS, specs.UserNamespace: unix.CLONE_NEWUSER,
	specs.CgroupNamespace: unix.CLONE_NEWCGROUP, specs.TimeNamespace: unix.CLONE_NEWTIME,
}

// namespaces reads which namespaces are made and which are joined. Where the start crosses
// into a user or time namespace, new namespaces are made once it is there, so that they
// belong to it; others are joined before, with the privileges of the caller, if he has any.
func (b *builder) namespaces(l *specs.Linux) error {
	b.clone = unix.CLONE_NEWNS
	seen := map[specs.LinuxNamespaceType]bool{}
	for _, ns := range l.Namespaces {
		if _, ok := nsFlags[ns.Type]; !ok {
			return errs.New(errs.Invalid, "namespace type %q is not known", ns.Type)
		}
		if seen[ns.Type] {
			return errs.New(errs.Invalid, "namespace %s is given twice", ns.Type)
		}
		seen[ns.Type] = true
		if ns.Path != "" && !filepath.IsAbs(ns.Path) {
			return errs.New(errs.Invalid, "namespace %s: %s is not an absolute path", ns.Type, ns.Path)
		}
	}
	if err := b.userNamespace(l); err != nil {
		return err
	}
	for _, ns := range l.Namespaces {
		flag := nsFlags[ns.Type]
		switch {
		case ns.Type == specs.UserNamespace:
		case ns.Path != "":
			if err := b.joinNamespace(ns, flag); err != nil {
				return err
			}
		default:
			b.newNamespace(flag, l.TimeOffsets)
		}
	}
	if b.pidns != nil && b.crosses() {
		b.joins.Add(plan.Setns, plan.N(b.give(b.pidns), unix.CLONE_NEWPID), b.pidns.Name())
		b.pidns = nil
	}
	if len(l.TimeOffsets) > 0 && b.own&unix.CLONE_NEWTIME == 0 {
		return errs.New(errs.Invalid, "timeOffsets need a time namespace of the container's own")
	}
	return nil
}

// userNamespace makes or opens the user namespace.
func (b *builder) userNamespace(l *specs.Linux) (err error) {
	i := slices.IndexFunc(l.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.UserNamespace })
	uids, gids := idMap(l.UIDMappings), idMap(l.GIDMappings)
	switch {
	case i < 0 && len(uids)+len(gids) > 0:
		return errs.New(errs.Invalid, "linux.uidMappings and gidMappings are given, but no user namespace")
	case i < 0:
		return nil
	case l.Namespaces[i].Path == "":
		b.user, err = newUserNS(uids, gids)
	default:
		b.user, err = openUserNS(l.Namespaces[i].Path)
		if b.user != nil && (len(uids) > 0 && !uids.equal(b.user.uids) || len(gids) > 0 && !gids.equal(b.user.gids)) {
			b.user.close()
			return errs.New(errs.Invalid, "linux.uidMappings and gidMappings are not those of the user namespace %s; leave them out", l.Namespaces[i].Path)
		}
	}
	if b.user == nil {
		return err
	}
	b.opened = append(b.opened, b.user.file)
	b.own |= unix.CLONE_NEWUSER
	for _, m := range []idMap{b.user.uids, b.user.gids} {
		if _, ok := m.host(0); !ok {
			return errs.New(errs.Invalid, "the user namespace has no user or group 0, which is needed to set the container up")
		}
	}
	return nil
}

func (b *builder) newNamespace(flag uint64, offsets map[string]specs.LinuxTimeOffset) {
	b.own |= flag
	switch flag {
	case unix.CLONE_NEWCGROUP:
		// Its root is where the thread is, which is known only once it is there.
		b.unshared.Add(plan.Unshare, plan.N(flag))
	case unix.CLONE_NEWTIME:
		// A thread's time namespace is for its children, and since Linux 6.3 for what it
		// executes; before, what it executes is outside and can make no thread. So the process
		// is a child, that of part 2. Whoever crosses into a user namespace may set no clock
		// from there.
		p := &b.unshared
		if privileged() {
			p, b.clock = &b.joins, true
		}
		p.Add(plan.Unshare, plan.N(flag))
		for _, clock := range sortedKeys(offsets) {
			p.Add(plan.TimeClock, nil, fmt.Sprintf("%s %d %d", clock, offsets[clock].Secs, offsets[clock].Nanosecs))
		}
	default:
		b.clone |= uintptr(flag)
		if flag == unix.CLONE_NEWNET {
			b.unshared.Add(plan.LoUp, nil)
		}
	}
}

func (b *builder) joinNamespace(ns specs.LinuxNamespace, flag uint64) error {
	f, err := openNamespace(ns.Path, flag)
	if err != nil {
		return err
	}
	b.opened = append(b.opened, f)
	if b.user == nil || !b.user.owns(f) {
		b.unowned |= flag
	}
	same, err := sameNamespace(f, "/proc/self/ns/"+nsFiles[ns.Type])
	if err != nil {
		return err
	}
	if same {
		// The caller's: it is as if nothing had been said, and nothing of it is the
		// container's own.
		if flag == unix.CLONE_NEWNS {
			return errs.New(errs.Invalid, "namespace mount: %s is the caller's own; a container's mounts may not be made there", ns.Path)
		}
		return nil
	}
	b.own |= flag
	if flag == unix.CLONE_NEWNET {
		b.netNS = f
	}
	switch {
	case flag == unix.CLONE_NEWNS:
		b.clone &^= unix.CLONE_NEWNS
		b.mountNS = f
	case flag == unix.CLONE_NEWTIME:
		b.entered = append(b.entered, entered{f, flag})
	case flag == unix.CLONE_NEWPID && b.user != nil && !privileged():
		b.entered = append(b.entered, entered{f, flag})
	case flag == unix.CLONE_NEWPID:
		b.pidns = f // whether the start crosses is known at the end
	default:
		b.joins.Add(plan.Setns, plan.N(b.give(f), flag), ns.Path)
	}
	return nil
}

// namespacesOf joins the namespaces of a process.
func (b *builder) namespacesOf(pid int, pidfd *os.File) error {
	kinds := uint64(unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS | unix.CLONE_NEWNET | unix.CLONE_NEWCGROUP)
	open := func(name string) (*os.File, error) {
		path := fmt.Sprintf("/proc/%d/ns/%s", pid, name)
		f, err := os.Open(path)
		if err != nil {
			if errors.Is(err, os.ErrNotExist) && name == "time" { // Linux before 5.6
				return nil, nil
			}
			return nil, kinded(fmt.Errorf("join the container: %w", err), err)
		}
		if same, err := sameNamespace(f, "/proc/self/ns/"+name); same || err != nil {
			f.Close()
			return nil, err
		}
		b.opened = append(b.opened, f)
		return f, nil
	}
	user, err := open("user")
	if err == nil && user != nil {
		b.foreign = true
		b.user = &userNS{file: user}
		if b.user.uids, err = readMap(pid, "uid_map"); err == nil {
			b.user.gids, err = readMap(pid, "gid_map")
		}
	}
	if err != nil {
		return kinded(err, err)
	}
	clock, err := open("time")
	if err != nil {
		return err
	}
	if clock != nil {
		b.entered = append(b.entered, entered{clock, unix.CLONE_NEWTIME})
	}
	// What was read is the process's only if it is still the same one.
	if err := unix.PidfdSendSignal(int(pidfd.Fd()), 0, nil, 0); err != nil {
		return kinded(fmt.Errorf("join the container: %w", err), err)
	}
	if !b.crosses() {
		b.pidfd = pidfd
		b.plan.Add(plan.Setns, plan.N(b.give(pidfd), kinds), "of the container")
		return nil
	}
	fd := b.give(pidfd)
	if privileged() {
		b.host.Add(plan.Setns, plan.N(fd, kinds&^unix.CLONE_NEWNS|unix.CLONE_NEWPID), "of the container")
		kinds = unix.CLONE_NEWNS
	} else {
		b.entered = append(b.entered, entered{pidfd, unix.CLONE_NEWPID})
	}
	b.plan.Add(plan.Setns, plan.N(fd, kinds), "of the container")
	return nil
}

// nsFiles are the names of the namespaces' files in /proc/PID/ns.
var nsFiles = map[specs.LinuxNamespaceType]string{
	specs.PIDNamespace: "pid", specs.NetworkNamespace: "net", specs.MountNamespace: "mnt", specs.IPCNamespace: "ipc",
	specs.UTSNamespace: "uts", specs.CgroupNamespace: "cgroup", specs.TimeNamespace: "time",
}

// openNamespace opens a namespace and makes sure that it is one of the kind.
func openNamespace(path string, flag uint64) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, kinded(fmt.Errorf("join namespace: %w", err), err)
	}
	kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
	if err != nil || uint64(kind) != flag {
		f.Close()
		return nil, errs.New(errs.Invalid, "join namespace %s: it is not a namespace of that kind (is it still pinned there?)", path)
	}
	return f, nil
}

// sysctls checks that every name belongs to a namespace of the container's own and puts
// them into the plan.
func (b *builder) sysctls(values map[string]string) error {
	for _, name := range sortedKeys(values) {
		path := namespace.SysctlPath(name)
		if guards.SysctlNames.On() && !namespace.IsLocal(path) {
			return errs.New(errs.Invalid, "sysctl %s: it is not the name of one", name)
		}
		var need uint64
		var kind string
		switch namespace.SysctlKind(path) {
		case namespace.Net:
			need, kind = unix.CLONE_NEWNET, "network"
		case namespace.UTS:
			need, kind = unix.CLONE_NEWUTS, "uts"
		case namespace.IPC:
			need, kind = unix.CLONE_NEWIPC, "ipc"
		default:
			return errs.New(errs.Invalid, "sysctl %s is not of any namespace: it would change the host", name)
		}
		if b.own&need == 0 {
			return errs.New(errs.Invalid, "sysctl %s needs a %s namespace of the container's own: it would change the host", name, kind)
		}
		b.plan.Add(plan.Sysctl, nil, path, values[name])
	}
	return nil
}

// onPIDNamespace runs fn on a thread whose children are made in the PID namespace of ns,
// which is a namespace or a pidfd.
func onPIDNamespace(ns *os.File, fn func() error) error {
	return namespace.OnThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWPID); err != nil {
			return fmt.Errorf("join PID namespace %s: %w", ns.Name(), err)
		}
		return fn()
	})
}
