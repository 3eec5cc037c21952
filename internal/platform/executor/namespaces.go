package executor

import (
	"fmt"
	"os"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/executor/plan"
	"github.com/orlop-io/orlop/internal/platform/namespace"
)

var nsFlags = map[specs.LinuxNamespaceType]uint64{
	specs.PIDNamespace: unix.CLONE_NEWPID, specs.NetworkNamespace: unix.CLONE_NEWNET, specs.MountNamespace: unix.CLONE_NEWNS,
	specs.IPCNamespace: unix.CLONE_NEWIPC, specs.UTSNamespace: unix.CLONE_NEWUTS, specs.UserNamespace: unix.CLONE_NEWUSER,
	specs.CgroupNamespace: unix.CLONE_NEWCGROUP, specs.TimeNamespace: unix.CLONE_NEWTIME,
}

// namespaces reads which namespaces are made and which are joined.
func (b *builder) namespaces(l *specs.Linux) error {
	b.clone = unix.CLONE_NEWNS
	seen := map[specs.LinuxNamespaceType]bool{}
	for _, ns := range l.Namespaces {
		flag, ok := nsFlags[ns.Type]
		if !ok {
			return errs.New(errs.Invalid, "namespace type %q is not known", ns.Type)
		}
		if seen[ns.Type] {
			return errs.New(errs.Invalid, "namespace %s is given twice", ns.Type)
		}
		seen[ns.Type] = true
		b.own |= flag
		switch ns.Type {
		case specs.UserNamespace:
			return errs.New(errs.Unsupported, "user namespaces are not supported yet; leave out linux.namespaces type user")
		case specs.MountNamespace:
			if ns.Path != "" {
				return errs.New(errs.Unsupported, "joining the mount namespace %s is not supported: a container has its own", ns.Path)
			}
			continue
		}
		if ns.Path == "" {
			switch ns.Type {
			case specs.CgroupNamespace:
				// Its root is where the thread is, which is known only once it is there.
				b.plan.Add(plan.Unshare, plan.N(flag))
			case specs.TimeNamespace:
				// A thread's time namespace is for its children and for what it executes.
				b.plan.Add(plan.Unshare, plan.N(flag))
				for clock, o := range l.TimeOffsets {
					b.plan.Add(plan.TimeClock, nil, fmt.Sprintf("%s %d %d", clock, o.Secs, o.Nanosecs))
				}
			default:
				b.clone |= uintptr(flag)
				if ns.Type == specs.NetworkNamespace {
					b.lo = true
				}
			}
			continue
		}
		if ns.Type == specs.TimeNamespace {
			return errs.New(errs.Unsupported, "joining the time namespace %s is not supported yet", ns.Path)
		}
		f, err := openNamespace(ns.Path, flag)
		if err != nil {
			return err
		}
		b.opened = append(b.opened, f)
		if ns.Type == specs.PIDNamespace {
			b.pidns = f
			continue
		}
		b.plan.Add(plan.Setns, plan.N(b.give(f), flag), ns.Path)
	}
	if len(l.TimeOffsets) > 0 && !seen[specs.TimeNamespace] {
		return errs.New(errs.Invalid, "timeOffsets need a time namespace of the container's own")
	}
	if b.lo {
		b.plan.Add(plan.LoUp, nil)
	}
	return nil
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
		path := sysctlPath(name)
		var need uint64
		var kind string
		switch {
		case strings.HasPrefix(path, "net/"):
			need, kind = unix.CLONE_NEWNET, "network"
		case path == "kernel/domainname" || path == "kernel/hostname":
			need, kind = unix.CLONE_NEWUTS, "uts"
		case strings.HasPrefix(path, "fs/mqueue/") || isIPC(path):
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

func isIPC(path string) bool {
	switch path {
	case "kernel/msgmax", "kernel/msgmnb", "kernel/msgmni", "kernel/sem", "kernel/shmall", "kernel/shmmax", "kernel/shmmni", "kernel/shm_rmid_forced":
		return true
	}
	return false
}

// sysctlPath turns a name with dots into a path. In a name whose first separator is a
// slash, slashes separate and dots are dots (sysctl.d(5)).
func sysctlPath(name string) string {
	if i := strings.IndexAny(name, "./"); i >= 0 && name[i] == '/' {
		return name
	}
	return strings.Map(func(r rune) rune {
		switch r {
		case '.':
			return '/'
		case '/':
			return '.'
		}
		return r
	}, name)
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
