package child

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/platform/executor/guards"
	"github.com/orlop-io/orlop/internal/platform/executor/plan"
)

// sysctl writes a value for the namespaces that the child is in. Names were checked by
// the parent to belong to one of them.
func (s *state) sysctl(name, value string) *fail {
	if !guards.HostProc.On() {
		return writeUnguarded("/proc/sys/"+name, value)
	}
	fd, err := openAt(s.proc, "sys/"+name, unix.O_WRONLY, 0, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS)
	if err == unix.ENOENT {
		return &fail{unix.ENOENT, name, "the kernel does not have this sysctl"}
	}
	if err != nil {
		return failed(err, name)
	}
	defer unix.Close(fd)
	_, err = unix.Write(fd, []byte(value))
	return failed(err, name+"="+value)
}

// oomScore sets the score. Lowering it below what the parent has needs CAP_SYS_RESOURCE;
// without it the score stays the parent's, which is the lowest allowed.
func (s *state) oomScore(adj int32) *fail {
	f := s.writeProc("self/oom_score_adj", itoa(int(adj)), itoa(int(adj)))
	if f != nil && (f.errno == unix.EACCES || f.errno == unix.EPERM) {
		warn(plan.ScoreKept(itoa(int(adj))))
		return nil
	}
	return f
}

// rlimit sets a limit. A hard limit above the present one needs CAP_SYS_RESOURCE; without
// it the limit becomes the highest that is allowed.
func rlimit(resource int, soft, hard uint64, name string) *fail {
	lim := unix.Rlimit{Cur: soft, Max: hard}
	err := prlimit(resource, &lim, nil)
	if err != unix.EPERM {
		return raw(err, name)
	}
	var now unix.Rlimit
	if e := prlimit(resource, nil, &now); e != 0 {
		return raw(e, name)
	}
	lim.Max = min(lim.Max, now.Max)
	lim.Cur = min(lim.Cur, lim.Max)
	if e := prlimit(resource, &lim, nil); e != 0 {
		return raw(e, name)
	}
	warn(plan.LimitKept(name, limit(now.Max)))
	return nil
}

// raiseLimit raises a hard limit where that may be done; Rlimit tells if it may not.
func raiseLimit(resource int, hard uint64) {
	var now unix.Rlimit
	if prlimit(resource, nil, &now) == 0 && hard > now.Max {
		now.Max = hard
		prlimit(resource, &now, nil)
	}
}

// supplemental are the groups that the child was started with.
func supplemental() []uint32 {
	var g [1 << 10]uint32
	n, _, _ := unix.RawSyscall(unix.SYS_GETGROUPS, uintptr(len(g)), uintptr(unsafe.Pointer(&g[0])), 0)
	return g[:min(int(n), len(g))]
}

func limit(v uint64) string {
	if v == unix.RLIM_INFINITY {
		return plan.Unlimited
	}
	return itoa(int(v))
}

func prlimit(resource int, set, get *unix.Rlimit) unix.Errno {
	_, _, e := unix.RawSyscall6(unix.SYS_PRLIMIT64, 0, uintptr(resource), uintptr(unsafe.Pointer(set)), uintptr(unsafe.Pointer(get)), 0, 0)
	return e
}

// keyring gives the container a session keyring of its own, so that it does not possess
// the keys of whoever started it. A kernel without keyrings, or a user whose quota is
// used up, goes without.
func keyring(name string) {
	if !guards.Keyring.On() {
		return
	}
	if _, err := unix.KeyctlJoinSessionKeyring(name); err != nil && err != unix.ENOSYS {
		warn("no session keyring of its own: " + err.Error())
	}
}

func scheduler(n []uint64, operand string) *fail {
	var at = unix.SchedAttr{Size: unix.SizeofSchedAttr}
	at.Policy, at.Flags, at.Nice, at.Priority = uint32(n[0]), n[1], int32(n[2]), uint32(n[3])
	at.Runtime, at.Deadline, at.Period = n[4], n[5], n[6]
	return failed(unix.SchedSetAttr(0, &at, 0), operand)
}

func memoryPolicy(mode uint64, nodes []uint64, operand string) *fail {
	var mask *uint64
	if len(nodes) > 0 {
		mask = &nodes[0]
	}
	// The kernel takes one bit less than it is told.
	_, _, e := unix.RawSyscall(unix.SYS_SET_MEMPOLICY, uintptr(mode), uintptr(unsafe.Pointer(mask)), uintptr(64*len(nodes)+1))
	f := raw(e, operand)
	switch e {
	case unix.EINVAL:
		f.hint = "the kernel does not know it, or there are no such nodes in this machine or the cgroup's cpuset"
	case unix.ENOSYS:
		f.hint = "the kernel is built without NUMA"
	}
	return f
}

// attribute writes to the first of the files that exists.
func (s *state) attribute(value, what string, paths []string) *fail {
	var f *fail
	for _, p := range paths {
		if f = s.writeProc(p, value, what); f == nil || f.errno != unix.ENOENT {
			break
		}
	}
	return f
}

