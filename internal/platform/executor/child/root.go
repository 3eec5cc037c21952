package child

import (
	"golang.org/x/sys/unix"
)

// maxFSString is the longest string that fsconfig(2) takes.
const maxFSString = 255

func (s *state) put(i, fd int, dir bool, source string) {
	for len(s.slots) <= i {
		s.slots = append(s.slots, slot{fd: -1})
	}
	s.slots[i] = slot{fd, dir, source}
}

func (s *state) setns(fd, kinds int, what string) *fail {
	if kinds&unix.CLONE_NEWNS != 0 {
		if f := s.openProc(); f != nil {
			return f
		}
		// A thread that shares its root and working directory with others cannot enter
		// another mount namespace.
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			return failed(err, "filesystem attributes")
		}
	}
	return failed(unix.Setns(fd, kinds), what)
}

func loUp() *fail {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return failed(err, "socket")
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return failed(err, "lo")
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, ifr); err != nil {
		return failed(err, "lo")
	}
	ifr.SetUint16(ifr.Uint16() | unix.IFF_UP)
	return failed(unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr), "lo")
}

// tree clones the mount at path. The clone stays a peer of what it was cloned from, so it
// has to happen before the propagation of everything is changed; SlotAttr then says what
// the container gets.
func (s *state) tree(i int, recursive bool, path string) *fail {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, flags)
	if err == unix.ENOENT {
		return &fail{unix.ENOENT, path, "the source of a bind mount does not exist on the host"}
	}
	if err != nil {
		return failed(err, path)
	}
	dir, err := isDir(fd)
	s.put(i, fd, dir, path)
	return failed(err, path)
}

// overlay mounts the root's layers. Layers are handed to the kernel one by one
// (lowerdir+, Linux 6.7), so their number is not limited by a page of options.
func (s *state) overlay(i int, volatile, inside bool, uid, gid uint32, args []string) *fail {
	upper, work, lower, at := args[0], args[1], args[2:len(args)-1], args[len(args)-1]
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return failed(err, "overlay")
	}
	defer unix.Close(fs)
	if err := unix.FsconfigSetString(fs, "source", "overlay"); err != nil {
		return s.fsFailed(fs, err, "overlay")
	}
	for n, l := range lower {
		p, f := short(l)
		if f != nil {
			return f
		}
		if err := unix.FsconfigSetString(fs, "lowerdir+", p); err != nil {
			if err == unix.EINVAL && n == 0 && exists(l) { // 6.5 and 6.6 do not know the option
				return s.overlayOld(i, volatile, inside, uid, gid, upper, work, lower, at)
			}
			return s.fsFailed(fs, err, l)
		}
	}
	if inside {
		// trusted.* is for the host's root; the marks are in user.overlay.* (Linux 5.11).
		if err := unix.FsconfigSetFlag(fs, "userxattr"); err != nil {
			return s.fsFailed(fs, err, "userxattr")
		}
	}
	if upper != "" {
		for _, kv := range [2][2]string{{"upperdir", upper}, {"workdir", work}} {
			p, f := short(kv[1])
			if f != nil {
				return f
			}
			if err := unix.FsconfigSetString(fs, kv[0], p); err != nil {
				return s.fsFailed(fs, err, kv[1])
			}
		}
		if volatile {
			if err := unix.FsconfigSetFlag(fs, "volatile"); err != nil {
				return s.fsFailed(fs, err, "volatile")
			}
		}
	}
	if f := as(uid, gid); f != nil {
		return f
	}
	err = unix.FsconfigCreate(fs)
	if f := as(0, 0); f != nil {
		return f
	}
	if err != nil {
		// Before 6.5 overlayfs has no contexts of its own: options are collected unread, and
		// the one that is not known fails here, without a word.
		if err == unix.EINVAL && readsNoOptions() {
			return s.overlayOld(i, volatile, inside, uid, gid, upper, work, lower, at)
		}
		return s.fsFailed(fs, err, lower[0])
	}
	attr := 0
	if upper == "" {
		attr = unix.MOUNT_ATTR_RDONLY
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attr)
	if err != nil {
		return s.fsFailed(fs, err, lower[0])
	}
	s.put(i, fd, true, lower[0])
	return nil
}

