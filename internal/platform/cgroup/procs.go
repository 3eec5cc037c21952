package cgroup

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// Procs returns the processes in the group and in all groups below it, none if it does
// not exist. What a container's processes in other pid namespaces are here: the ids of
// the caller's.
func (g *Group) Procs() ([]int, error) {
	pids, err := readProcs(g.roll())
	if err != nil {
		return nil, fmt.Errorf("list processes of cgroup %s: %w", g.path, err)
	}
	return pids, nil
}

func readProcs(dir string) (pids []int, err error) {
	text, err := read(dir, "cgroup.procs")
	switch {
	case errors.Is(err, errs.NotFound):
		return nil, nil
	case errors.Is(err, unix.EOPNOTSUPP):
		// A threaded group of a container's own making: its processes are listed at
		// the root of its domain, which is above.
	case err != nil:
		return nil, err
	}
	for line := range strings.SplitSeq(text, "\n") {
		// 0 is a process of a pid namespace that is not below the reader's.
		if pid, err := strconv.Atoi(line); err == nil && pid > 0 {
			pids = append(pids, pid)
		}
	}
	sub, err := subdirs(dir)
	if err != nil {
		return nil, err
	}
	for _, s := range sub {
		more, err := readProcs(dir + "/" + s)
		if err != nil {
			return nil, err
		}
		pids = append(pids, more...)
	}
	slices.Sort(pids)
	return slices.Compact(pids), nil
}

// Empty tells whether the group, with all below it, has no process, or does not exist.
func (g *Group) Empty() bool {
	if d := g.unifiedDir(); d != "" {
		m, err := flat(d, "cgroup.events")
		return err == nil && m["populated"] == 0
	}
	pids, err := readProcs(g.roll())
	return err == nil && len(pids) == 0
}

// Freeze stops every process of the group, and waits until they stand still. When ctx
// ends before, the group is thawed again and the error is errs.Timeout or
// errs.Canceled.
func (g *Group) Freeze(ctx context.Context) error {
	if err := g.freeze(ctx); err != nil {
		if ctx.Err() != nil {
			g.setFrozen(false)
		}
		return fmt.Errorf("freeze cgroup %s: %w", g.path, err)
	}
	return nil
}

// Thaw undoes Freeze.
func (g *Group) Thaw(ctx context.Context) error {
	err := g.setFrozen(false)
	if err == nil {
		err = poll(ctx, func() (bool, error) { f, _, err := g.frozen(); return !f, err })
	}
	if err != nil {
		return fmt.Errorf("thaw cgroup %s: %w", g.path, err)
	}
	return nil
}

// Frozen tells whether the group stands still, by its own or a parent's freezing.
func (g *Group) Frozen() (bool, error) {
	f, _, err := g.frozen()
	return f, err
}

func (g *Group) freeze(ctx context.Context) error {
	if err := g.setFrozen(true); err != nil {
		return err
	}
	rounds := 0
	return poll(ctx, func() (bool, error) {
		done, partly, err := g.frozen()
		if done || err != nil || g.unifiedDir() != "" {
			return done, err
		}
		// v1 can stay FREEZING for as long as processes fork against it; asked
		// again, and in the end let go for a moment, it gets there.
		if rounds++; partly && rounds%50 == 0 {
			if err := g.setFrozen(false); err != nil {
				return false, err
			}
		}
		return false, g.setFrozen(true)
	})
}

func (g *Group) setFrozen(on bool) error {
	if d := g.unifiedDir(); d != "" {
		return write(d, "cgroup.freeze", map[bool]string{true: "1", false: "0"}[on])
	}
	return write(g.dir("freezer"), "freezer.state", map[bool]string{true: "FROZEN", false: "THAWED"}[on])
}

// frozen tells whether all stand still, and on V1 whether some do not yet.
func (g *Group) frozen() (done, partly bool, err error) {
	if d := g.unifiedDir(); d != "" {
		m, err := flat(d, "cgroup.events")
		if m == nil && err == nil {
			err = errs.New(errs.NotFound, "cgroup %s does not exist", g.path)
		}
		return m["frozen"] == 1, false, err
	}
	s, err := read(g.dir("freezer"), "freezer.state")
	return s == "FROZEN", s == "FREEZING", err
}

// poll asks until the answer is yes, first often, then every 10 ms. The kernel tells
// of these changes by modify events on cgroup.events, but a descriptor and an
// inotify watch cost more than the few questions that it takes.
func poll(ctx context.Context, ask func() (bool, error)) error {
	wait := 100 * time.Microsecond
	for {
		yes, err := ask()
		if yes || err != nil {
			return err
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return context.Cause(ctx)
		case <-t.C:
		}
		wait = min(wait*2, 10*time.Millisecond)
	}
}

