package cgroup

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/fault"
)

// Group is one control group: one directory on V2, one per hierarchy on V1. It holds
// no state that the kernel does not have, so any number of Groups may stand for the
// same path, in any number of processes; except with the systemd driver, where a group
// that Create made keeps its resources until it gets its first process. It is safe for
// concurrent use.
type Group struct {
	host *Host
	path string // as it was asked for
	unit *unit  // with the systemd driver
	rel  string // below the mount points: path, or where systemd puts the unit
	// below are paths below rel by the mount points of hierarchies, of a group that Sub returned.
	below map[string]string
	extra []Property // for the unit that is to be made

	mu      sync.Mutex
	pending []*plan // for a scope that has not begun
}

var (
	afterDirs    = fault.New("cgroup.create.directories-made")
	afterValues  = fault.New("cgroup.create.values-set")
	afterSome    = fault.New("cgroup.remove.first-hierarchy-removed")
	afterAddSome = fault.New("cgroup.add.first-hierarchy-joined")
	afterUnit    = fault.New("cgroup.create.unit-started")
)

func (h *Host) group(p string) (*Group, error) {
	p, err := clean(p)
	if err != nil {
		return nil, err
	}
	g := &Group{host: h, path: p, rel: p}
	if h.systemd != nil {
		if g.unit, err = translate(p); err != nil {
			return nil, err
		}
		g.rel = g.unit.path
	}
	return g, nil
}

// Create makes the group at path, like /orlop/pod1/app, with its parents, and gives it
// the resources of res, of which nil fields are left as they are. It is idempotent. A
// group that this call made is taken away again when a value is refused; the error then
// names the file and the value. What the host has no way to limit is errs.Unsupported.
//
// With the systemd driver a scope begins with its first process: values are checked
// now, and set when Spawn or Add brings it (see systemd.go). Properties are for its unit, instead
// of what resources come to, and for nothing with Cgroupfs.
func (h *Host) Create(path string, res *specs.LinuxResources, properties ...Property) (*Group, error) {
	g, err := h.group(path)
	if err != nil {
		return nil, err
	}
	g.extra = properties
	p, err := h.plan(res)
	if err != nil {
		return nil, fmt.Errorf("create cgroup %s: %w", g.path, err)
	}
	if h.systemd != nil {
		err = h.systemd.create(g, p)
	} else {
		err = h.create(g, p)
	}
	if err != nil {
		return nil, fmt.Errorf("create cgroup %s: %w", g.path, err)
	}
	return g, nil
}

func (h *Host) create(g *Group, p *plan) (err error) {
	var made []string
	defer func() {
		if err != nil {
			for _, d := range slices.Backward(made) {
				unix.Rmdir(d) // fails on what others use by now, and may
			}
		}
	}()
	base := h.base()
	for _, t := range h.v1 {
		if !slices.ContainsFunc(t.controllers, func(c string) bool { return slices.Contains(base, c) || p.needs(c, false) }) {
			continue
		}
		var ready func(parent, dir string) error
		if t.has("cpuset") {
			ready = inheritCPUSet
		}
		if err := makeDirs(t.mount, g.rel, &made, ready); err != nil {
			return err
		}
	}
	if h.unified.mount != "" {
		want, rest := h.delegated(p)
		if err := makeDelegated(h.unified.mount, g.rel, &made, want, rest); err != nil {
			return err
		}
	}
	afterDirs.Hit()
	if err := g.apply(p); err != nil {
		return err
	}
	afterValues.Hit()
	return nil
}

// delegated lists the controllers that a new group in cgroup2 gets from its parents: those
// that it has to have, which in any layout are what the plan sets, and on V2 what pods always want; and on
// V2 the rest of what the host has. What runs in the group may be a runtime itself, and looks for
// them (kubelet does not start without cpuset); and what is there must not depend on what a neighbour asked for.
func (h *Host) delegated(p *plan) (want, rest []string) {
	for _, c := range h.unified.controllers {
		always := h.layout.Mode == V2 && (c == "cpu" || c == "memory" || c == "pids" || c == "io")
		switch {
		case always || p.needs(c, true):
			want = append(want, c)
		case h.layout.Mode == V2:
			rest = append(rest, c)
		}
	}
	return want, rest
}

