package child

import (
	"golang.org/x/sys/unix"
)

// idmap maps the ids of the files in the mount of slot i as those of a user namespace.
func (s *state) idmap(i int, userns uint64, recursive bool) *fail {
	return idmap(s.slots[i].fd, userns, recursive, s.slots[i].source)
}

// idmap is MOUNT_ATTR_IDMAP of mount_setattr(2).
func idmap(fd int, userns uint64, recursive bool, source string) *fail {
	flags, what := uint(unix.AT_EMPTY_PATH), "this filesystem"
	if recursive {
		flags |= unix.AT_RECURSIVE
		what += ", or one mounted below it,"
	}
	err := unix.MountSetattr(fd, "", flags, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: userns})
	if err == nil {
		return nil
	}
	f := failed(err, source)
	switch err {
	case unix.EINVAL:
		f.errno, f.hint = unix.EOPNOTSUPP, what+" does not support id-mapped mounts on this kernel"
	case unix.EPERM:
		f.hint = what + " was mounted in another user namespace than the caller's, or is id-mapped already"
	}
	return f
}

// cover attaches an id-mapped clone of what is at a path of the host over it, in this
// process's own mount namespace: an overlay is then made of what is mounted there.
func (s *state) cover(userns uint64, path string) *fail {
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return failed(err, path)
	}
	defer unix.Close(fd)
	if f := idmap(fd, userns, false, path); f != nil {
		return f
	}
	return failed(unix.MoveMount(fd, "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH), path)
}
