package executor

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/executor/plan"
	"github.com/orlop-io/orlop/internal/platform/overlay"
)

// Mounts come in two lots. Sources on the host are opened first ("early"), while its mounts
// are still peers of the host's; what is made in the container's root comes "late".

// root mounts the root filesystem in slot 0 and returns the directory that it is on until
// the pivot, "" for the root of a mount namespace that is joined.
func (b *builder) root(r Rootfs, pause bool) (string, error) {
	for _, p := range append(slices.Clone(r.Lower), r.Upper, r.Work, r.Dir) {
		if p != "" && !filepath.IsAbs(p) {
			return "", errs.New(errs.Invalid, "root filesystem: %s is not an absolute path", p)
		}
	}
	if (r.Upper == "") != (r.Work == "") {
		return "", errs.New(errs.Invalid, "root filesystem: Upper and Work are given both or not at all")
	}
	if r.Upper != "" && len(r.Lower) == 0 {
		return "", errs.New(errs.Invalid, "root filesystem: Upper and Work are given, but no Lower below them")
	}
	if b.mountNS != nil && len(r.Lower) == 0 && r.Dir == "" && !pause {
		return "", nil
	}
	slot := b.slot()
	switch {
	case len(r.Lower) == 1 && r.Upper == "":
		// An overlay of a single read-only layer is that layer.
		b.early.Add(plan.Tree, plan.N(slot, 0), r.Lower[0])
		if err := b.idmapSlot(slot, r.IDMap, false); err != nil {
			return "", err
		}
		b.early.Add(plan.SlotAttr, plan.N(slot, unix.MOUNT_ATTR_RDONLY, 0, unix.MS_PRIVATE, 0))
		return r.Lower[0], nil
	case len(r.Lower) > 0:
		return r.Lower[0], b.overlay(slot, r)
	case r.Dir != "":
		b.early.Add(plan.Tree, plan.N(slot, 1), r.Dir)
		if err := b.idmapSlot(slot, r.IDMap, true); err != nil {
			return "", err
		}
		b.early.Add(plan.SlotAttr, plan.N(slot, 0, 0, b.propagation, 1))
		return r.Dir, nil
	case pause:
		// The directory that it passes over on its way to being the root can be any that
		// is on every host. It is made in the container's user namespace.
		b.inside.Add(plan.NewFS, plan.N(slot, 0), "tmpfs", "tmpfs", "mode=755", "size=64k", "nr_inodes=64")
		return "/proc", nil
	}
	return "", errs.New(errs.Invalid, "root filesystem: neither layers nor a directory are given")
}

// overlay makes the overlay of the layers. It belongs to the host, also where the container
// is in a user namespace: the marks for what was deleted are in attributes that only its
// root may read.
func (b *builder) overlay(slot uint64, r Rootfs) error {
	if b.user != nil && privileged() {
		if r.IDMap {
			fd := b.give(b.user.file)
			for _, dir := range r.Lower {
				b.layers.Add(plan.Cover, plan.N(fd), dir)
			}
			if r.Upper != "" {
				both := filepath.Dir(r.Upper)
				if filepath.Dir(r.Work) != both {
					return errs.New(errs.Invalid, "root filesystem: %s and %s are not in one directory, which an id-mapped root needs", r.Upper, r.Work)
				}
				b.layers.Add(plan.Cover, plan.N(fd), both)
			}
		}
	} else if r.IDMap && b.user != nil {
		return errs.New(errs.PermissionDenied, "root filesystem: id-mapped mounts need CAP_SYS_ADMIN on the host")
	}
	var uid, gid uint32
	if r.IDMap && b.user != nil {
		uid, _ = b.user.uids.host(0)
		gid, _ = b.user.gids.host(0)
	}
	args := append([]string{r.Upper, r.Work}, r.Lower...)
	inside := flag(b.user != nil && !privileged() || inUserNS())
	b.layers.Add(plan.Overlay, plan.N(slot, flag(r.Upper != ""), inside, uint64(uid), uint64(gid), flag(!overlay.TakesLayers())), append(args, r.Lower[0])...)
	return nil
}

