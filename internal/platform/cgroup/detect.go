package cgroup

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/rawfile"
	"github.com/orlop-io/orlop/internal/platform/mount"
)

// Host is the host's control groups. It is safe for concurrent use and holds no
// descriptors except compiled device programs, which are few and live as long as
// the process; there is nothing to close.
type Host struct {
	layout  Layout
	unified hierarchy   // mount "" in V1
	v1      []hierarchy // sorted by mount point; none in V2
	systemd *systemd    // nil with Cgroupfs
	booted  bool        // systemd is process 1

	programs programs

	probeBPF sync.Once
	noBPF    error // why device programs cannot be had; set by probeBPF
}

// hierarchy is one mounted tree of groups.
type hierarchy struct {
	controllers []string // "memory"; of V1's without a controller: "name=systemd"
	mount       string   // where it is mounted
	root        string   // the group that is at the mount point: "/", or what a container was given
}

func (h hierarchy) has(controller string) bool { return slices.Contains(h.controllers, controller) }

// Open finds out which layout the host has.
func Open(o Options) (*Host, error) {
	root := o.Root
	if root == "" {
		root = "/sys/fs/cgroup"
	}
	h := conventional(root)
	if h == nil {
		all, err := mount.List()
		if err != nil {
			return nil, fmt.Errorf("find control groups: %w", err)
		}
		if h, err = detect(all, root); err != nil {
			return nil, err
		}
	}
	var err error
	if len(h.v1) > 0 && h.unified.mount != "" && unix.Access(h.unified.mount, unix.W_OK) != nil {
		h.unified = hierarchy{} // mounted read-only: do without
	}
	if h.unified.mount != "" {
		file := filepath.Join(h.unified.mount, "cgroup.controllers")
		b, err := rawfile.Read(file)
		if err != nil {
			return nil, fmt.Errorf("find control groups: %w", err)
		}
		h.unified.controllers = strings.Fields(string(b))
	}
	h.layout = Layout{Mode: h.mode(), Unified: h.unified.mount, Controllers: map[string]string{}}
	for _, t := range append([]hierarchy{h.unified}, h.v1...) {
		for _, c := range t.controllers {
			h.layout.Controllers[c] = t.mount
		}
	}
	_, err = os.Stat("/run/systemd/system") // sd_booted(3)
	h.booted = err == nil
	h.layout.Driver, err = chooseDriver(o.Driver, h.layout.Mode, h.booted)
	if err != nil {
		return nil, err
	}
	if h.layout.Driver == Systemd {
		h.systemd = &systemd{}
	}
	return h, nil
}

// conventional finds the hierarchies where init systems mount them, without the mount table: with
// some hundred containers that has thousands of lines, and reading it is the largest part of a
// command that does little else. It returns nil where not all of them are found whole, as in
// a container.
func conventional(root string) *Host {
	if isWhole(root, unix.CGROUP2_SUPER_MAGIC) {
		return &Host{unified: hierarchy{mount: root, root: "/"}}
	}
	raw, err := rawfile.Read("/proc/self/cgroup")
	if err != nil {
		return nil
	}
	h := &Host{}
	for line := range strings.Lines(string(raw)) {
		_, line, _ = strings.Cut(line, ":")
		names, _, _ := strings.Cut(line, ":") // "cpu,cpuacct", "name=systemd"; nothing for cgroup2
		if names == "" {
			h.unified = hierarchy{mount: filepath.Join(root, "unified"), root: "/"}
			if !isWhole(h.unified.mount, unix.CGROUP2_SUPER_MAGIC) {
				return nil
			}
			continue
		}
		t := hierarchy{mount: filepath.Join(root, strings.TrimPrefix(names, "name=")), root: "/", controllers: strings.Split(names, ",")}
		if !isWhole(t.mount, unix.CGROUP_SUPER_MAGIC) {
			return nil
		}
		h.v1 = append(h.v1, t)
	}
	if h.unified.mount == "" && len(h.v1) == 0 {
		return nil
	}
	return h.sorted()
}

// isWhole tells whether a hierarchy of that kind is mounted at dir with its root, whose inode
// is the first of the filesystem (kernfs_create_root in the kernel); what a container is shown
// begins at another group.
func isWhole(dir string, magic int64) bool {
	var fs unix.Statfs_t
	var st unix.Stat_t
	return unix.Statfs(dir, &fs) == nil && int64(fs.Type) == magic && unix.Stat(dir, &st) == nil && st.Ino == 1
}

func (h *Host) sorted() *Host {
	slices.SortFunc(h.v1, func(a, b hierarchy) int { return strings.Compare(a.mount, b.mount) })
	return h
}