// Kill sends sig to every process of the group and below; SIGKILL reaches even those
// that are being forked meanwhile, and those of a frozen group. It does not wait for
// their end.
func (g *Group) Kill(sig syscall.Signal) error {
	if err := g.kill(sig); err != nil && !errors.Is(err, errs.NotFound) {
		return fmt.Errorf("kill cgroup %s: %w", g.path, err)
	}
	return nil
}

func (g *Group) kill(sig syscall.Signal) error {
	if d := g.unifiedDir(); d != "" && sig == unix.SIGKILL && exists(d, "cgroup.kill") { // Linux 5.14
		return write(d, "cgroup.kill", "1")
	}
	was, _, err := g.frozen()
	if err != nil {
		return err
	}
	if !was {
		// Standing still, they cannot fork. Should they not come to stand in time
		// (a process in an uninterruptible sleep), the rounds below do.
		ctx, cancel := context.WithTimeout(context.Background(), 200*time.Millisecond)
		err := g.freeze(ctx)
		cancel()
		if err != nil && ctx.Err() == nil {
			return err
		}
	}
	signalled := map[int]bool{}
	var failed error
	for round := 0; round < 100; round++ {
		pids, err := readProcs(g.roll())
		if err != nil {
			failed = err
			break
		}
		fresh := false
		for _, pid := range pids {
			if signalled[pid] {
				continue
			}
			signalled[pid], fresh = true, true
			if err := unix.Kill(pid, sig); err != nil && err != unix.ESRCH {
				failed = fmt.Errorf("signal process %d: %w", pid, err)
			}
		}
		if !fresh {
			break
		}
	}
	// A frozen process of v1 dies only when it is let go; one that was frozen by
	// somebody else stays so for every other signal.
	if !was || sig == unix.SIGKILL {
		if err := g.setFrozen(false); err != nil && failed == nil {
			failed = err
		}
	}
	return failed
}

const removeWait = 5 * time.Second

// Remove takes the group away with all groups below it. It kills nothing: while there
// are processes it waits for their end until ctx ends (at most five seconds without a
// deadline), and then returns errs.InUse. A group that is not there is no error.
func (g *Group) Remove(ctx context.Context) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, removeWait)
		defer cancel()
	}
	var err error
	if g.host.systemd != nil {
		err = g.host.systemd.remove(ctx, g)
	}
	if err == nil {
		err = g.removeDirs(ctx)
	}
	if err != nil {
		return fmt.Errorf("remove cgroup %s: %w", g.path, err)
	}
	return nil
}

// removeDirs removes v1's directories first: cgroup2's is the roll that tells, after
// a crash in between, that the group is still there.
func (g *Group) removeDirs(ctx context.Context) error {
	some := false
	for _, dir := range g.places() {
		if err := unix.Rmdir(dir); err != nil {
			if err == unix.ENOENT || !isDir(dir) {
				continue
			}
			if err := removeUsed(ctx, dir); err != nil {
				return err
			}
		}
		if !some {
			afterSome.Hit()
		}
		some = true
	}
	return nil
}

// removeUsed removes a directory with what is below it, and waits for the processes there.
func removeUsed(ctx context.Context, dir string) error {
	var last error
	err := poll(ctx, func() (bool, error) {
		last = removeTree(dir)
		// EBUSY: processes, of which the last may be just leaving.
		if errors.Is(last, unix.EBUSY) || errors.Is(last, unix.ENOTEMPTY) {
			return false, nil
		}
		return true, last
	})
	if err != nil && last != nil && ctx.Err() != nil {
		pids, _ := readProcs(dir)
		if len(pids) > 0 {
			return errs.New(errs.InUse, "%s has processes: %v; end them first", dir, pids[:min(len(pids), 8)])
		}
		return errs.New(errs.InUse, "%s: %w", dir, last)
	}
	return err
}

// removeTree removes dir and the groups below, deepest first.
func removeTree(dir string) error {
	err := unix.Rmdir(dir)
	if err == nil || err == unix.ENOENT {
		return nil
	}
	if err != unix.EBUSY && err != unix.ENOTEMPTY {
		return fmt.Errorf("remove %s: %w", dir, err)
	}
	sub, e := subdirs(dir)
	if e != nil {
		return e
	}
	for _, s := range sub {
		if err := removeTree(dir + "/" + s); err != nil {
			return err
		}
	}
	if len(sub) > 0 {
		if err = unix.Rmdir(dir); err == nil || err == unix.ENOENT {
			return nil
		}
	}
	return fmt.Errorf("remove %s: %w", dir, err)
}