// idmapSlot maps the ids of a mount by the container's user namespace.
func (b *builder) idmapSlot(slot uint64, wanted, recursive bool) error {
	if !wanted || b.user == nil {
		return nil
	}
	if !privileged() {
		return errs.New(errs.PermissionDenied, "id-mapped mounts need CAP_SYS_ADMIN on the host")
	}
	b.early.Add(plan.Idmap, plan.N(slot, b.give(b.user.file), flag(recursive)))
	return nil
}

// mounts puts Spec.Mounts into the plan.
func (b *builder) mounts(list []specs.Mount) error {
	for _, m := range list {
		if m.Destination == "" {
			return errs.New(errs.Invalid, "mount of %s %s: it has no destination", m.Type, m.Source)
		}
		// A relative one is below the root: deprecated, and done by everybody.
		dest := path.Join("/", m.Destination)
		o, err := parseOptions(m.Options)
		if err != nil {
			return fmt.Errorf("mount on %s: %w", dest, err)
		}
		if err := b.mount(m, dest, o); err != nil {
			return err
		}
	}
	return nil
}

func (b *builder) mount(m specs.Mount, dest string, o mountOptions) error {
	bind := o.bind || m.Type == "bind"
	if mapped := o.idmap || len(m.UIDMappings)+len(m.GIDMappings) > 0; mapped && !bind {
		return errs.New(errs.Invalid, "mount on %s: only bind mounts can be id-mapped", dest)
	}
	if o.copyUp && m.Type != "tmpfs" {
		return errs.New(errs.Invalid, "mount on %s: tmpcopyup is an option of tmpfs", dest)
	}
	switch {
	case o.remount && !bind:
		o.data = slices.DeleteFunc(o.data, func(s string) bool { return s == "ro" })
		if len(o.data) > 0 {
			return errs.New(errs.Unsupported, "mount on %s: remount changes attributes of the mount only, not the filesystem's option %s", dest, o.data[0])
		}
		b.late.Add(plan.PathAttr, plan.N(o.set|o.deepSet, o.clear|o.deepClear, flag(o.deepSet|o.deepClear != 0)), dest)
	case bind:
		return b.bind(m, dest, o)
	case m.Type == "cgroup" || m.Type == "cgroup2":
		return b.cgroups(dest, o)
	case m.Type == "" || m.Type == "none":
		return errs.New(errs.Invalid, "mount on %s: it has no type and is not a bind mount", dest)
	case b.refused(m.Type):
		return b.hostFS(m, dest, o)
	default:
		b.newFS(m.Type, m.Source, dest, o)
	}
	return nil
}

// hostFS are filesystems that show a namespace: the kernel mounts them only for whoever is
// privileged in it. Where a container in a user namespace has not made it, the host's are
// bound, as others of the field do.
var hostFS = map[string]struct {
	namespace uint64
	path      string
}{"proc": {unix.CLONE_NEWPID, "/proc"}, "sysfs": {unix.CLONE_NEWNET, "/sys"}, "mqueue": {unix.CLONE_NEWIPC, "/dev/mqueue"}}

// refused tells whether the container may not mount a filesystem of that type.
func (b *builder) refused(fstype string) bool {
	fs, ok := hostFS[fstype]
	return ok && (b.user != nil || inUserNS()) && (b.own&fs.namespace == 0 || b.unowned&fs.namespace != 0)
}

func (b *builder) hostFS(m specs.Mount, dest string, o mountOptions) error {
	kind := hostFS[m.Type]
	if b.own&kind.namespace != 0 && m.Type != "proc" && privileged() {
		// Of a namespace that is joined: whoever starts the container is privileged there.
		slot := b.slot()
		b.early.Add(plan.NewFS, plan.N(slot, o.set|o.deepSet), append([]string{m.Type, m.Source}, o.data...)...)
		b.late.Add(plan.Attach, plan.N(slot), dest)
		return nil
	}
	if b.own&kind.namespace != 0 {
		return errs.New(errs.Unsupported, "mount on %s: a %s of a namespace that is joined, and does not belong to the container's user namespace, cannot be mounted in it; bind one instead", dest, m.Type)
	}
	o.bind, o.recursive = true, true
	// What is mounted below has the same attributes.
	o.deepSet, o.set = o.deepSet|o.set, 0
	o.deepClear, o.clear = 0, 0
	o.data = nil
	m.Source = kind.path
	return b.bind(m, dest, o)
}

