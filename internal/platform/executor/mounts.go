package executor

import (
	"path"
	"path/filepath"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/executor/plan"
	"github.com/orlop-io/orlop/internal/platform/overlay"
)

// Mounts come in two lots. Sources on the host are opened first ("early"), while its mounts
// are still peers of the host's; what is made in the container's root comes "late".

// root mounts the root filesystem in slot 0 and returns the directory that it passes over.
func (b *builder) root(r Rootfs, pause bool) (string, error) {
	for _, p := range append(slices.Clone(r.Lower), r.Upper, r.Work, r.Dir) {
		if p != "" && !filepath.IsAbs(p) {
			return "", errs.New(errs.Invalid, "root filesystem: %s is not an absolute path", p)
		}
	}
	if (r.Upper == "") != (r.Work == "") {
		return "", errs.New(errs.Invalid, "root filesystem: Upper and Work are given both or not at all")
	}
	slot := b.slot()
	switch {
	case len(r.Lower) == 1 && r.Upper == "":
		// An overlay of a single read-only layer is that layer.
		b.early.Add(plan.Tree, plan.N(slot, 0), r.Lower[0])
		b.early.Add(plan.SlotAttr, plan.N(slot, unix.MOUNT_ATTR_RDONLY, 0, unix.MS_PRIVATE, 0))
		return r.Lower[0], nil
	case len(r.Lower) > 0:
		at := r.Lower[0]
		args := append([]string{r.Upper, r.Work}, r.Lower...)
		// Where the child has to mount it in the tree, it must not appear on the host.
		b.layers.Add(plan.Overlay, plan.N(slot, flag(r.Upper != ""), flag(!overlay.TakesLayers())), append(args, at)...)
		return at, nil
	case r.Dir != "":
		b.early.Add(plan.Tree, plan.N(slot, 1), r.Dir)
		b.early.Add(plan.SlotAttr, plan.N(slot, 0, 0, unix.MS_PRIVATE, 1))
		return r.Dir, nil
	case pause:
		// The directory that it passes over on its way to being the root can be any that
		// is on every host.
		b.early.Add(plan.Tmpfs, plan.N(slot), "mode=755", "size=64k", "nr_inodes=64")
		return "/proc", nil
	}
	return "", errs.New(errs.Invalid, "root filesystem: neither layers nor a directory are given")
}

// mounts puts Spec.Mounts into the plan.
func (b *builder) mounts(list []specs.Mount) error {
	for _, m := range list {
		if !path.IsAbs(m.Destination) {
			return errs.New(errs.Invalid, "mount on %q: not an absolute path", m.Destination)
		}
		if len(m.UIDMappings) > 0 || len(m.GIDMappings) > 0 {
			return errs.New(errs.Unsupported, "mount on %s: id-mapped mounts are not supported yet", m.Destination)
		}
		dest := path.Clean(m.Destination)
		o := parseOptions(m.Options)
		for _, opt := range o.data {
			if opt == "idmap" || opt == "ridmap" {
				return errs.New(errs.Unsupported, "mount on %s: id-mapped mounts are not supported yet", dest)
			}
		}
		switch {
		case o.bind || m.Type == "bind":
			if err := b.bind(m, dest, o); err != nil {
				return err
			}
		case m.Type == "cgroup" || m.Type == "cgroup2":
			if err := b.cgroups(dest, o); err != nil {
				return err
			}
		case m.Type == "":
			return errs.New(errs.Invalid, "mount on %s: it has no type and is not a bind mount", dest)
		default:
			b.newFS(m.Type, m.Source, dest, o)
		}
	}
	return nil
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
		return errs.New(errs.Invalid, "bind mount on %s: the source %q is not an absolute path", dest, m.Source)
	}
	for _, opt := range o.data {
		if opt != "ro" { // options of a filesystem make no sense on one that is mounted
			return errs.New(errs.Invalid, "bind mount on %s: unknown option %q", dest, opt)
		}
	}
	if dest == "/dev" {
		b.ownDev = false
	}
	slot := b.slot()
	b.early.Add(plan.Tree, plan.N(slot, flag(o.recursive)), m.Source)
	if o.set|o.clear != 0 {
		b.late.Add(plan.SlotAttr, plan.N(slot, o.set, o.clear, 0, 0))
	}
	if o.deepSet|o.deepClear != 0 {
		b.late.Add(plan.SlotAttr, plan.N(slot, o.deepSet, o.deepClear, 0, 1))
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
		b.late.Add(plan.SlotAttr, plan.N(slot, 0, 0, unix.MS_SHARED, flag(deep)))
	} else {
		if !deep {
			b.late.Add(plan.SlotAttr, plan.N(slot, 0, 0, unix.MS_SLAVE, 1))
		}
		b.late.Add(plan.SlotAttr, plan.N(slot, 0, 0, propagation, flag(deep)))
	}
	b.late.Add(plan.Attach, plan.N(slot), dest)
	return nil
}

// devices makes the default devices, those of the specification, and the links that
// programs expect in /dev (OCI config-linux.md, "Default Devices").
func (b *builder) devices(list []specs.LinuxDevice) error {
	if !b.ownDev {
		return nil
	}
	type node struct {
		path         string
		major, minor uint32
	}
	for _, d := range [...]node{
		{"/dev/null", 1, 3}, {"/dev/zero", 1, 5}, {"/dev/full", 1, 7},
		{"/dev/random", 1, 8}, {"/dev/urandom", 1, 9}, {"/dev/tty", 5, 0},
	} {
		if !slices.ContainsFunc(list, func(l specs.LinuxDevice) bool { return path.Clean(l.Path) == d.path }) {
			b.late.Add(plan.Device, plan.N(unix.S_IFCHR|0o666, unix.Mkdev(d.major, d.minor), 0, 0), d.path)
		}
	}
	for _, d := range list {
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
			continue // the container has its own
		}
		mode, uid, gid := uint64(0o666), uint64(0), uint64(0)
		if d.FileMode != nil {
			mode = uint64(d.FileMode.Perm())
		}
		if d.UID != nil {
			uid = uint64(*d.UID)
		}
		if d.GID != nil {
			gid = uint64(*d.GID)
		}
		b.late.Add(plan.Device, plan.N(kind|mode, unix.Mkdev(uint32(d.Major), uint32(d.Minor)), uid, gid), p)
	}
	for _, l := range [...][2]string{
		{"pts/ptmx", "/dev/ptmx"}, {"/proc/self/fd", "/dev/fd"}, {"/proc/self/fd/0", "/dev/stdin"},
		{"/proc/self/fd/1", "/dev/stdout"}, {"/proc/self/fd/2", "/dev/stderr"}, {"/proc/kcore", "/dev/core"},
	} {
		b.late.Add(plan.Symlink, nil, l[0], l[1])
	}
	return nil
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