// bounding drops every capability that is not in keep.
func bounding(keep uint64) *fail {
	if !guards.Bounding.On() {
		return nil
	}
	for c := uintptr(0); c < 64; c++ {
		if keep&(1<<c) != 0 {
			continue
		}
		if _, _, e := unix.RawSyscall(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, c, 0); e == unix.EINVAL {
			return nil // beyond the last one that the kernel knows
		} else if e != 0 {
			return raw(e, itoa(int(c)))
		}
	}
	return nil
}

// user changes the identity of this thread. The library's functions would change all
// threads, which there is no need for.
func (s *state) user(n []uint64) *fail {
	if _, _, e := unix.RawSyscall(unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 1, 0); e != 0 {
		return raw(e, "keep capabilities")
	}
	uid, gid := uintptr(n[0]), uintptr(n[1])
	groups := make([]uint32, 0, len(n))
	for _, g := range n[2:] {
		groups = append(groups, uint32(g))
	}
	if !guards.Supplemental.On() {
		groups = append(groups, supplemental()...)
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(unsafe.SliceData(groups))), 0); e != 0 && !(e == unix.EPERM && len(groups) == 0 && s.groupsDenied()) {
		return raw(e, "additional groups")
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESGID, gid, gid, gid); e != 0 {
		return raw(e, "group "+itoa(int(gid)))
	}
	if _, _, e := unix.RawSyscall(unix.SYS_SETRESUID, uid, uid, uid); e != 0 {
		return raw(e, "user "+itoa(int(uid)))
	}
	undumpable() // a change of user sets it to what the sysctl fs.suid_dumpable says
	return nil
}

// groupsDenied tells whether nobody in the user namespace may change his groups, so that
// whoever has none of others keeps what he has (setgroups in user_namespaces(7)).
func (s *state) groupsDenied() bool {
	fd, err := openAt(s.proc, "self/setgroups", unix.O_RDONLY, 0, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_MAGICLINKS)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	var b [8]byte
	n, err := unix.Read(fd, b[:])
	return err == nil && n >= 4 && string(b[:4]) == "deny"
}

// capSets are the four sets of a thread (capset(2), capabilities(7)).
type capSets struct {
	hdr     unix.CapUserHeader
	data    [2]unix.CapUserData
	ambient uint64
}

func newCapSets(effective, permitted, inheritable, ambient uint64) *capSets {
	c := &capSets{
		hdr: unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3},
		data: [2]unix.CapUserData{
			{Effective: uint32(effective), Permitted: uint32(permitted), Inheritable: uint32(inheritable)},
			{Effective: uint32(effective >> 32), Permitted: uint32(permitted >> 32), Inheritable: uint32(inheritable >> 32)},
		},
		ambient: ambient,
	}
	if !guards.Inheritable.On() {
		var old [2]unix.CapUserData
		unix.Capget(&c.hdr, &old[0])
		for i := range c.data {
			c.data[i].Inheritable = old[i].Inheritable
		}
	}
	return c
}

// set sets them on this thread. It may be called after the seccomp filter is installed.
//
//go:nosplit
func (c *capSets) set() unix.Errno {
	if _, _, e := unix.RawSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&c.hdr)), uintptr(unsafe.Pointer(&c.data[0])), 0); e != 0 {
		return e
	}
	for n := uintptr(0); n < 64; n++ {
		if c.ambient&(1<<n) == 0 {
			continue
		}
		if _, _, e := unix.RawSyscall6(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, n, 0, 0, 0); e != 0 {
			return e
		}
	}
	return 0
}

// makeCwd makes the working directory while the root can be written. What is wrong with it
// chdir tells.
func (s *state) makeCwd(path string) {
	if fd, f := s.makePath(path, true, 0o755, 0); f == nil {
		unix.Close(fd)
	}
}

// chdir changes to the working directory, once as root and, where root may not (NFS),
// again as the user.
func (s *state) chdir(path string, create, last bool) *fail {
	if s.cwd {
		return nil
	}
	fd, err := s.open(path, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err == unix.ENOENT && create {
		var f *fail
		if fd, f = s.makePath(path, true, 0o755, 0); f != nil {
			return f
		}
		err = nil
	}
	if err == nil {
		err = unix.Fchdir(fd)
		unix.Close(fd)
	}
	if (err == unix.EACCES || err == unix.EPERM) && !last {
		return nil
	}
	if err != nil {
		return failed(err, path)
	}
	// The path was resolved inside the root, so this cannot be. If it ever were, the
	// container would stand outside (CVE-2024-21626).
	var buf [unix.PathMax]byte
	if !guards.CwdChecked.On() {
		s.cwd = true
		return nil
	}
	n, err := unix.Getcwd(buf[:])
	if err != nil {
		return failed(err, path)
	}
	if n == 0 || buf[0] != '/' {
		return &fail{unix.EXDEV, path, "the working directory is outside of the container"}
	}
	s.cwd = true
	return nil
}
