package child

import (
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/platform/executor/guards"
	"github.com/orlop-io/orlop/internal/platform/executor/plan"
)

// mayCover tells whether the mount fd may be attached to at. path is what the specification
// calls it; where it is the kernel says of the descriptor, so it makes no difference
// whether the path goes there or a link of the image does.
func (s *state) mayCover(at, fd int, path string) *fail {
	root, err := s.isRoot(at)
	if err != nil {
		return failed(err, path)
	}
	if root {
		return &fail{unix.EINVAL, path, "it is the root filesystem, which nothing can be mounted over; give another root instead"}
	}
	if !guards.ProcUncovered.On() {
		return nil
	}
	proc, f := s.whereProc()
	if f != nil {
		return f
	}
	where, f := s.where(at)
	if f != nil {
		return f
	}
	if len(where) < len(proc) || where[:len(proc)] != proc {
		return nil
	}
	below := where[len(proc):]
	if below == "" {
		var st unix.Statfs_t
		if err := unix.Fstatfs(fd, &st); err != nil {
			return failed(err, path)
		}
		if st.Type == unix.PROC_SUPER_MAGIC {
			return nil
		}
		return &fail{unix.EINVAL, path, "only a proc filesystem may be mounted on /proc"}
	}
	if below[0] != '/' {
		return nil
	}
	if plan.Coverable(below) {
		return nil
	}
	return &fail{unix.EINVAL, path, "it is in /proc, of which only files that tell of resources (cpuinfo, diskstats, loadavg, meminfo, slabinfo, stat, swaps, uptime), sys/crypto/fips_enabled and sys/kernel/ns_last_pid may be mounted over"}
}

// whereProc returns where the container's /proc is. An image may have a link in its place.
func (s *state) whereProc() (string, *fail) {
	if s.procAt != "" {
		return s.procAt, nil
	}
	root, f := s.where(s.root)
	if f != nil {
		return "", f
	}
	if root == "/" {
		root = ""
	}
	fd, err := s.open("/proc", unix.O_PATH, 0)
	if err != nil { // it is not there yet, or leads nowhere
		return root + "/proc", nil
	}
	defer unix.Close(fd)
	at, f := s.where(fd)
	if f == nil && at == root+"/proc" {
		s.procAt = at // a directory of the root: no mount makes it lead elsewhere
	}
	return at, f
}

// where returns the path of what is open, from the process's root.
func (s *state) where(fd int) (string, *fail) {
	if f := s.openProc(); f != nil {
		return "", f
	}
	name := "self/fd/" + itoa(fd)
	var buf [unix.PathMax]byte
	n, err := unix.Readlinkat(s.proc, name, buf[:])
	if err == nil && n == len(buf) {
		err = unix.ENAMETOOLONG
	}
	if err != nil {
		return "", failed(err, "/proc/"+name)
	}
	return string(buf[:n]), nil
}

// isRoot tells whether what is open is the container's root.
func (s *state) isRoot(fd int) (bool, error) {
	var a, b unix.Statx_t
	const mask = unix.STATX_INO | unix.STATX_MNT_ID
	err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, mask, &a)
	if err == nil {
		err = unix.Statx(s.root, "", unix.AT_EMPTY_PATH, mask, &b)
	}
	return a.Mnt_id == b.Mnt_id && a.Ino == b.Ino && a.Dev_major == b.Dev_major && a.Dev_minor == b.Dev_minor, err
}