func (b *builder) newFS(fstype, source, dest string, o mountOptions) {
	var flags uint64
	if fstype == "proc" || fstype == "sysfs" {
		flags |= plan.MountStrict
	}
	if o.copyUp {
		flags |= plan.MountCopyUp
		o.data = slices.DeleteFunc(o.data, func(s string) bool { return s == "ro" })
	}
	if fstype == "devpts" && b.user != nil {
		o.data = slices.DeleteFunc(o.data, func(s string) bool {
			id, ok := strings.CutPrefix(s, "gid=")
			gid, err := strconv.ParseUint(id, 10, 32)
			if !ok || err != nil {
				return false
			}
			if _, mapped := b.user.gids.host(uint32(gid)); !mapped {
				b.warnings = append(b.warnings, "mount on "+dest+": group "+id+" is not mapped in the user namespace; terminals belong to the group of whoever opens them")
				return true
			}
			return false
		})
	}
	set := o.set | o.deepSet
	if dest == "/dev" && set&unix.MOUNT_ATTR_RDONLY != 0 {
		// Devices are yet to be made in it.
		set &^= unix.MOUNT_ATTR_RDONLY
		o.data = slices.DeleteFunc(o.data, func(s string) bool { return s == "ro" })
		b.last.Add(plan.PathAttr, plan.N(unix.MOUNT_ATTR_RDONLY, 0, 0), dest)
	}
	b.late.Add(plan.Mount, plan.N(set, flags, o.propagation), append([]string{dest, fstype, source}, o.data...)...)
}

// bind clones the source early and attaches it late.
func (b *builder) bind(m specs.Mount, dest string, o mountOptions) error {
	if !filepath.IsAbs(m.Source) {
		if b.bundle == "" || m.Source == "" {
			return errs.New(errs.Invalid, "bind mount on %s: the source %q is not an absolute path", dest, m.Source)
		}
		m.Source = filepath.Join(b.bundle, m.Source)
	}
	for _, opt := range o.data {
		// A filesystem's options say nothing of one that is mounted: mount(2) ignores them, and
		// callers give them. What is not even of their form is a mistake.
		if !superOptions[opt] && !strings.ContainsRune(opt, '=') {
			return errs.New(errs.Invalid, "bind mount on %s: unknown option %q", dest, opt)
		}
	}
	if dest == "/dev" {
		b.ownDev = false
	}
	slot := b.slot()
	b.early.Add(plan.Tree, plan.N(slot, flag(o.recursive)), m.Source)
	if err := b.idmapBind(slot, m, dest, o); err != nil {
		return err
	}
	if o.set|o.clear != 0 {
		b.early.Add(plan.SlotAttr, plan.N(slot, o.set, o.clear, 0, 0))
	}
	if o.deepSet|o.deepClear != 0 {
		b.early.Add(plan.SlotAttr, plan.N(slot, o.deepSet, o.deepClear, 0, 1))
	}
	// Without a word on propagation, mounts of the host made later appear in the container,
	// and none of the container's on the host, as with runc.
	propagation, deep := o.propagation, o.deepPropagation
	if propagation == 0 {
		propagation, deep = b.propagation, true
	}
	// A shared mount stays a peer of what it was cloned from; anything else first stops
	// being one.
	if propagation == unix.MS_SHARED {
		b.early.Add(plan.SlotAttr, plan.N(slot, 0, 0, unix.MS_SHARED, flag(deep)))
	} else {
		if !deep {
			b.early.Add(plan.SlotAttr, plan.N(slot, 0, 0, unix.MS_SLAVE, 1))
		}
		before := propagation
		if before == unix.MS_UNBINDABLE {
			before = unix.MS_PRIVATE
		}
		b.early.Add(plan.SlotAttr, plan.N(slot, 0, 0, before, flag(deep)))
	}
	b.late.Add(plan.Attach, plan.N(slot, o.propagation, flag(o.deepPropagation)), dest)
	return nil
}

