package cgroup

import (
	"fmt"
	"slices"
	"strings"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/rawfile"
)

// Place tells where groups are in each hierarchy: by the hierarchy's controllers as
// /proc/PID/cgroup has them ("memory", "cpu,cpuacct", "name=systemd"; "" is cgroup2), a
// path below where the hierarchy is mounted.
type Place map[string]string

// Own returns the groups of this process. On V1 and Hybrid they may be different ones,
// and a group that is to be within this process's limits has to be below each.
func (h *Host) Own() (Place, error) {
	data, err := rawfile.Read("/proc/self/cgroup")
	if err != nil {
		return nil, fmt.Errorf("find own control groups: %w", err)
	}
	return h.own(string(data))
}

// own reads a list of groups as cgroups(7) describes it: lines of id:controllers:path,
// the path from the root of the cgroup namespace, as are the roots of mounts.
func (h *Host) own(list string) (Place, error) {
	p := Place{}
	for line := range strings.Lines(list) {
		part := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(part) != 3 {
			continue
		}
		t, ok := h.named(part[1])
		if !ok {
			continue // not mounted, or not used
		}
		root := strings.TrimSuffix(t.root, "/")
		rel := strings.TrimPrefix(part[2], root)
		if !strings.HasPrefix(part[2]+"/", root+"/") || strings.HasPrefix(rel+"/", "/../") {
			return nil, errs.New(errs.FailedPrecondition, "own control group %s of hierarchy %q is not below what is mounted at %s; name an absolute path", part[2], part[1], t.mount)
		}
		if rel = strings.Trim(rel, "/"); rel != "" {
			p[part[1]] = "/" + rel
		}
	}
	return p, nil
}

// named returns the hierarchy that has the name in a Place.
func (h *Host) named(controllers string) (hierarchy, bool) {
	if controllers == "" {
		return h.unified, h.unified.mount != ""
	}
	return h.hierarchyOf(strings.Split(controllers, ",")[0])
}

// Below returns the host with groups that begin at p in each hierarchy that p names, so that
// /x is p's group of it and x below; in the others they begin at the root.
// Nothing is checked to be there.
func (h *Host) Below(p Place) (*Host, error) {
	b := &Host{layout: h.layout, unified: h.unified, v1: slices.Clone(h.v1), systemd: h.systemd, booted: h.booted}
	for controllers, at := range p {
		at, err := clean(at)
		if err != nil {
			return nil, err
		}
		t, ok := b.named(controllers)
		if !ok {
			return nil, errs.New(errs.FailedPrecondition, "cgroup %s: its hierarchy %q is not mounted here", at, controllers)
		}
		t.mount, t.root = t.mount+at, strings.TrimSuffix(t.root, "/")+at
		if controllers == "" {
			b.unified = t
			continue
		}
		for i := range b.v1 {
			if slices.Equal(b.v1[i].controllers, t.controllers) {
				b.v1[i] = t
			}
		}
	}
	return b, nil
}
