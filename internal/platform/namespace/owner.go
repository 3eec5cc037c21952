package namespace

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// IDMaps are what a user namespace maps to the host's ids (user_namespaces(7)).
type IDMaps struct {
	UIDs, GIDs []specs.LinuxIDMapping
}

// Root returns the host's ids of the namespace's user and group 0.
func (m *IDMaps) Root() (uid, gid int, ok bool) {
	uid, uok := host(m.UIDs, 0)
	gid, gok := host(m.GIDs, 0)
	return uid, gid, uok && gok
}

// MapsGroup tells whether a group of the namespace has an id on the host.
func (m *IDMaps) MapsGroup(id uint32) bool {
	_, ok := host(m.GIDs, id)
	return ok
}

// Equal tells whether two user namespaces map the same; nil is the host's.
func (m *IDMaps) Equal(o *IDMaps) bool {
	if m == nil || o == nil {
		return m == o
	}
	return slices.Equal(m.UIDs, o.UIDs) && slices.Equal(m.GIDs, o.GIDs)
}

func host(list []specs.LinuxIDMapping, id uint32) (int, bool) {
	for _, r := range list {
		if id >= r.ContainerID && id-r.ContainerID < r.Size {
			return int(r.HostID) + int(id-r.ContainerID), true
		}
	}
	return 0, false
}

// pinOwned is pin for namespaces that belong to a user namespace of their own, so that its
// root has its capabilities over them. Only a clone makes them so, and only a process with
// a single thread enters a user namespace: a child is cloned into all of them and stopped
// where it would execute its first instruction (PTRACE_TRACEME), mounted, and killed.
func pinOwned(dir string, kinds []Kind, clone int, o Options) error {
	uid, _, ok := o.Users.Root()
	if !ok {
		return errs.New(errs.Invalid, "the user namespace does not map user and group 0, which own what is in it")
	}
	child, err := os.StartProcess("/proc/self/exe", []string{"orlop-namespaces"}, &os.ProcAttr{Env: []string{}, Sys: &syscall.SysProcAttr{
		Cloneflags: uintptr(clone | unix.CLONE_NEWUSER), UidMappings: sysMaps(o.Users.UIDs), GidMappings: sysMaps(o.Users.GIDs), GidMappingsEnableSetgroups: true,
		Ptrace: true, Pdeathsig: unix.SIGKILL,
	}})
	if err != nil {
		if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EUSERS) {
			return errs.New(errs.ResourceExhausted, "make a user namespace: %w; user.max_user_namespaces is reached", err)
		}
		return errs.New(errs.Invalid, "make a user namespace with the mappings %v and %v: %w", o.Users.UIDs, o.Users.GIDs, err)
	}
	defer child.Wait()
	defer child.Kill()
	from := fmt.Sprintf("/proc/%d/ns/", child.Pid)
	for _, k := range kinds {
		f, err := os.Open(from + string(k))
		if err != nil {
			return err
		}
		err = unix.Setns(int(f.Fd()), flags[k])
		f.Close()
		if err != nil {
			return fmt.Errorf("enter %s: %w", k, err)
		}
	}
	// Settings of an IPC namespace are its root's alone, whatever else one may do.
	as := func(k Kind, fn func() error) error {
		if k != IPC {
			return fn()
		}
		if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); e != 0 {
			return e
		}
		err := fn()
		if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), 0, ^uintptr(0)); e != 0 {
			return e
		}
		return err
	}
	if err := furnish(kinds, o, as); err != nil {
		return err
	}
	afterMade.Hit()
	for _, k := range append([]Kind{User}, kinds...) {
		if err := bind(from+string(k), filepath.Join(dir, string(k))); err != nil {
			return err
		}
		afterFirst.Hit()
	}
	return nil
}

func sysMaps(list []specs.LinuxIDMapping) (out []syscall.SysProcIDMap) {
	for _, m := range list {
		out = append(out, syscall.SysProcIDMap{ContainerID: int(m.ContainerID), HostID: int(m.HostID), Size: int(m.Size)})
	}
	return out
}