// idmapBind maps the ids of a bind mount: by mappings of its own, or the container's.
func (b *builder) idmapBind(slot uint64, m specs.Mount, dest string, o mountOptions) error {
	own := len(m.UIDMappings)+len(m.GIDMappings) > 0
	if !own && !o.idmap {
		return nil
	}
	if !privileged() {
		return errs.New(errs.PermissionDenied, "mount on %s: id-mapped mounts need CAP_SYS_ADMIN on the host", dest)
	}
	by := b.user
	if own {
		if len(m.UIDMappings) == 0 || len(m.GIDMappings) == 0 {
			return errs.New(errs.Invalid, "mount on %s: uidMappings and gidMappings are given both or not at all", dest)
		}
		// Mounts with the same mappings share a namespace.
		uids, gids := idMap(m.UIDMappings), idMap(m.GIDMappings)
		i := slices.IndexFunc(b.mappings, func(u *userNS) bool { return u.uids.equal(uids) && u.gids.equal(gids) })
		if i < 0 {
			u, err := newUserNS(uids, gids)
			if err != nil {
				return fmt.Errorf("mount on %s: %w", dest, err)
			}
			b.opened = append(b.opened, u.file)
			b.mappings = append(b.mappings, u)
			i = len(b.mappings) - 1
		}
		by = b.mappings[i]
	}
	if by == nil {
		return errs.New(errs.Invalid, "mount on %s: idmap without uidMappings and gidMappings needs a user namespace, whose are then used", dest)
	}
	b.early.Add(plan.Idmap, plan.N(slot, b.give(by.file), flag(o.deepIDMap)))
	return nil
}

// devices makes the default devices, those of the specification, and the links that
// programs expect in /dev (OCI config-linux.md, "Default Devices").
func (b *builder) devices(list []specs.LinuxDevice) error {
	if !b.ownDev {
		return nil
	}
	all := make([]specs.LinuxDevice, 0, len(list)+6)
	for _, d := range [...]specs.LinuxDevice{
		{Path: "/dev/null", Major: 1, Minor: 3}, {Path: "/dev/zero", Major: 1, Minor: 5}, {Path: "/dev/full", Major: 1, Minor: 7},
		{Path: "/dev/random", Major: 1, Minor: 8}, {Path: "/dev/urandom", Major: 1, Minor: 9}, {Path: "/dev/tty", Major: 5, Minor: 0},
	} {
		if !slices.ContainsFunc(list, func(l specs.LinuxDevice) bool { return path.Clean(l.Path) == d.Path }) {
			d.Type = "c"
			all = append(all, d)
		}
	}
	for _, d := range append(all, list...) {
		if err := b.device(d); err != nil {
			return err
		}
	}
	links := [][2]string{
		{"pts/ptmx", "/dev/ptmx"}, {"/proc/self/fd", "/dev/fd"}, {"/proc/self/fd/0", "/dev/stdin"},
		{"/proc/self/fd/1", "/dev/stdout"}, {"/proc/self/fd/2", "/dev/stderr"},
	}
	if unix.Access("/proc/kcore", unix.F_OK) == nil { // kernels can do without
		links = append(links, [2]string{"/proc/kcore", "/dev/core"})
	}
	for _, l := range links {
		b.late.Add(plan.Symlink, nil, l[0], l[1])
	}
	return nil
}

