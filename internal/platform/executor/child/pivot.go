package child

import (
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/platform/executor/guards"
)

// enter attaches the mount in slot i at a directory of the host and makes it the root
// that paths of the plan are resolved in. The host's tree stays where it is until the
// pivot: a user namespace may only mount a proc filesystem as long as it sees one.
func (s *state) enter(i int, at string) *fail {
	if f := s.openProc(); f != nil {
		return f
	}
	s.root = s.slots[i].fd
	var err error
	for _, dir := range [...]string{at, "/mnt", "/tmp", "/proc"} {
		s.at = dir
		err = unix.MoveMount(s.root, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH)
		// The root of a user namespace may not be able to go there, and a mount namespace that
		// is joined may not have it. Any directory will do.
		if err != unix.EACCES && err != unix.ENOENT {
			break
		}
	}
	return failed(err, at)
}

// ownRoot makes the root of its mount namespace the process's, which is another one than it has when the
// caller is in a chroot(2). There pivot_root(2) would exchange the chroot's root alone: whoever joined the
// namespace later would find himself outside of chroot and container, in the host's.
// Entering the namespace that it is in already does that (setns(2)).
func (s *state) ownRoot() *fail {
	if !guards.NamespaceRoot.On() {
		return nil
	}
	if f := s.openProc(); f != nil {
		return f
	}
	const own = "self/ns/mnt"
	fd, err := openAt(s.proc, own, unix.O_RDONLY, 0, 0)
	if err != nil {
		return failed(err, "/proc/"+own)
	}
	defer unix.Close(fd)
	f := s.setns(fd, unix.CLONE_NEWNS, "the container's mount namespace")
	if f != nil && f.errno == unix.EPERM {
		f.hint = "it takes CAP_SYS_CHROOT and CAP_SYS_ADMIN; give the caller both"
	}
	return f
}

// pivot makes the container's root the process's, and lets go of the host's mounts.
func (s *state) pivot() *fail {
	if f := s.ownRoot(); f != nil {
		return f
	}
	if err := unix.Fchdir(s.root); err != nil {
		return failed(err, "")
	}
	// With both arguments the same, the old root comes to lie over the new one, and is
	// what "." names to umount2 (pivot_root(2)).
	if err := unix.PivotRoot(".", "."); err != nil {
		f := failed(err, "")
		if err == unix.EINVAL {
			f.hint = "the root of an initramfs cannot be pivoted away from; NoPivot (--no-pivot) is for such hosts"
		}
		return f
	}
	if guards.OldRoot.On() {
		if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
			return failed(err, "the old root")
		}
	}
	s.at = ""
	return failed(unix.Chdir("/"), "/")
}

// moveRoot is pivot for hosts whose root is an initramfs, which pivot_root(2) refuses: the
// container's root is moved over the host's. The mounts of the host are detached as well,
// except those that the owner of a user namespace may not touch, which stay covered. The
// initramfs itself stays below.
func (s *state) moveRoot() *fail {
	if f := s.ownRoot(); f != nil {
		return f
	}
	old, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return failed(err, "/")
	}
	defer unix.Close(old)
	if err := unix.MoveMount(s.root, "", unix.AT_FDCWD, "/", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return failed(err, "/")
	}
	if err := unix.Fchdir(old); err != nil {
		return failed(err, "/")
	}
	points, f := s.below(old)
	if f != nil {
		return f
	}
	for i := len(points) - 1; i >= 0; i-- {
		// What is stacked below another is there again afterwards.
		if err := unix.Unmount("."+points[i], unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && err != unix.EINVAL {
			return failed(err, points[i])
		}
	}
	if err := unix.Fchdir(s.root); err != nil {
		return failed(err, "/")
	}
	if err := unix.Chroot("."); err != nil {
		return failed(err, "/")
	}
	s.at = ""
	return failed(unix.Chdir("/"), "/")
}

// below lists where mounts are attached to the mount of dir, but for what covers its
// root, from /proc/self/mountinfo (proc_pid_mountinfo(5)).
func (s *state) below(dir int) ([]string, *fail) {
	const name = "/proc/self/mountinfo"
	var st unix.Statx_t
	if err := unix.Statx(dir, "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &st); err != nil {
		return nil, failed(err, "/")
	}
	fd, err := openAt(s.proc, "self/mountinfo", unix.O_RDONLY, 0, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_MAGICLINKS)
	if err != nil {
		return nil, failed(err, name)
	}
	defer unix.Close(fd)
	var table []byte
	for {
		var buf [8 << 10]byte
		n, err := unix.Read(fd, buf[:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, failed(err, name)
		}
		if n == 0 {
			break
		}
		table = append(table, buf[:n]...)
	}
	return children(string(table), itoa(int(st.Mnt_id))), nil
}

// children returns the mount points of a mountinfo table whose parent is the mount id,
// without "/".
func children(table, id string) (points []string) {
	for len(table) > 0 {
		var field [5]string // id, parent, device, root, mount point
		n := 0
		i := 0
		for start := 0; ; i++ {
			if i == len(table) || table[i] == '\n' || table[i] == ' ' {
				if n < len(field) {
					field[n] = table[start:i]
				}
				n++
				start = i + 1
			}
			if i == len(table) || table[i] == '\n' {
				break
			}
		}
		table = table[min(i+1, len(table)):]
		if field[1] == id && field[4] != "/" && field[4] != "" {
			points = append(points, unescape(field[4]))
		}
	}
	return points
}

// unescape replaces \ooo, as which the kernel writes blanks in paths.
func unescape(s string) string {
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			b = append(b, (s[i+1]-'0')<<6|(s[i+2]-'0')<<3|(s[i+3]-'0'))
			i += 3
			continue
		}
		b = append(b, s[i])
	}
	return string(b)
}

// enterRoot takes the current root as it is.
func (s *state) enterRoot() *fail {
	if f := s.openProc(); f != nil {
		return f
	}
	if err := unix.Chdir("/"); err != nil {
		return failed(err, "/")
	}
	fd, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	s.root = fd
	return failed(err, "/")
}
