package cgroup

import (
	"errors"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// TakesThreads tells whether SpawnOnThread may be used, and has something to gain: on
// Hybrid, in a group where nothing can stop the thread, since all of its process would
// wait for it: not below an exhausted quota, nor in a group that is frozen. On V1 it is
// not done, because there the group's list of processes, by which it is killed, would
// show the caller's process while its thread is inside.
func (g *Group) TakesThreads() bool {
	return g.host.layout.Mode == Hybrid && !g.pendingScope() && !g.throttles() && !g.freezes()
}

// Clones tells whether a process that SpawnOnThread clones is in the whole group from its
// first instruction, and may make a cgroup namespace at once; threads is TakesThreads.
func (g *Group) Clones() (whole, threads bool) {
	threads = g.TakesThreads()
	return threads || g.host.layout.Mode == V2 && !g.pendingScope(), threads
}

// throttles tells whether the group or one above it has a CPU quota that others may have
// used up. Its own does not count while it is empty: a start needs a fraction of the least.
func (g *Group) throttles() bool {
	t, ok := g.host.hierarchyOf("cpu")
	if !ok {
		return false
	}
	for rel := g.in(t); rel != "/"; rel = path.Dir(rel) {
		quota, err := read(t.mount+rel, "cpu.cfs_quota_us")
		if err == nil && strings.TrimSpace(quota) != "-1" && (rel != g.in(t) || !g.Empty()) {
			return true
		}
	}
	return false
}

// freezes tells whether the group is in, or below, a frozen group of v1.
func (g *Group) freezes() bool {
	t, ok := g.host.hierarchyOf("freezer")
	if !ok {
		return false
	}
	for rel := g.in(t); rel != "/"; rel = path.Dir(rel) { // a group's state tells those above too
		if state, err := read(t.mount+rel, "freezer.state"); err == nil {
			return strings.TrimSpace(state) != "THAWED"
		}
	}
	return false
}

// SpawnOnThread is, where TakesThreads has said yes, Spawn for a clone that forks from the calling thread: that thread
// enters the group's v1 hierarchies and the process inherits them, so that it too is in
// all of them from its first instruction. The thread stays inside: it must be locked to
// its goroutine and end with it (namespace.OnThread).
//
// Moving another process takes a lock of the kernel against every fork of the machine,
// which waits for a grace period of RCU: 5 to 15 ms, unless somebody had it a moment
// before. A thread that moves itself (it writes 0, to tasks) takes none since Linux 5.17
// (commit 9a3284fad42f), and clone3 into a group of cgroup2 neither.
//
// On V1 and V2 it is Spawn.
func (g *Group) SpawnOnThread(clone func(cgroupFD int) (pid int, err error)) (int, error) {
	if g.host.layout.Mode != Hybrid {
		return g.Spawn(clone)
	}
	if err := g.eachV1("tasks", "0", "a thread"); err != nil {
		return 0, err
	}
	pid, err := g.cloneUnified(clone)
	if errors.Is(err, unix.EAGAIN) {
		// The thread counts against the limit of processes. Where just that one is over, the
		// process is cloned outside, and moved in.
		if t, ok := g.host.hierarchyOf("pids"); ok && write(t.mount, "tasks", "0") == nil {
			if pid, err = g.cloneUnified(clone); err == nil {
				return pid, g.joinV1(pid)
			}
		}
	}
	if errors.Is(err, errNoDir) {
		return 0, g.missing()
	}
	return pid, err
}