// makeDirs makes every directory of rel below mount and calls ready for each, made or
// found, from the top. It adds those that it made to made.
// Without a ready, where the parents are there already, one call makes the last.
func makeDirs(mount, rel string, made *[]string, ready func(parent, dir string) error) error {
	if ready == nil {
		ready = func(string, string) error { return nil }
		if err := makeDir(mount, mount+rel, made, ready); !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	for attempt := 0; ; attempt++ {
		parent, vanished := mount, false
		for name := range strings.SplitSeq(rel[1:], "/") {
			dir := parent + "/" + name
			err := makeDir(parent, dir, made, ready)
			if errors.Is(err, unix.ENOENT) && attempt < 10 {
				vanished = true // somebody removed a parent meanwhile
				break
			}
			if err != nil {
				return err
			}
			parent = dir
		}
		if !vanished {
			return nil
		}
	}
}

// makeDelegated makes the directories of a group in cgroup2 and hands it the controllers, with their files.
// As a rule all groups above are there and hand them on already, for another group: then one question and
// one call make it.
func makeDelegated(mount, rel string, made *[]string, want, rest []string) error {
	if len(want)+len(rest) == 0 {
		return makeDirs(mount, rel, made, nil)
	}
	parent := filepath.Dir(mount + rel)
	var err error = unix.ENOENT
	if on, e := read(parent, "cgroup.subtree_control"); e == nil && len(among(want, on, true))+len(among(rest, on, true)) == 0 {
		before := len(*made)
		err = makeDir(parent, mount+rel, made, func(string, string) error { return nil })
		if len(*made) > before {
			return nil // settled: mkdir(2) waited for whoever was handing them on
		}
	}
	if errors.Is(err, unix.ENOENT) {
		err = makeDirs(mount, rel, made, func(parent, _ string) error { return enable(parent, want, rest) })
	}
	if err == nil {
		settle(parent)
	}
	return err
}

// delegate hands controllers, with their files, to a group in cgroup2 that is there. It makes nothing: the group may
// be removed meanwhile.
func delegate(mount, rel string, want, rest []string) error {
	if len(want)+len(rest) == 0 {
		return nil
	}
	above := mount
	for name := range strings.SplitSeq(rel[1:], "/") {
		if err := enable(above, want, rest); err != nil {
			return err
		}
		above += "/" + name
	}
	settle(filepath.Dir(mount + rel))
	return nil
}

// settle waits until whoever is handing controllers to the children of a cgroup2 group has done so: the
// kernel lists them while it still makes their files, under the lock that every write to the list takes, one of
// nothing too. Who may not write there is not the one who hands them on, and finds what there is.
func settle(parent string) { writeIfThere(parent, "cgroup.subtree_control", "\n") }

func makeDir(parent, dir string, made *[]string, ready func(parent, dir string) error) error {
	switch err := unix.Mkdir(dir, 0o755); err {
	case nil:
		*made = append(*made, dir)
	case unix.EEXIST:
	case unix.EAGAIN:
		return errs.New(errs.ResourceExhausted, "make %s: a parent's cgroup.max.descendants or cgroup.max.depth is reached: %w", dir, err)
	case unix.EROFS, unix.EACCES, unix.EPERM:
		return errs.New(errs.PermissionDenied, "make %s: %w; groups are made by root, on hierarchies mounted read-write", dir, err)
	default:
		return fmt.Errorf("make %s: %w", dir, err)
	}
	return ready(parent, dir)
}

// enable hands controllers of a cgroup2 group to its children; those of rest where that
// is allowed.
func enable(parent string, want, rest []string) error {
	now, err := read(parent, "cgroup.subtree_control")
	if err != nil {
		return err
	}
	want, rest = among(want, now, true), among(rest, now, true)
	if len(want)+len(rest) == 0 {
		return nil
	}
	// What the group itself was not given, as in a delegated subtree, it cannot hand
	// on; a limit that needs it is refused when its file is not there.
	given, err := read(parent, "cgroup.controllers")
	if err != nil {
		return err
	}
	want, rest = among(want, given, false), among(rest, given, false)
	hand := func(list []string) error {
		if len(list) == 0 {
			return nil
		}
		return write(parent, "cgroup.subtree_control", "+"+strings.Join(list, " +"))
	}
	if err = hand(slices.Concat(want, rest)); err != nil && len(rest) > 0 {
		err = hand(want) // the kernel takes all of a line or nothing
	}
	if errors.Is(err, errs.InUse) {
		return errs.New(errs.FailedPrecondition,
			"hand %s to the children of %s: processes live in that group itself, and cgroup2 allows limits below a group only if it has none; name a parent group without processes: %w",
			strings.Join(want, " "), parent, err)
	}
	return err
}

// among are those of list that are among the words of a control file, or with no that are not.
func among(list []string, words string, no bool) []string {
	has := strings.Fields(words)
	return slices.DeleteFunc(slices.Clone(list), func(c string) bool { return slices.Contains(has, c) == no })
}

// inheritCPUSet fills in what a new v1 cpuset does not have by itself: without CPUs and
// memory nodes no process may join it.
func inheritCPUSet(parent, dir string) error {
	for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
		v, err := read(dir, file)
		if err != nil || v != "" {
			if err != nil {
				return err
			}
			continue
		}
		if v, err = read(parent, file); err != nil {
			return err
		}
		if err := write(dir, file, v); err != nil {
			return err
		}
	}
	return nil
}

