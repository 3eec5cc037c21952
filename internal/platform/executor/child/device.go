package child

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/platform/executor/guards"
	"github.com/orlop-io/orlop/internal/platform/executor/plan"
)

// parent splits a cleaned absolute path.
func parent(path string) (dir, name string) {
	i := len(path) - 1
	for i > 0 && path[i] != '/' {
		i--
	}
	if i <= 0 {
		return "/", path[1:]
	}
	return path[:i], path[i+1:]
}

// openParent opens the directory of path, which it makes if it is missing.
func (s *state) openParent(path string) (fd int, name string, f *fail) {
	if len(path) < 2 || path[0] != '/' {
		return -1, "", &fail{unix.EINVAL, path, "not an absolute path"}
	}
	dir, name := parent(path)
	fd, f = s.makePath(dir, true, 0o755, 0)
	return fd, name, f
}

func (s *state) symlink(target, path string) *fail {
	dir, name, f := s.openParent(path)
	if f != nil {
		return f
	}
	defer unix.Close(dir)
	if err := unix.Symlinkat(target, dir, name); err != nil && err != unix.EEXIST {
		return failed(err, path)
	}
	return nil
}

// device makes a device node. One that is there must be the same device.
func (s *state) device(path string, mode uint32, dev uint64, uid, gid int) *fail {
	dir, name, f := s.openParent(path)
	if f != nil {
		return f
	}
	defer unix.Close(dir)
	err := unix.Mknodat(dir, name, mode, int(dev))
	if err == unix.EEXIST {
		var st unix.Stat_t
		if err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return failed(err, path)
		}
		if st.Mode&unix.S_IFMT != mode&unix.S_IFMT || (mode&unix.S_IFMT != unix.S_IFIFO && st.Rdev != dev) {
			return &fail{unix.EEXIST, path, "the image has something else at this path"}
		}
	} else if err != nil {
		return failed(err, path)
	}
	if uid != 0 || gid != 0 || err == unix.EEXIST {
		if err := unix.Fchownat(dir, name, uid, gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return failed(err, path)
		}
	}
	if err == unix.EEXIST {
		// By descriptor: fchmodat would follow a link put there meanwhile.
		fd, err := openAt(dir, name, unix.O_PATH|unix.O_NOFOLLOW, 0, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS)
		if err != nil {
			return failed(err, path)
		}
		defer unix.Close(fd)
		return s.chmod(fd, mode&0o7777, path)
	}
	return nil
}

// chmod changes the mode of what an O_PATH descriptor names.
func (s *state) chmod(fd int, mode uint32, path string) *fail {
	// fchmodat2 with AT_EMPTY_PATH is Linux 6.6; before it, through /proc.
	err := unix.Fchmodat(s.proc, "self/fd/"+itoa(fd), mode, 0)
	return failed(err, path)
}

// openNull opens the container's /dev/null and makes sure that it is the null device.
func (s *state) openNull(flags int) (int, *fail) {
	if !guards.NullChecked.On() {
		fd, err := s.open("/dev/null", flags, 0)
		return fd, failed(err, "/dev/null")
	}
	fd, err := s.open("/dev/null", flags|unix.O_NOFOLLOW, 0)
	if err != nil {
		return -1, failed(err, "/dev/null")
	}
	guards.NullChecked.Window()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return -1, failed(err, "/dev/null")
	}
	if st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != unix.Mkdev(1, 3) {
		return -1, &fail{unix.EINVAL, "/dev/null", "the container's /dev/null is not the null device"}
	}
	return fd, nil
}

// nullStreams opens the container's own /dev/null for standard streams that lead nowhere,
// so that they are no way to a mount of the host.
func (s *state) nullStreams(mask uint64) *fail {
	fd, f := s.openNull(unix.O_RDWR)
	if f != nil && guards.OwnNull.On() {
		// An image without devices, or a container that took its own away before it was
		// joined. The parent's is the host's: who may write to it may change its mode.
		fd, f = s.newNull()
	}
	if f != nil {
		return nil // in a user namespace, where the host's is nobody's to change
	}
	for i := range 3 {
		if mask&(1<<i) != 0 {
			if err := unix.Dup3(fd, i, 0); err != nil {
				return failed(err, "/dev/null")
			}
		}
	}
	unix.Close(fd)
	return nil
}

