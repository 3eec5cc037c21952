package cgroup

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// Update sets the resources of res, of which nil fields are left as they are. Where one is
// refused, those that were set before it are put back.
func (g *Group) Update(res *specs.LinuxResources) error {
	p, err := g.host.plan(res)
	if err == nil {
		before := g.settings(p)
		if err = g.update(p); err != nil {
			err = errors.Join(err, before.restore())
		}
	}
	if err != nil {
		return fmt.Errorf("update cgroup %s: %w", g.path, err)
	}
	return nil
}

func (g *Group) update(p *plan) error {
	if g.host.systemd != nil {
		return g.host.systemd.update(g, p)
	}
	return g.set(p)
}

// set applies p to a group that is there, with either driver.
func (g *Group) set(p *plan) error {
	if !g.exists() {
		return errs.New(errs.NotFound, "it does not exist")
	}
	// A controller that the group was made without: make its directory, and bring the
	// group's processes into it.
	for _, t := range g.host.v1 {
		if isDir(t.mount+g.rel) || !slices.ContainsFunc(t.controllers, func(c string) bool { return p.needs(c, false) }) {
			continue
		}
		if err := g.host.create(g, p); err != nil {
			return err
		}
		pids, err := readProcs(g.roll())
		if err != nil {
			return err
		}
		for _, pid := range pids {
			if err := write(t.mount+g.rel, "cgroup.procs", strconv.Itoa(pid)); err != nil && !errors.Is(err, errs.NotFound) {
				return err
			}
		}
	}
	if g.host.unified.mount != "" {
		want, rest := g.host.delegated(p)
		if err := delegate(g.host.unified.mount, g.rel, want, rest); err != nil {
			return err
		}
	}
	return g.apply(p)
}

// setting is what a file of a group said.
type setting struct{ dir, file, value string }

type settings []setting

// limits are the files that plans write, by controller; of those that are not named here
// the plan's steps tell the name.
var limits = map[string][]string{
	"cpu":    {"cpu.idle", "cpu.weight", "cpu.max", "cpu.max.burst", "cpu.shares", "cpu.cfs_period_us", "cpu.cfs_quota_us", "cpu.cfs_burst_us"},
	"memory": {"memory.max", "memory.swap.max", "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"},
	"blkio":  {"blkio.weight", "blkio.bfq.weight"},
	"io":     {"io.weight", "io.bfq.weight"},
}

// settings reads what the plan is about to change.
func (g *Group) settings(p *plan) (list settings) {
	seen := map[string]bool{}
	for _, s := range p.steps {
		dir := g.unifiedDir()
		if !s.unified {
			dir = g.dir(s.controller)
		}
		for _, file := range append([]string{s.file}, limits[s.controller]...) {
			if file == "" || seen[dir+"/"+file] {
				continue
			}
			seen[dir+"/"+file] = true
			if value, err := read(dir, file); err == nil {
				list = append(list, setting{dir, file, value})
			}
		}
	}
	return list
}

// restore writes back what has changed. One value may forbid another as long as it is
// there, so what is refused is tried again after the rest.
func (list settings) restore() error {
	var failed error
	for range len(list) {
		failed = nil
		for _, s := range list {
			now, err := read(s.dir, s.file)
			if err != nil || now == s.value {
				continue // equal, or gone with the group
			}
			for line := range strings.SplitSeq(s.lines(now), "\n") {
				if err := write(s.dir, s.file, line); err != nil {
					failed = errors.Join(failed, fmt.Errorf("put back: %w", err))
				}
			}
		}
		if failed == nil {
			return nil
		}
	}
	return failed
}

// lines are what to write for the setting to be as it was. A file with a line for each
// device has to be told of those too that had none.
func (s setting) lines(now string) string {
	device := func(line string) string {
		if d, _, ok := strings.Cut(line, " "); ok && strings.Contains(d, ":") {
			return d
		}
		return ""
	}
	none, keyed := map[string]string{"io.max": " rbps=max wbps=max riops=max wiops=max"}[s.file]
	if !keyed {
		if none = " 0"; !strings.HasPrefix(s.file, "blkio.throttle.") {
			return s.value
		}
	}
	var list []string
	for line := range strings.SplitSeq(s.value, "\n") {
		if line != "" {
			list = append(list, line)
		}
	}
	for line := range strings.SplitSeq(now, "\n") {
		if d := device(line); d != "" && !slices.ContainsFunc(list, func(l string) bool { return device(l) == d }) {
			list = append(list, d+none)
		}
	}
	return strings.Join(list, "\n")
}
