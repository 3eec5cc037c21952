package cgroup

import (
	"context"
	"os"
	"syscall"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/orlop-io/orlop/internal/base/errs"
)

var errNotYet = errs.New(errs.Unsupported, "cgroup: not built yet")

// Host is the host's control groups. It is safe for concurrent use and holds no
// descriptors; there is nothing to close.
type Host struct{ layout Layout }

// Group is one control group: one directory on V2, one per hierarchy on V1. It holds
// no state that the kernel does not have, so any number of Groups may stand for the
// same path, in any number of processes. It is safe for concurrent use.
type Group struct{ path string }

// Open finds out which layout the host has.
func Open(o Options) (*Host, error) { return nil, errNotYet }

// Layout returns what Open found.
func (h *Host) Layout() Layout { return h.layout }

// Create makes the group at path, like /orlop/pod1/app, with its parents, and gives it
// the resources of res, of which nil fields are left as they are. It is idempotent. A
// group that this call made is taken away again when a value is refused; the error then
// names the file and the value. What the host has no way to limit is errs.Unsupported.
func (h *Host) Create(path string, res *specs.LinuxResources) (*Group, error) {
	return nil, errNotYet
}

// Load returns the group at path, or errs.NotFound.
func (h *Host) Load(path string) (*Group, error) { return nil, errNotYet }

// Children returns the names of the groups directly below path, in any hierarchy,
// sorted; none if path does not exist.
func (h *Host) Children(path string) ([]string, error) { return nil, errNotYet }

// Path returns the path that Create was given.
func (g *Group) Path() string { return g.path }

// Dirs returns the directory of the group in each hierarchy by controller ("memory",
// "cpu", …, and "" for cgroup2).
func (g *Group) Dirs() map[string]string { return nil }

// Spawn runs clone so that the process that it makes is in the group from its first
// instruction where the kernel can do that, and is moved in before Spawn returns
// otherwise. cgroupFD, where it is not negative, is for clone3's CLONE_INTO_CGROUP and
// only valid during the call.
//
// clone runs on a locked thread that may itself be in the group meanwhile (v1 has no
// CLONE_INTO_CGROUP); it must do nothing but make the process. When moving the process
// fails after clone has made it, Spawn returns its pid with the error, and the caller
// must kill it.
func (g *Group) Spawn(clone func(cgroupFD int) (pid int, err error)) (int, error) {
	return 0, errNotYet
}

// Add moves the process pid, all of its threads, into the group.
func (g *Group) Add(pid int) error { return errNotYet }

// DirFD opens the group's directory in cgroup2 for clone3's CLONE_INTO_CGROUP. It is
// false where the group has none, or it is not there before its first process
// (Systemd), or it would be only a part of the group (Hybrid): use Spawn or Add then.
func (g *Group) DirFD() (*os.File, bool) { return nil, false }

// Update sets the resources of res, of which nil fields are left as they are.
func (g *Group) Update(res *specs.LinuxResources) error { return errNotYet }

// Procs returns the processes in the group and in all groups below it.
func (g *Group) Procs() ([]int, error) { return nil, errNotYet }

// Empty tells whether the group, with all below it, has no process, or does not exist.
func (g *Group) Empty() bool { return false }

// Stats reads what the group has used.
func (g *Group) Stats() (Stats, error) { return Stats{}, errNotYet }

// OOMKills returns how many processes of the group and below the kernel's
// out-of-memory killer has killed since it was made.
func (g *Group) OOMKills() (uint64, error) { return 0, errNotYet }

// Freeze stops every process of the group, and waits until they stand still.
func (g *Group) Freeze(ctx context.Context) error { return errNotYet }

// Thaw undoes Freeze.
func (g *Group) Thaw(ctx context.Context) error { return errNotYet }

// Frozen tells whether the group has been frozen.
func (g *Group) Frozen() (bool, error) { return false, errNotYet }

// Kill sends sig to every process of the group and below; SIGKILL reaches even those
// that are being forked meanwhile, and those of a frozen group. It does not wait for
// their end.
func (g *Group) Kill(sig syscall.Signal) error { return errNotYet }

// Remove takes the group away with all groups below it. It kills nothing: while there
// are processes it waits for their end until ctx ends (at most five seconds without a
// deadline), and then returns errs.InUse. A group that is not there is no error.
func (g *Group) Remove(ctx context.Context) error { return errNotYet }