// as changes whose the files are that this process makes, with all its capabilities. An
// overlay works in its layers as whoever mounted it, and where they are id-mapped only
// what is mapped can own a file: not the host's root.
func as(uid, gid uint32) *fail {
	if now, _, _ := unix.RawSyscall(unix.SYS_SETFSUID, ^uintptr(0), 0, 0); uint32(now) == uid {
		return nil
	}
	unix.RawSyscall(unix.SYS_SETFSGID, uintptr(gid), 0, 0)
	unix.RawSyscall(unix.SYS_SETFSUID, uintptr(uid), 0, 0)
	if now, _, _ := unix.RawSyscall(unix.SYS_SETFSUID, ^uintptr(0), 0, 0); uint32(now) != uid {
		return &fail{unix.EPERM, itoa(int(uid)), "the owner of the overlay's files could not be set"}
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return failed(err, "capabilities")
	}
	data[0].Effective, data[1].Effective = data[0].Permitted, data[1].Permitted // less after setfsuid
	return failed(unix.Capset(&hdr, &data[0]), "capabilities")
}

// overlayOld is overlay by mount(2), for kernels before 6.7. The options must fit a page,
// so layers are named by descriptors, which also spares us the escaping of colons.
func (s *state) overlayOld(i int, volatile, inside bool, uid, gid uint32, upper, work string, lower []string, at string) *fail {
	var opts string
	for n, l := range lower {
		p, f := byFD(l)
		if f != nil {
			return f
		}
		if n == 0 {
			opts = "lowerdir=" + p
		} else {
			opts += ":" + p
		}
	}
	var flags uintptr = unix.MS_RDONLY
	if upper != "" {
		u, f := byFD(upper)
		if f != nil {
			return f
		}
		w, f := byFD(work)
		if f != nil {
			return f
		}
		opts += ",upperdir=" + u + ",workdir=" + w
		flags = 0
	}
	if inside {
		opts += ",userxattr"
	}
	if len(opts) > unix.Getpagesize()-16 {
		return &fail{unix.E2BIG, lower[0], "an overlay of " + itoa(len(lower)) + " layers needs Linux 6.7 or newer"}
	}
	if f := as(uid, gid); f != nil {
		return f
	}
	var err error = unix.EINVAL
	if volatile && upper != "" {
		err = unix.Mount("overlay", at, "overlay", flags, opts+",volatile") // Linux 5.10
	}
	if err == unix.EINVAL {
		err = unix.Mount("overlay", at, "overlay", flags, opts)
	}
	if f := as(0, 0); f != nil {
		return f
	}
	if err != nil {
		return failed(err, lower[0])
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, at, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return failed(err, at)
	}
	s.put(i, fd, true, lower[0])
	return nil
}

// readsNoOptions tells whether the kernel takes any option for a context of overlayfs, as it
// does for filesystems that it only knows how to mount by mount(2).
func readsNoOptions() bool {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return false
	}
	defer unix.Close(fs)
	return unix.FsconfigSetString(fs, "no such option", "") == nil
}

func exists(path string) bool {
	return unix.Faccessat(unix.AT_FDCWD, path, unix.F_OK, 0) == nil
}

// short returns a name for path that fsconfig takes as it is.
func short(path string) (string, *fail) {
	if len(path) <= maxFSString {
		plain := true
		for i := range len(path) {
			if c := path[i]; c == '\\' || c == ',' || c == ':' {
				plain = false
			}
		}
		if plain {
			return path, nil
		}
	}
	return byFD(path)
}

// byFD opens path and returns a short name for it. The descriptor closes at execve.
func byFD(path string) (string, *fail) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", failed(err, path)
	}
	return "/proc/self/fd/" + itoa(fd), nil
}

// filesystem makes a new one in slot i: args are type, source, options.
func (s *state) filesystem(i int, attr uint64, args []string) *fail {
	fd, f := s.newFS(args[0], args[1], args[2:], attr)
	if f == nil {
		s.put(i, fd, true, args[0])
	}
	return f
}
