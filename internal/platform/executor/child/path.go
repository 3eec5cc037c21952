package child

import (
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/platform/executor/guards"
)

// Paths inside a container are hostile: an image may have /proc as a symbolic link to
// /etc, /dev as one to ../../.., or a mount point that is a link into /proc/self/fd. And
// a volume shared with a container that runs can change under our feet. All of them are
// therefore resolved by the kernel, by openat2(2), with the container's root as the root
// (RESOLVE_IN_ROOT: no "..", no absolute link leaves it) and without magic links
// (RESOLVE_NO_MAGICLINKS). What has been resolved is used by descriptor.

func (s *state) open(path string, flags int, resolve uint64) (int, error) {
	if !guards.InRoot.On() {
		return openAt(unix.AT_FDCWD, s.at+"/"+path, flags, 0, resolve)
	}
	return openAt(s.root, path, flags, 0, resolve|unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_MAGICLINKS)
}

func openAt(dir int, path string, flags int, mode uint32, resolve uint64) (int, error) {
	how := unix.OpenHow{Flags: uint64(flags | unix.O_CLOEXEC), Mode: uint64(mode), Resolve: resolve}
	for try := 0; ; try++ {
		fd, err := unix.Openat2(dir, path, &how)
		// EAGAIN: something was renamed during the walk and the kernel could not vouch
		// for the result.
		if err == unix.EINTR || err == unix.EAGAIN && try < 128 {
			continue
		}
		return fd, err
	}
}

func isDir(fd int) (bool, error) {
	var st unix.Stat_t
	err := unix.Fstat(fd, &st)
	return st.Mode&unix.S_IFMT == unix.S_IFDIR, err
}

// makePath returns a descriptor (O_PATH) of what is at path, and makes it, and the
// directories above it, if it does not exist: a directory, or an empty file.
func (s *state) makePath(path string, dir bool, mode uint32, resolve uint64) (int, *fail) {
	s.made = false
	fd, err := s.open(path, unix.O_PATH, resolve)
	if err == unix.ELOOP && resolve&unix.RESOLVE_NO_SYMLINKS != 0 {
		return -1, &fail{unix.ELOOP, path, "the image has a symbolic link on this path, and this filesystem must be mounted on a real directory"}
	}
	if err == unix.ENOENT {
		fd, err = s.create(path, dir, mode)
		if err == unix.EROFS {
			return -1, &fail{unix.EROFS, path, "it does not exist in the root filesystem, which is read-only, so it cannot be made as a mount point"}
		}
	}
	if err != nil {
		return -1, failed(err, path)
	}
	is, err := isDir(fd)
	if err == nil && is != dir {
		unix.Close(fd)
		if dir {
			return -1, &fail{unix.ENOTDIR, path, "the path is a file in the container; a directory is mounted there"}
		}
		return -1, &fail{unix.EISDIR, path, "the path is a directory in the container; a file is mounted there"}
	}
	return fd, failed(err, path)
}

