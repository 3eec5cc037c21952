package executor

import (
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/executor/guards"
)

// mountOptions is what the options of a mount mean, as in fstab(5) and the OCI runtime
// specification's section "Mounts".
type mountOptions struct {
	bind, recursive bool
	remount         bool
	idmap           bool
	deepIDMap       bool   // of the mounts below too
	set, clear      uint64 // MOUNT_ATTR_* of the mount itself
	deepSet         uint64 // of it and all mounts below: rro, rnosuid, …
	deepClear       uint64
	propagation     uint64 // MS_SHARED, …, 0 where nothing is said
	deepPropagation bool
	copyUp          bool
	data            []string // for the filesystem
}

type attr struct{ set, clear uint64 }

// attrs are the options that are attributes of a mount; each has a recursive form with
// an r before it (mount_setattr(2), AT_RECURSIVE).
var attrs = map[string]attr{
	"ro": {unix.MOUNT_ATTR_RDONLY, 0}, "rw": {0, unix.MOUNT_ATTR_RDONLY},
	"nosuid": {unix.MOUNT_ATTR_NOSUID, 0}, "suid": {0, unix.MOUNT_ATTR_NOSUID},
	"nodev": {unix.MOUNT_ATTR_NODEV, 0}, "dev": {0, unix.MOUNT_ATTR_NODEV},
	"noexec": {unix.MOUNT_ATTR_NOEXEC, 0}, "exec": {0, unix.MOUNT_ATTR_NOEXEC},
	"nodiratime": {unix.MOUNT_ATTR_NODIRATIME, 0}, "diratime": {0, unix.MOUNT_ATTR_NODIRATIME},
	"nosymfollow": {unix.MOUNT_ATTR_NOSYMFOLLOW, 0}, "symfollow": {0, unix.MOUNT_ATTR_NOSYMFOLLOW},
	"noatime": {unix.MOUNT_ATTR_NOATIME, unix.MOUNT_ATTR__ATIME}, "atime": {0, unix.MOUNT_ATTR__ATIME},
	"relatime": {unix.MOUNT_ATTR_RELATIME, unix.MOUNT_ATTR__ATIME}, "norelatime": {0, unix.MOUNT_ATTR__ATIME},
	"strictatime": {unix.MOUNT_ATTR_STRICTATIME, unix.MOUNT_ATTR__ATIME}, "nostrictatime": {0, unix.MOUNT_ATTR__ATIME},
}

var propagations = map[string]uint64{
	"shared": unix.MS_SHARED, "slave": unix.MS_SLAVE, "private": unix.MS_PRIVATE, "unbindable": unix.MS_UNBINDABLE,
}

// superOptions belong to a filesystem and not a mount; mount(2) passes them over where one
// is bound that is mounted already.
var superOptions = map[string]bool{
	"ro": true, "sync": true, "async": true, "dirsync": true, "lazytime": true, "nolazytime": true, "mand": true, "nomand": true,
}

func parseOptions(options []string) (mountOptions, error) {
	var o mountOptions
	for _, name := range options {
		if strings.IndexByte(name, 0) >= 0 {
			return o, errs.New(errs.Invalid, "option %q has a null byte in it", name)
		}
		if a, ok := attrs[name]; ok {
			if name == "nosuid" && !guards.NoSUID.On() {
				continue
			}
			a.apply(&o.set, &o.clear)
			// mount(2) sets this one on the filesystem as well.
			if name == "ro" || name == "rw" {
				o.data = slices.DeleteFunc(o.data, func(s string) bool { return s == "ro" })
			}
			if name == "ro" {
				o.data = append(o.data, name)
			}
			continue
		}
		if p, ok := propagations[name]; ok {
			o.propagation, o.deepPropagation = p, false
			continue
		}
		if len(name) > 1 && name[0] == 'r' {
			if a, ok := attrs[name[1:]]; ok {
				a.apply(&o.deepSet, &o.deepClear)
				continue
			}
			if p, ok := propagations[name[1:]]; ok {
				o.propagation, o.deepPropagation = p, true
				continue
			}
		}
		switch name {
		case "bind":
			o.bind = true
		case "rbind":
			o.bind, o.recursive = true, true
		case "remount":
			o.remount = true
		case "tmpcopyup":
			o.copyUp = true
		case "idmap":
			o.idmap, o.deepIDMap = true, false
		case "ridmap":
			o.idmap, o.deepIDMap = true, true
		case "defaults", "":
		case "loud", "silent", "acl", "noacl", "iversion", "noiversion":
			// Defaults, or gone from the kernel.
		default:
			o.data = append(o.data, name)
		}
	}
	return o, nil
}

// apply adds a to what is set and cleared; the last word counts.
func (a attr) apply(set, clear *uint64) {
	*set, *clear = *set&^(a.clear|a.set)|a.set, *clear&^a.set|a.clear
}

// rootPropagation translates Linux.RootfsPropagation.
func rootPropagation(name string) (uint64, bool) {
	switch name {
	case "":
		return 0, true
	case "shared", "slave", "private", "unbindable":
		return propagations[name], true
	case "rshared", "rslave", "rprivate", "runbindable":
		return propagations[name[1:]] | unix.MS_REC, true
	}
	return 0, false
}
