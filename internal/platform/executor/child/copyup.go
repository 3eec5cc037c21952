package child

import (
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/platform/executor/guards"
)

// copyUp copies what is in the directory from into the new filesystem to, with owners,
// modes and times, for the mount option tmpcopyup. Neither is visible to anybody else in
// that moment but through a volume, and no link is followed.
//
// keep tells that the new filesystem's root has the mode that was asked for.
func copyUp(from, to int, path string, keep bool) *fail {
	// from is O_PATH: open it for reading.
	src, err := unix.Openat(from, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return failed(err, path)
	}
	defer unix.Close(src)
	dst, err := unix.Openat(to, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return failed(err, path)
	}
	defer unix.Close(dst)
	var st unix.Stat_t
	if err := unix.Fstat(dst, &st); err != nil {
		return failed(err, path)
	}
	if f := copyTree(src, dst, path, 0); f != nil || !keep {
		return f
	}
	return failed(unix.Fchmod(dst, st.Mode&0o7777), path)
}

func copyTree(src, dst int, path string, depth int) *fail {
	if depth > 100 {
		return &fail{unix.ELOOP, path, "directories are nested too deeply to copy"}
	}
	var st unix.Stat_t
	if err := unix.Fstat(src, &st); err != nil {
		return failed(err, path)
	}
	buf := make([]byte, 16<<10)
	for {
		n, err := unix.ReadDirent(src, buf)
		if err != nil {
			return failed(err, path)
		}
		if n == 0 {
			break
		}
		_, _, names := unix.ParseDirent(buf[:n], -1, nil)
		for _, name := range names {
			if f := copyEntry(src, dst, name, path+"/"+name, depth); f != nil {
				return f
			}
		}
	}
	return copyAttrs(dst, &st, path)
}

func copyAttrs(fd int, st *unix.Stat_t, path string) *fail {
	if err := unix.Fchown(fd, int(st.Uid), int(st.Gid)); err != nil {
		return failed(err, path)
	}
	if err := unix.Fchmod(fd, st.Mode&0o7777); err != nil {
		return failed(err, path)
	}
	return nil
}

func copyEntry(src, dst int, name, path string, depth int) *fail {
	var st unix.Stat_t
	if err := unix.Fstatat(src, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return failed(err, path)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		in, err := unix.Openat(src, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return failed(err, path)
		}
		defer unix.Close(in)
		if err := unix.Mkdirat(dst, name, 0o700); err != nil {
			return failed(err, path)
		}
		out, err := unix.Openat(dst, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return failed(err, path)
		}
		defer unix.Close(out)
		return copyTree(in, out, path, depth+1)
	case unix.S_IFREG:
		guards.CopyUpChecked.Window()
		flags := unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_CLOEXEC
		if guards.CopyUpChecked.On() {
			flags |= unix.O_NONBLOCK // it may have become a FIFO that nobody writes to
		}
		in, err := unix.Openat(src, name, flags, 0)
		if err != nil {
			return failed(err, path)
		}
		defer unix.Close(in)
		if err := unix.Fstat(in, &st); err != nil {
			return failed(err, path)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFREG && guards.CopyUpChecked.On() {
			return &fail{unix.EBUSY, path, "it became something else while it was copied"}
		}
		out, err := unix.Openat(dst, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return failed(err, path)
		}
		defer unix.Close(out)
		for {
			n, err := unix.Sendfile(out, in, nil, 1<<20)
			if err != nil {
				return failed(err, path)
			}
			if n == 0 {
				break
			}
		}
		return copyAttrs(out, &st, path)
	case unix.S_IFLNK:
		var buf [unix.PathMax]byte
		n, err := unix.Readlinkat(src, name, buf[:])
		if err != nil {
			return failed(err, path)
		}
		if err := unix.Symlinkat(string(buf[:n]), dst, name); err != nil {
			return failed(err, path)
		}
	default:
		if err := unix.Mknodat(dst, name, st.Mode, int(st.Rdev)); err != nil {
			return failed(err, path)
		}
		if err := unix.Fchmodat(dst, name, st.Mode&0o7777, 0); err != nil {
			return failed(err, path)
		}
	}
	return failed(unix.Fchownat(dst, name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW), path)
}