// Group returns the group at path, whether it is there or not, for what has an answer for both.
func (h *Host) Group(path string) (*Group, error) { return h.group(path) }

// Load returns the group at path, or errs.NotFound.
func (h *Host) Load(path string) (*Group, error) {
	g, err := h.group(path)
	if err != nil {
		return nil, err
	}
	if !g.exists() {
		return nil, errs.New(errs.NotFound, "cgroup %s does not exist", g.path)
	}
	return g, nil
}

// Children returns the names of the groups directly below path, in any hierarchy,
// sorted; none if path does not exist. Load finds them by path/name, with either driver:
// a unit that stands for a name without a suffix is returned as that name.
func (h *Host) Children(path string) ([]string, error) {
	g, err := h.group(path)
	if err != nil {
		return nil, err
	}
	names := map[string]bool{}
	for _, dir := range g.dirs() {
		sub, err := subdirs(dir)
		if err != nil {
			return nil, err
		}
		for _, n := range sub {
			if g.unit != nil {
				n = g.unit.child(g.path, n)
			}
			names[n] = true
		}
	}
	return slices.Sorted(maps.Keys(names)), nil
}

func subdirs(dir string) ([]string, error) {
	list, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("cgroup: list: %w", err)
	}
	var names []string
	for _, e := range list {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// Path returns the path that Create was given.
func (g *Group) Path() string { return g.path }

// Dirs returns the directory of the group in each hierarchy by controller ("memory",
// "cpu", …, and "" for cgroup2). On V2 there is only "".
func (g *Group) Dirs() map[string]string {
	m := map[string]string{}
	for _, t := range g.host.v1 {
		for _, c := range t.controllers {
			if d := t.mount + g.in(t); isDir(d) {
				m[c] = d
			}
		}
	}
	if d := g.unifiedDir(); d != "" && isDir(d) {
		m[""] = d
	}
	return m
}

// dirs lists those directories of the group that exist, cgroup2's last.
func (g *Group) dirs() []string {
	return slices.DeleteFunc(g.places(), func(d string) bool { return !isDir(d) })
}

// exists tells whether any of the group's directories is there.
func (g *Group) exists() bool {
	if d := g.unifiedDir(); d != "" && isDir(d) {
		return true
	}
	return slices.ContainsFunc(g.host.v1, func(t hierarchy) bool { return isDir(t.mount + g.in(t)) })
}

// places lists where the group's directories are, if they are there, cgroup2's last.
func (g *Group) places() (list []string) {
	for _, t := range g.host.v1 {
		list = append(list, t.mount+g.in(t))
	}
	if d := g.unifiedDir(); d != "" {
		list = append(list, d)
	}
	return list
}

// in is where the group is in a hierarchy, below its mount point.
func (g *Group) in(t hierarchy) string { return g.rel + g.below[t.mount] }

func isDir(p string) bool {
	var st unix.Stat_t
	return unix.Lstat(p, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR
}

// unifiedDir is the group's directory in cgroup2, "" in V1.
func (g *Group) unifiedDir() string {
	if g.host.unified.mount == "" {
		return ""
	}
	return g.host.unified.mount + g.in(g.host.unified)
}

// dir is where the group's files of the controller are: its v1 hierarchy, or cgroup2.
func (g *Group) dir(controller string) string {
	if t, ok := g.host.hierarchyOf(controller); ok {
		return t.mount + g.in(t)
	}
	return g.unifiedDir()
}

// roll is the directory that tells which processes are in the group: cgroup2's, which
// also outlives v1's in Remove, or on V1 the freezer's.
func (g *Group) roll() string {
	if d := g.unifiedDir(); d != "" {
		return d
	}
	for _, c := range []string{"freezer", "memory", "cpu"} {
		if t, ok := g.host.hierarchyOf(c); ok {
			return t.mount + g.in(t)
		}
	}
	return g.host.v1[0].mount + g.in(g.host.v1[0])
}
