package child

import (
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/platform/executor/plan"
)

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

// layers are what an overlay is made of.
type layers struct {
	upper, work      string
	lower            []string // topmost first
	volatile, inside bool     // inside a user namespace
	uid, gid         uint32   // as whom overlayfs works in the layers
	at               string   // a directory on the host to mount on with old kernels
}

// overlay mounts the root's layers; old is for kernels that do not take them one by one.
func (s *state) overlay(i int, volatile, inside bool, uid, gid uint32, old bool, args []string) *fail {
	l := &layers{args[0], args[1], args[2 : len(args)-1], volatile, inside, uid, gid, args[len(args)-1]}
	if old {
		return s.overlayOld(i, l)
	}
	return s.overlayNew(i, l)
}

// overlayNew hands the layers to the kernel one by one, so their number is not limited by a
// page of options.
func (s *state) overlayNew(i int, l *layers) *fail {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return failed(err, "overlay")
	}
	defer unix.Close(fs)
	if err := unix.FsconfigSetString(fs, "source", "overlay"); err != nil {
		return s.fsFailed(fs, err, "overlay")
	}
	for _, dir := range l.lower {
		p, f := short(dir)
		if f != nil {
			return f
		}
		if err := unix.FsconfigSetString(fs, "lowerdir+", p); err != nil {
			return s.fsFailed(fs, err, dir)
		}
	}
	if l.inside {
		// trusted.* is for the host's root; the marks are in user.overlay.* (Linux 5.11).
		if err := unix.FsconfigSetFlag(fs, "userxattr"); err != nil {
			return s.fsFailed(fs, err, "userxattr")
		}
	}
	if l.upper != "" {
		for _, kv := range [2][2]string{{"upperdir", l.upper}, {"workdir", l.work}} {
			p, f := short(kv[1])
			if f != nil {
				return f
			}
			if err := unix.FsconfigSetString(fs, kv[0], p); err != nil {
				return s.fsFailed(fs, err, kv[1])
			}
		}
		if l.volatile {
			if err := unix.FsconfigSetFlag(fs, "volatile"); err != nil {
				return s.fsFailed(fs, err, "volatile")
			}
		}
	}
	if f := as(l.uid, l.gid); f != nil {
		return f
	}
	err = unix.FsconfigCreate(fs)
	if f := as(0, 0); f != nil {
		return f
	}
	if err != nil {
		return s.fsFailed(fs, err, l.lower[0])
	}
	attr := 0
	if l.upper == "" {
		attr = unix.MOUNT_ATTR_RDONLY
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attr)
	if err != nil {
		return s.fsFailed(fs, err, l.lower[0])
	}
	s.put(i, fd, true, l.lower[0])
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
func (s *state) overlayOld(i int, l *layers) *fail {
	var opts string
	for n, dir := range l.lower {
		p, f := byFD(dir)
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
	if l.upper != "" {
		u, f := byFD(l.upper)
		if f != nil {
			return f
		}
		w, f := byFD(l.work)
		if f != nil {
			return f
		}
		opts += ",upperdir=" + u + ",workdir=" + w
		flags = 0
	}
	if l.inside {
		opts += ",userxattr"
	}
	if len(opts) > unix.Getpagesize()-16 {
		return &fail{unix.E2BIG, l.lower[0], "an overlay of " + itoa(len(l.lower)) + " layers needs Linux 6.7 or newer"}
	}
	if f := as(l.uid, l.gid); f != nil {
		return f
	}
	var err error = unix.EINVAL
	if l.volatile && l.upper != "" {
		err = unix.Mount("overlay", l.at, "overlay", flags, opts+",volatile") // Linux 5.10
	}
	if err == unix.EINVAL {
		err = unix.Mount("overlay", l.at, "overlay", flags, opts)
	}
	if f := as(0, 0); f != nil {
		return f
	}
	if err != nil {
		return failed(err, l.lower[0])
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, l.at, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return failed(err, l.at)
	}
	s.put(i, fd, true, l.lower[0])
	return nil
}

// short returns a name for path that fsconfig takes as it is.
func short(path string) (string, *fail) {
	if plan.Short(path) {
		return path, nil
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
