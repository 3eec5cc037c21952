package namespace

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
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

// MapsUser tells whether a user of the namespace has an id on the host.
func (m *IDMaps) MapsUser(id uint32) bool {
	_, ok := host(m.UIDs, id)
	return ok
}

// Overlaps tells whether a user or group of the host is in both namespaces.
func (m *IDMaps) Overlaps(o *IDMaps) bool {
	in := func(a, b []specs.LinuxIDMapping) bool {
		return slices.ContainsFunc(a, func(x specs.LinuxIDMapping) bool {
			return slices.ContainsFunc(b, func(y specs.LinuxIDMapping) bool {
				return uint64(x.HostID) < uint64(y.HostID)+uint64(y.Size) && uint64(y.HostID) < uint64(x.HostID)+uint64(x.Size)
			})
		})
	}
	return in(m.UIDs, o.UIDs) || in(m.GIDs, o.GIDs)
}

// Equal tells whether two user namespaces map the same; nil is the host's.
func (m *IDMaps) Equal(o *IDMaps) bool {
	if m == nil || o == nil {
		return m == o
	}
	return slices.Equal(m.UIDs, o.UIDs) && slices.Equal(m.GIDs, o.GIDs)
}

// Inside returns what the namespace knows the host's ids as. Those that it does not map are "nobody" there
// (/proc/sys/fs/overflowuid).
func (m *IDMaps) Inside(uid, gid int) (int, int) {
	in := func(list []specs.LinuxIDMapping, id int) int {
		for _, r := range list {
			if n := int64(id) - int64(r.HostID); n >= 0 && n < int64(r.Size) {
				return int(r.ContainerID) + int(n)
			}
		}
		return overflowID
	}
	return in(m.UIDs, uid), in(m.GIDs, gid)
}

const overflowID = 65534

// Outside returns the host's ids of a user and group of the namespace.
func (m *IDMaps) Outside(uid, gid int) (int, int, error) {
	u, uok := host(m.UIDs, uint32(uid))
	g, gok := host(m.GIDs, uint32(gid))
	if !uok || !gok {
		return 0, 0, errs.New(errs.Invalid, "owner %d:%d is not among the ids of the pod's user namespace", uid, gid)
	}
	return u, g, nil
}

// AsRoot runs fn on a thread for which files that it makes are the namespace's root's: those of id-mapped mounts
// can have no others' (EOVERFLOW). It keeps the caller's capabilities. Where m is nil it only runs fn.
func (m *IDMaps) AsRoot(fn func() error) error {
	if m == nil {
		return fn()
	}
	uid, gid, ok := m.Root()
	if !ok {
		return errs.New(errs.Invalid, "the user namespace maps no root")
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&header, &caps[0]); err != nil {
		return fmt.Errorf("capget: %w", err)
	}
	// setfsuid(2) and setfsgid(2) are the thread's alone. Away from 0 the first drops what of the effective
	// capabilities is for files, and back at 0 it takes what is permitted (capabilities(7)).
	defer func() {
		unix.SetfsuidRetUid(0)
		unix.SetfsgidRetGid(0)
		unix.Capset(&header, &caps[0])
	}()
	if _, err := unix.SetfsgidRetGid(gid); err != nil {
		return fmt.Errorf("setfsgid: %w", err)
	}
	if _, err := unix.SetfsuidRetUid(uid); err != nil {
		return fmt.Errorf("setfsuid: %w", err)
	}
	if err := unix.Capset(&header, &caps[0]); err != nil {
		return fmt.Errorf("capset: %w", err)
	}
	return fn()
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
