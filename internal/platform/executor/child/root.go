package child

import (
	"golang.org/x/sys/unix"
)

// maxFSString is the longest string that fsconfig(2) takes.
const maxFSString = 255

func (s *state) put(i, fd int, dir bool) {
	for len(s.slots) <= i {
		s.slots = append(s.slots, slot{fd: -1})
	}
	s.slots[i] = slot{fd, dir}
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
	s.put(i, fd, dir)
	return failed(err, path)
}

// overlay mounts the root's layers; old is for kernels that do not take them one by one.
func (s *state) overlay(i int, volatile, old bool, args []string) *fail {
	upper, work, lower, at := args[0], args[1], args[2:len(args)-1], args[len(args)-1]
	if old {
		return s.overlayOld(i, volatile, upper, work, lower, at)
	}
	return s.overlayNew(i, volatile, upper, work, lower)
}

// overlayNew hands the layers to the kernel one by one, so their number is not limited by a
// page of options.
func (s *state) overlayNew(i int, volatile bool, upper, work string, lower []string) *fail {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return failed(err, "overlay")
	}
	defer unix.Close(fs)
	if err := unix.FsconfigSetString(fs, "source", "overlay"); err != nil {
		return s.fsFailed(fs, err, "overlay")
	}
	for _, l := range lower {
		p, f := short(l)
		if f != nil {
			return f
		}
		if err := unix.FsconfigSetString(fs, "lowerdir+", p); err != nil {
			return s.fsFailed(fs, err, l)
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
	if err := unix.FsconfigCreate(fs); err != nil {
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
	s.put(i, fd, true)
	return nil
}

// overlayOld is overlay by mount(2), for kernels before 6.7. The options must fit a page,
// so layers are named by descriptors, which also spares us the escaping of colons.
func (s *state) overlayOld(i int, volatile bool, upper, work string, lower []string, at string) *fail {
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
	if len(opts) > unix.Getpagesize()-16 {
		return &fail{unix.E2BIG, lower[0], "an overlay of " + itoa(len(lower)) + " layers needs Linux 6.7 or newer"}
	}
	var err error = unix.EINVAL
	if volatile && upper != "" {
		err = unix.Mount("overlay", at, "overlay", flags, opts+",volatile") // Linux 5.10
	}
	if err == unix.EINVAL {
		err = unix.Mount("overlay", at, "overlay", flags, opts)
	}
	if err != nil {
		return failed(err, lower[0])
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, at, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return failed(err, at)
	}
	s.put(i, fd, true)
	return nil
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

func (s *state) tmpfs(i int, opts []string) *fail {
	fd, f := s.newFS("tmpfs", "tmpfs", opts, 0)
	if f == nil {
		s.put(i, fd, true)
	}
	return f
}
