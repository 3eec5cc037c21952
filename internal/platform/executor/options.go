package executor

import (
	"golang.org/x/sys/unix"
)

// mountOptions is what the options of a mount mean, as in fstab(5) and the OCI runtime
// specification's section "Mounts".
type mountOptions struct {
	bind, recursive bool
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

func parseOptions(options []string) mountOptions {
	var o mountOptions
	apply := func(a attr) {
		o.set, o.clear = o.set&^(a.clear|a.set)|a.set, o.clear&^a.set|a.clear
	}
	for _, name := range options {
		if a, ok := attrs[name]; ok {
			apply(a)
			// mount(2) sets these on the filesystem as well; for new filesystems only.
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
				o.deepSet, o.deepClear = o.deepSet&^(a.clear|a.set)|a.set, o.deepClear&^a.set|a.clear
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
		case "tmpcopyup":
			o.copyUp = true
		case "defaults", "remount", "":
		case "loud", "silent", "acl", "noacl", "async", "nomand", "iversion", "noiversion":
			// Defaults, or gone from the kernel.
		default:
			o.data = append(o.data, name)
		}
	}
	return o
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