// create walks path and makes what is missing. A symbolic link on the way is followed
// inside the root even where it dangles, as it does in images with /var/run → /run and
// no /run: its target is what is made.
func (s *state) create(path string, dir bool, mode uint32) (int, error) {
	if !guards.Walk.On() {
		return createUnguarded(s.at+"/"+path, dir, mode)
	}
	todo := split(path)
	var done []string // the way so far: real directories only
	cur, err := unix.FcntlInt(uintptr(s.root), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	for links := 0; len(todo) > 0; {
		name := todo[0]
		todo = todo[1:]
		if name == ".." {
			if len(done) > 0 {
				done = done[:len(done)-1]
			}
			unix.Close(cur)
			if cur, err = s.open(join(done), unix.O_PATH|unix.O_DIRECTORY, unix.RESOLVE_NO_SYMLINKS); err != nil {
				return -1, err
			}
			continue
		}
		last := len(todo) == 0
		next, err := s.step(cur, name, dir || !last, last, mode)
		if err != nil {
			unix.Close(cur)
			return -1, err
		}
		guards.Walk.Window()
		var st unix.Stat_t
		if err := unix.Fstat(next, &st); err != nil {
			unix.Close(cur)
			unix.Close(next)
			return -1, err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFLNK {
			unix.Close(cur)
			cur = next
			done = append(done, name)
			continue
		}
		var buf [unix.PathMax]byte
		n, err := unix.Readlinkat(next, "", buf[:])
		unix.Close(next)
		// The text of a magic link is not where it leads.
		if fd, e := s.open(join(append(done, name)), unix.O_PATH, 0); e == nil {
			unix.Close(fd)
		} else if e == unix.ELOOP {
			err = e
		}
		if links++; err == nil && (links > 40 || n == len(buf)) {
			err = unix.ELOOP
		}
		if err != nil {
			unix.Close(cur)
			return -1, err
		}
		target := string(buf[:n])
		todo = append(split(target), todo...)
		if n > 0 && target[0] == '/' {
			done = nil
			unix.Close(cur)
			if cur, err = unix.FcntlInt(uintptr(s.root), unix.F_DUPFD_CLOEXEC, 0); err != nil {
				return -1, err
			}
		}
	}
	return cur, nil
}

// createUnguarded is what create is there to be better than.
func createUnguarded(path string, dir bool, mode uint32) (int, error) {
	at := ""
	parts := split(path)
	for i, name := range parts {
		at += "/" + name
		if i == len(parts)-1 && !dir {
			fd, err := unix.Open(at, unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, mode)
			if err != nil {
				return -1, err
			}
			unix.Close(fd)
		} else if err := unix.Mkdir(at, 0o755); err != nil && err != unix.EEXIST {
			return -1, err
		}
		guards.Walk.Window()
	}
	return unix.Open(at, unix.O_PATH|unix.O_CLOEXEC, 0)
}

// step opens name in the directory cur, not following it if it is a symbolic link, and
// makes it if it is missing.
func (s *state) step(cur int, name string, dir, last bool, mode uint32) (int, error) {
	for range 8 {
		// Names of one component cannot leave cur; mounts on it are crossed.
		fd, err := openAt(cur, name, unix.O_PATH|unix.O_NOFOLLOW, 0, unix.RESOLVE_NO_MAGICLINKS|unix.RESOLVE_BENEATH)
		if err != unix.ENOENT {
			return fd, err
		}
		if dir {
			m := uint32(0o755)
			if last {
				m = mode
			}
			if err = unix.Mkdirat(cur, name, m); err == nil && last {
				s.made = true
			}
		} else {
			fd, err = unix.Openat(cur, name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, mode)
			if err == nil {
				unix.Close(fd)
			}
		}
		if err != nil && err != unix.EEXIST {
			return -1, err
		}
	}
	return -1, unix.EBUSY
}

// split returns the components of a path, without empty ones and ".".
func split(path string) []string {
	var parts []string
	for len(path) > 0 {
		i := 0
		for i < len(path) && path[i] != '/' {
			i++
		}
		if p := path[:i]; p != "" && p != "." {
			parts = append(parts, p)
		}
		if i == len(path) {
			break
		}
		path = path[i+1:]
	}
	return parts
}

func join(parts []string) string {
	p := "."
	for _, s := range parts {
		p += "/" + s
	}
	return p
}

// writeProc writes to a file below the host's /proc, which the child opened before it
// entered the container. Names in it speak of the caller's namespaces all the same.
func (s *state) writeProc(name, value, operand string) *fail {
	if !guards.HostProc.On() {
		return writeUnguarded("/proc/"+name, value)
	}
	if f := s.openProc(); f != nil {
		return f
	}
	fd, err := openAt(s.proc, name, unix.O_WRONLY, 0, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_MAGICLINKS)
	if err != nil {
		return failed(err, operand)
	}
	defer unix.Close(fd)
	_, err = unix.Write(fd, []byte(value))
	return failed(err, operand)
}

// writeUnguarded writes to whatever the container has at path.
func writeUnguarded(path, value string) *fail {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		_, err = unix.Write(fd, []byte(value))
		unix.Close(fd)
	}
	return failed(err, path)
}

// openProc opens the host's /proc. The plan's operations that come before the root is
// changed call it in time.
func (s *state) openProc() *fail {
	if s.proc >= 0 {
		return nil
	}
	fd, err := unix.Open("/proc", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return failed(err, "/proc")
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd, &st); err != nil {
		return failed(err, "/proc")
	}
	if st.Type != unix.PROC_SUPER_MAGIC {
		return &fail{unix.EINVAL, "/proc", "/proc of the host is not a proc filesystem"}
	}
	s.proc = fd
	return nil
}