// newNull opens a null device that is nobody else's.
func (s *state) newNull() (int, *fail) {
	m, f := s.newFS("tmpfs", "tmpfs", []string{"nr_blocks=1", "nr_inodes=2"}, 0)
	if f != nil {
		return -1, f
	}
	defer unix.Close(m)
	if err := unix.Mknodat(m, "null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
		return -1, failed(err, "null device")
	}
	fd, err := unix.Openat(m, "null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	return fd, failed(err, "null device")
}

// ownStreams gives FIFOs to the user, so that the program can open /dev/stdout again.
// Files and terminals of others stay theirs.
func ownStreams(uid int) {
	for i := range 3 {
		var st unix.Stat_t
		if unix.Fstat(i, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFIFO && int(st.Uid) != uid {
			unix.Fchown(i, uid, -1) // EROFS, EPERM: then it cannot be helped
		}
	}
}

// console opens a new terminal of the container's own devpts, makes it the controlling
// one and the standard streams, and sends its master to the parent.
func (s *state) console(rows, cols uint16, uid int, bind bool) *fail {
	const ptmx = "/dev/pts/ptmx"
	master, err := s.open(ptmx, unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err == unix.ENOENT {
		return &fail{unix.ENOENT, ptmx, "a terminal needs a devpts filesystem at /dev/pts"}
	}
	if err != nil {
		return failed(err, ptmx)
	}
	var st unix.Stat_t
	var fs unix.Statfs_t
	if unix.Fstat(master, &st) != nil || unix.Fstatfs(master, &fs) != nil ||
		st.Mode&unix.S_IFMT != unix.S_IFCHR || st.Rdev != unix.Mkdev(5, 2) || fs.Type != unix.DEVPTS_SUPER_MAGIC {
		return &fail{unix.EINVAL, ptmx, "not the multiplexer of a devpts filesystem"}
	}
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return failed(err, ptmx)
	}
	// By the master, not by a name that the container could have put something else at.
	slave, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if e != 0 {
		return raw(e, ptmx)
	}
	if rows != 0 || cols != 0 {
		if err := unix.IoctlSetWinsize(master, unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols}); err != nil {
			return failed(err, "window size")
		}
	}
	if uid != 0 {
		if err := unix.Fchown(int(slave), uid, -1); err != nil {
			return failed(err, "owner of the terminal")
		}
	}
	if bind {
		at, f := s.makePath("/dev/console", false, 0o600, 0)
		if f != nil {
			return f
		}
		guards.ConsolePeer.Window()
		var m int
		if guards.ConsolePeer.On() {
			m, err = cloneMount(int(slave))
		} else {
			var n int
			if n, err = unix.IoctlGetInt(master, unix.TIOCGPTN); err == nil {
				m, err = unix.OpenTree(unix.AT_FDCWD, "/dev/pts/"+itoa(n), unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
			}
		}
		if err != nil {
			return failed(err, "/dev/console")
		}
		if err := s.place(m, at, "/dev/console"); err != nil {
			return failed(err, "/dev/console")
		}
		unix.Close(m)
		unix.Close(at)
	}
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, slave, unix.TIOCSCTTY, 0); e != 0 {
		return raw(e, "controlling terminal")
	}
	for i := range 3 {
		if err := unix.Dup3(int(slave), i, 0); err != nil {
			return failed(err, "standard streams")
		}
	}
	unix.Close(int(slave))
	if err := unix.Sendmsg(channel, []byte{plan.MsgConsole}, rights(master), nil, 0); err != nil {
		return failed(err, "send the terminal")
	}
	unix.Close(master)
	return nil
}

// rights is unix.UnixRights for one descriptor.
func rights(fd int) []byte {
	b := make([]byte, unix.CmsgSpace(4))
	h := (*unix.Cmsghdr)(unsafe.Pointer(&b[0]))
	h.Level, h.Type = unix.SOL_SOCKET, unix.SCM_RIGHTS
	h.SetLen(unix.CmsgLen(4))
	*(*int32)(unsafe.Pointer(&b[unix.CmsgLen(0)])) = int32(fd)
	return b
}
