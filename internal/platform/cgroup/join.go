package cgroup

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// Spawn runs clone so that the process that it makes is in the group from its first
// instruction where the kernel can do that, and is moved in before Spawn returns
// otherwise: on V1 and Hybrid the process runs for about 0.2 ms before it is in all
// hierarchies, so it must not run the user's program, nor fork, nor make a cgroup
// namespace (which has the groups of that moment for its root) until Spawn has
// returned. cgroupFD, where it is not negative, is for clone3's CLONE_INTO_CGROUP and
// only valid during the call.
//
// A group that has handed controllers to groups below it (a container that runs systemd
// does) takes no processes itself: clone, having failed with EBUSY, is called once more
// with the group in which one of the processes is that are there. And once more where systemd removed
// the group meanwhile, its last process having ended, so that it begins anew.
//
// When moving the process fails after clone has made it, Spawn returns its pid with
// the error, and the caller must kill it.
//
// Where TakesThreads says yes, SpawnOnThread is faster.
func (g *Group) Spawn(clone func(cgroupFD int) (pid int, err error)) (int, error) {
	if g.unifiedDir() == "" || g.pendingScope() {
		pid, err := clone(-1)
		if err != nil {
			return 0, err
		}
		return pid, g.Add(pid)
	}
	pid, err := g.cloneUnified(clone)
	if errors.Is(err, errNoDir) && g.pendingScope() { // it has just ended
		if pid, err = clone(-1); err != nil {
			return 0, err
		}
		return pid, g.Add(pid)
	}
	if errors.Is(err, errNoDir) {
		return 0, g.missing()
	}
	if err != nil {
		return 0, err
	}
	return pid, g.joinV1(pid)
}

func (g *Group) missing() error {
	return errs.New(errs.NotFound, "start a process in cgroup %s: it does not exist", g.path)
}

// cloneUnified runs clone with the group's directory in cgroup2, or with one below it
// where the group itself takes no processes.
func (g *Group) cloneUnified(clone func(cgroupFD int) (pid int, err error)) (int, error) {
	pid, err := cloneInto(g.unifiedDir(), clone)
	if errors.Is(err, unix.EBUSY) {
		if leaf := g.leaf(); leaf != "" {
			pid, err = cloneInto(leaf, clone)
		}
	}
	return pid, err
}

var errNoDir = errors.New("no such group")

func cloneInto(dir string, clone func(int) (int, error)) (int, error) {
	fd, err := openat(dir, unix.O_DIRECTORY|unix.O_PATH)
	if err == unix.ENOENT {
		return 0, errNoDir
	}
	if err != nil {
		return 0, fmt.Errorf("open %s: %w", dir, err)
	}
	defer unix.Close(fd)
	pid, err := clone(fd)
	if (errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV)) && !isDir(dir) {
		return 0, errNoDir // removed meanwhile, by systemd when its last process had ended
	}
	return pid, err
}

// pendingScope tells whether systemd has yet to make the group, for its first process.
func (g *Group) pendingScope() bool {
	return g.unit != nil && g.unit.scope && !isDir(g.unifiedDir())
}

// leaf is the group in cgroup2, at or below g, of one of g's processes.
func (g *Group) leaf() string {
	pids, err := readProcs(g.unifiedDir())
	if err != nil {
		return ""
	}
	for _, pid := range pids {
		b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/cgroup")
		if err != nil {
			continue // gone
		}
		for line := range strings.Lines(string(b)) {
			if p, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
				dir := g.host.unified.mount + strings.TrimPrefix(p, strings.TrimSuffix(g.host.unified.root, "/"))
				if strings.HasPrefix(dir, g.unifiedDir()+"/") && isDir(dir) {
					return dir
				}
			}
		}
	}
	return ""
}

// Add moves the process pid, all of its threads, into the group.
func (g *Group) Add(pid int) error {
	if g.pendingScope() {
		return g.host.systemd.start(g, pid)
	}
	if d := g.unifiedDir(); d != "" {
		err := write(d, "cgroup.procs", strconv.Itoa(pid))
		if errors.Is(err, errs.InUse) {
			if leaf := g.leaf(); leaf != "" {
				err = write(leaf, "cgroup.procs", strconv.Itoa(pid))
			}
		}
		if err != nil && g.pendingScope() { // it has just ended
			return g.host.systemd.start(g, pid)
		}
		if err != nil && !isDir(d) {
			err = errs.New(errs.NotFound, "the group does not exist")
		}
		if err != nil {
			return fmt.Errorf("add process %d to cgroup %s: %w", pid, g.path, err)
		}
		afterAddSome.Hit()
	}
	return g.joinV1(pid)
}

// joinV1 moves pid in every v1 hierarchy into the group, or, where the group has been
// made without that controller, into the nearest one above that has it: a pod's CPU set
// holds for a container that has none of its own.
func (g *Group) joinV1(pid int) error {
	return g.eachV1("cgroup.procs", strconv.Itoa(pid), "process "+strconv.Itoa(pid))
}

// eachV1 writes to the file by which who, for errors, joins, in each v1 hierarchy.
func (g *Group) eachV1(file, value, who string) error {
	joined := 0
	top := g.rel
	if i := strings.IndexByte(top[1:], '/'); i > 0 {
		top = top[:i+1]
	}
	for _, t := range g.host.v1 {
		own := g.in(t)
		for rel := own; rel != "/"; rel = path.Dir(rel) {
			there, err := writeIfThere(t.mount+rel, file, value)
			if err != nil {
				return fmt.Errorf("add %s to cgroup %s: %w", who, g.path, err)
			}
			if there {
				if rel == own {
					joined++
				}
				break
			}
			if rel == own && !isDir(t.mount+top) {
				break // no group of ours at all: one question instead of one a level
			}
		}
	}
	if joined == 0 && len(g.host.v1) > 0 {
		return errs.New(errs.NotFound, "add %s to cgroup %s: the group does not exist", who, g.path)
	}
	return nil
}