func (b *builder) device(d specs.LinuxDevice) error {
	var kind uint64
	switch d.Type {
	case "c", "u":
		kind = unix.S_IFCHR
	case "b":
		kind = unix.S_IFBLK
	case "p":
		kind = unix.S_IFIFO
	default:
		return errs.New(errs.Invalid, "device %s: type %q is none of c, u, b, p", d.Path, d.Type)
	}
	if !path.IsAbs(d.Path) || path.Clean(d.Path) == "/" {
		return errs.New(errs.Invalid, "device %q: not an absolute path", d.Path)
	}
	p := path.Clean(d.Path)
	if p == "/dev/ptmx" {
		return nil // the container has its own
	}
	if kind != unix.S_IFIFO && (d.Major < 0 || d.Major >= 1<<12 || d.Minor < 0 || d.Minor >= 1<<20) {
		return errs.New(errs.Invalid, "device %s: there is no device %d:%d", p, d.Major, d.Minor)
	}
	dev := unix.Mkdev(uint32(d.Major), uint32(d.Minor))
	mode, uid, gid := uint64(0o666), uint64(0), uint64(0)
	if d.FileMode != nil {
		mode = fileMode(*d.FileMode)
	}
	if d.UID != nil {
		uid = uint64(*d.UID)
	}
	if d.GID != nil {
		gid = uint64(*d.GID)
	}
	if kind != unix.S_IFIFO && (b.user != nil || inUserNS()) {
		// Nobody makes devices in a user namespace, so the host's is bound: with the host's
		// owner and mode.
		source, err := hostDevice(p, uint32(kind), dev)
		if err != nil {
			return err
		}
		slot := b.slot()
		b.early.Add(plan.Tree, plan.N(slot, 0), source)
		b.early.Add(plan.SlotAttr, plan.N(slot, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC, 0, unix.MS_PRIVATE, 0))
		b.late.Add(plan.Attach, plan.N(slot), p)
		return nil
	}
	b.late.Add(plan.Device, plan.N(kind|mode, dev, uid, gid), p)
	return nil
}

// fileMode is the mode in the kernel's bits. Specifications are written with those too, so
// that set-user-id and the like may come as either.
func fileMode(m os.FileMode) uint64 {
	mode := uint64(m) & 0o7777
	for _, bit := range [...]struct {
		is os.FileMode
		to uint64
	}{{os.ModeSetuid, unix.S_ISUID}, {os.ModeSetgid, unix.S_ISGID}, {os.ModeSticky, unix.S_ISVTX}} {
		if m&bit.is != 0 {
			mode |= bit.to
		}
	}
	return mode
}

// hostDevice finds the device on the host: at the same path, or where the kernel named it.
func hostDevice(p string, kind uint32, dev uint64) (string, error) {
	is := func(p string) bool {
		var st unix.Stat_t
		return unix.Stat(p, &st) == nil && st.Mode&unix.S_IFMT == kind && st.Rdev == dev
	}
	if is(p) {
		return p, nil
	}
	class := "char"
	if kind == unix.S_IFBLK {
		class = "block"
	}
	major, minor := unix.Major(dev), unix.Minor(dev)
	uevent, _ := os.ReadFile(fmt.Sprintf("/sys/dev/%s/%d:%d/uevent", class, major, minor))
	for line := range strings.Lines(string(uevent)) {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "DEVNAME="); ok && is("/dev/"+name) {
			return "/dev/" + name, nil
		}
	}
	return "", errs.New(errs.NotFound, "device %s: the host has no %s device %d:%d in /dev to bind; in a user namespace none can be made", p, class, major, minor)
}

func (b *builder) maskedPaths(l *specs.Linux) error {
	for _, list := range [][]string{l.ReadonlyPaths, l.MaskedPaths} {
		for _, p := range list {
			if !path.IsAbs(p) {
				return errs.New(errs.Invalid, "masked or read-only path %q: not an absolute path", p)
			}
		}
	}
	if len(l.ReadonlyPaths) > 0 {
		b.last.Add(plan.ReadOnly, nil, l.ReadonlyPaths...)
	}
	if len(l.MaskedPaths) > 0 {
		b.last.Add(plan.Mask, nil, l.MaskedPaths...)
	}
	return nil
}

func flag(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}
