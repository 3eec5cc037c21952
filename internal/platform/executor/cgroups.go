package executor

import (
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/rawfile"
	"github.com/orlop-io/orlop/internal/platform/executor/guards"
	"github.com/orlop-io/orlop/internal/platform/executor/plan"
	"github.com/orlop-io/orlop/internal/platform/mount"
)

// hierarchy is one cgroup filesystem of the host.
type hierarchy struct {
	name    string   // of its directory: "memory", "cpu,cpuacct", "unified"
	point   string   // where it is mounted
	v2      bool     //
	options []string // to mount it again: controllers, name=
}

// hierarchies are the host's, read once: they do not change after boot.
var hierarchies = sync.OnceValues(func() ([]hierarchy, error) {
	list, err := mount.List()
	if err != nil {
		return nil, err
	}
	var hs []hierarchy
	for _, m := range list {
		if m.Type != "cgroup" && m.Type != "cgroup2" || m.Root != "/" {
			continue
		}
		if slices.ContainsFunc(hs, func(h hierarchy) bool { return h.name == filepath.Base(m.Point) }) {
			continue
		}
		h := hierarchy{name: filepath.Base(m.Point), point: m.Point, v2: m.Type == "cgroup2"}
		if !h.v2 {
			for _, o := range strings.Split(m.SuperOptions, ",") {
				switch {
				case o == "rw" || o == "ro" || strings.HasPrefix(o, "release_agent="):
				case strings.HasPrefix(o, "name="):
					h.options = append(h.options, "none", o)
				default:
					h.options = append(h.options, o)
				}
			}
		}
		hs = append(hs, h)
	}
	return hs, nil
})

// cgroups shows the container its control groups at dest, in the hierarchies in which it
// has one of its own. With a cgroup namespace the hierarchy is mounted anew, and its root
// is the container's group; without one the group's directory is bound, so that nothing
// above it can be seen. On V1 and Hybrid the
// hierarchies are directories of a small read-only filesystem.
func (b *builder) cgroups(dest string, o mountOptions) error {
	hs, err := hierarchies()
	if err != nil {
		return err
	}
	if len(hs) == 0 {
		return errs.New(errs.Unsupported, "mount on %s: the host has no cgroup filesystem mounted", dest)
	}
	attr := o.set | o.deepSet
	if !guards.CgroupReadOnly.On() {
		attr &^= unix.MOUNT_ATTR_RDONLY
	}
	b.cgroupRW = b.cgroupRW || attr&unix.MOUNT_ATTR_RDONLY == 0
	if len(hs) == 1 && hs[0].v2 {
		return b.hierarchy(hs[0], dest, attr, o.propagation)
	}
	b.late.Add(plan.Mount, plan.N(attr&^unix.MOUNT_ATTR_RDONLY, 0, o.propagation), dest, "tmpfs", "tmpfs", "mode=755", "size=64k")
	for _, h := range hs {
		if b.cgroup != nil && b.groupDir(h) == "" {
			continue // what is there is of a group above, and others' groups are below it
		}
		at := path.Join(dest, h.name)
		if err := b.hierarchy(h, at, attr, 0); err != nil {
			return err
		}
		if parts := strings.Split(h.name, ","); len(parts) > 1 {
			for _, p := range parts {
				b.late.Add(plan.Symlink, nil, h.name, path.Join(dest, p))
			}
		}
	}
	if attr&unix.MOUNT_ATTR_RDONLY != 0 {
		b.late.Add(plan.PathAttr, plan.N(unix.MOUNT_ATTR_RDONLY, 0, 0), dest)
	}
	return nil
}

// delegate gives the container's group to the root of its user namespace, if it sees
// nothing above it and may write there.
func (b *builder) delegate() error {
	if !b.cgroupRW || b.cgroup == nil || b.user == nil || !privileged() || b.own&unix.CLONE_NEWCGROUP == 0 {
		return nil
	}
	uid, _ := b.user.uids.host(0)
	gid, _ := b.user.gids.host(0)
	return b.cgroup.Delegate(int(uid), int(gid))
}

func (b *builder) hierarchy(h hierarchy, at string, attr, propagation uint64) error {
	if b.own&unix.CLONE_NEWCGROUP != 0 {
		fstype := "cgroup"
		if h.v2 {
			fstype = "cgroup2"
		}
		b.late.Add(plan.Mount, plan.N(attr, 0, propagation), append([]string{at, fstype, "cgroup"}, h.options...)...)
		return nil
	}
	dir := h.point
	if b.cgroup != nil {
		dir = b.groupDir(h)
	} else if own := ownGroup(h); own != "" {
		dir = filepath.Join(h.point, own)
	}
	slot := b.slot()
	b.early.Add(plan.Tree, plan.N(slot, 0), dir)
	b.late.Add(plan.SlotAttr, plan.N(slot, attr, 0, unix.MS_PRIVATE, 0))
	b.late.Add(plan.Attach, plan.N(slot), at)
	return nil
}

// groupDir is the directory of the container's group in a hierarchy; "" if it has none
// there, because nothing is limited.
func (b *builder) groupDir(h hierarchy) string {
	if b.groupDirs == nil {
		b.groupDirs = b.cgroup.Dirs()
	}
	for c, dir := range b.groupDirs {
		if c == "" && h.v2 || !h.v2 && slices.Contains(h.options, c) {
			return dir
		}
	}
	return ""
}

// ownGroup is where this process is in a hierarchy (cgroups(7), /proc/PID/cgroup).
func ownGroup(h hierarchy) string {
	data, err := rawfile.Read("/proc/self/cgroup")
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(data)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		if h.v2 && parts[1] == "" {
			return parts[2]
		}
		for _, c := range strings.Split(parts[1], ",") {
			if !h.v2 && c != "" && slices.Contains(h.options, c) {
				return parts[2]
			}
		}
	}
	return ""
}