// detect picks the hierarchies out of the mount table. One that is mounted twice (by a
// container's bind mounts, say) counts where it was mounted first.
func detect(all []mount.Info, root string) (*Host, error) {
	h := &Host{}
	for _, m := range all {
		if m.Point != root && !strings.HasPrefix(m.Point, strings.TrimSuffix(root, "/")+"/") {
			continue
		}
		switch m.Type {
		case "cgroup2":
			if h.unified.mount == "" {
				h.unified = hierarchy{mount: m.Point, root: m.Root}
			}
		case "cgroup":
			t := hierarchy{mount: m.Point, root: m.Root, controllers: v1Controllers(m.SuperOptions)}
			if !slices.ContainsFunc(h.v1, func(o hierarchy) bool { return slices.Equal(o.controllers, t.controllers) }) {
				h.v1 = append(h.v1, t)
			}
		}
	}
	if h.unified.mount == "" && len(h.v1) == 0 {
		return nil, errs.New(errs.FailedPrecondition,
			"no control groups are mounted below %s; mount them: mount -t cgroup2 cgroup2 %s", root, root)
	}
	return h.sorted(), nil
}

// v1Controllers reads the controllers out of the options of a v1 mount
// ("rw,cpu,cpuacct", "rw,xattr,name=systemd"). All of them name either a controller
// or one of the few flags of cgroup1_show_options in the kernel.
func v1Controllers(options string) []string {
	var list []string
	for o := range strings.SplitSeq(options, ",") {
		key, _, _ := strings.Cut(o, "=")
		switch key {
		case "rw", "ro", "noprefix", "xattr", "cpuset_v2_mode", "favordynmods", "release_agent", "clone_children", "seclabel":
		default:
			list = append(list, o)
		}
	}
	return list
}

func (h *Host) mode() Mode {
	switch {
	case len(h.v1) == 0:
		return V2
	case h.unified.mount == "":
		return V1
	}
	return Hybrid
}

// chooseDriver settles who makes groups.
func chooseDriver(want Driver, mode Mode, booted bool) (Driver, error) {
	switch want {
	case "", Auto:
		if booted && mode == V2 {
			return Systemd, nil
		}
		return Cgroupfs, nil
	case Cgroupfs:
		return Cgroupfs, nil
	case Systemd:
		if mode != V2 {
			return "", errs.New(errs.Unsupported, "the systemd cgroup driver needs a cgroup v2 host, this one is %s; use cgroupfs", mode)
		}
		if !booted {
			return "", errs.New(errs.Unsupported, "the systemd cgroup driver needs systemd as process 1; use cgroupfs")
		}
		return Systemd, nil
	}
	return "", errs.New(errs.Invalid, "cgroup driver %q: use %s, %s or %s", want, Auto, Cgroupfs, Systemd)
}

// Layout returns what Open found.
func (h *Host) Layout() Layout { return h.layout }

// hierarchyOf returns the v1 hierarchy that carries the controller.
func (h *Host) hierarchyOf(controller string) (hierarchy, bool) {
	for _, t := range h.v1 {
		if t.has(controller) {
			return t, true
		}
	}
	return hierarchy{}, false
}

// base returns the v1 controllers of which every group has a directory. What the core
// of cgroup2 does is taken from there where it is mounted: it counts CPU time, freezes
// and kills, and carries device programs.
func (h *Host) base() []string {
	switch {
	case h.unified.mount == "" && h.booted:
		// systemd tells by its own hierarchy which processes are the service's that
		// started us, and ends them with it.
		return []string{"memory", "cpu", "cpuacct", "pids", "devices", "freezer", "name=systemd"}
	case h.unified.mount == "":
		return []string{"memory", "cpu", "cpuacct", "pids", "devices", "freezer"}
	case h.bpfRefused(nil) != nil:
		return []string{"memory", "cpu", "pids", "devices"}
	}
	return []string{"memory", "cpu", "pids"}
}

// clean checks a group's path and makes it absolute and short.
func clean(p string) (string, error) {
	if p == "" || strings.ContainsAny(p, "\x00\n") {
		return "", errs.New(errs.Invalid, "cgroup path %q is not a path", p)
	}
	for c := range strings.SplitSeq(p, "/") {
		if c == ".." {
			return "", errs.New(errs.Invalid, "cgroup path %q must not contain ..", p)
		}
	}
	p = path.Clean("/" + p)
	if p == "/" {
		return "", errs.New(errs.Invalid, "cgroup path %q is the root; name a group below it", "/")
	}
	return p, nil
}
