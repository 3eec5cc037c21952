package executor

import (
	"math/bits"
	"slices"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/platform/executor/guards"
	"github.com/orlop-io/orlop/internal/platform/executor/plan"
	"github.com/orlop-io/orlop/internal/platform/executor/tiny"
)

// The calls of the operations, and what the parent makes of the answers. What each is for is
// said in package child.

// opens adds a call that opens a descriptor, and returns its number.
func (s *straight) opens(nr uintptr, args ...uint64) uint64 {
	s.program.Call(nr, args...)
	return s.take()
}

func (s *straight) closes(fd uint64) {
	s.program.Try(unix.SYS_CLOSE, fd)
	s.gone(fd)
}

// take returns the number of the next descriptor: the kernel takes the lowest that is free.
func (s *straight) take() uint64 {
	if len(s.free) == 0 {
		s.next++
		return s.next - 1
	}
	fd := s.free[0]
	s.free = s.free[1:]
	return fd
}

// gone says that a number is free.
func (s *straight) gone(fd uint64) {
	i, _ := slices.BinarySearch(s.free, fd)
	s.free = slices.Insert(s.free, i, fd)
}

// tell makes n bytes at an address part of what the parent is told, and returns where it
// finds them.
func (s *straight) tell(address uint64, n int) int {
	s.told = append(s.told, address, uint64(n))
	s.size += n
	return s.size - n
}

// check has the parent look at what it is told before it opens the gate.
func (s *straight) check(usual func(said []byte) bool) {
	s.checks = append(s.checks, check{s.code, usual})
}

// check is what the parent looks at of what an operation has found.
type check struct {
	code  plan.Code
	usual func(said []byte) bool
}

const sizeofStatx = int(unsafe.Sizeof(unix.Statx_t{}))

// stat looks at an open file, and returns where the parent finds what statx(2) says of it.
func (s *straight) stat(fd uint64) int {
	room := s.program.Room(sizeofStatx)
	s.program.Try(unix.SYS_STATX, fd, s.program.String(""), unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS, room)
	return s.tell(room, sizeofStatx)
}

// statAt returns what stat has found, zero where there was nothing.
func statAt(said []byte, at int) (st unix.Statx_t) {
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&st)), sizeofStatx), said[at:])
	return st
}

// isDevice tells whether it is that character device.
func isDevice(st unix.Statx_t, major, minor uint32) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev_major == major && st.Rdev_minor == minor
}

// console opens a terminal of the container's devpts and sends its master.
func (s *straight) console(rows, cols, uid uint64, bind bool) bool {
	p := &s.program
	master := s.open("/dev/pts/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_NOFOLLOW)
	file := s.stat(master)
	fs := p.Room(int(unsafe.Sizeof(unix.Statfs_t{})))
	p.Call(unix.SYS_FSTATFS, master, fs)
	fstype := s.tell(fs, 8)
	s.check(func(said []byte) bool {
		return isDevice(statAt(said, file), 5, 2) && *(*int64)(unsafe.Pointer(&said[fstype])) == unix.DEVPTS_SUPER_MAGIC
	})
	p.Call(unix.SYS_IOCTL, master, unix.TIOCSPTLCK, p.Words(0))
	// Whatever else could claim to have opened a descriptor has not: the number is not in use
	// then, and nothing is sent.
	slave := s.opens(unix.SYS_IOCTL, master, unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if rows != 0 || cols != 0 {
		p.Call(unix.SYS_IOCTL, master, unix.TIOCSWINSZ, p.Words(rows|cols<<16))
	}
	if uid != 0 {
		p.Call(unix.SYS_FCHOWN, slave, uid, all32)
	}
	if bind {
		const path = "/dev/console"
		at, ok := s.makePath(path, kind{mode: 0o600}, 0)
		if !ok || !guards.ConsolePeer.On() {
			return false
		}
		m := s.clone(slave, 0)
		s.place(m, at, path)
		s.closes(at)
		s.closes(m)
	}
	p.Call(unix.SYS_IOCTL, slave, unix.TIOCSCTTY, 0)
	for i := range uint64(3) {
		p.Call(unix.SYS_DUP3, slave, i, 0)
	}
	s.closes(slave)
	// struct msghdr of sendmsg(2), with one message, and one struct cmsghdr with the master.
	message := p.Words(p.Data([]byte{plan.MsgConsole}), 1)
	rights := p.Words(uint64(unix.CmsgLen(4)), unix.SOL_SOCKET|unix.SCM_RIGHTS<<32, master)
	p.Call(unix.SYS_SENDMSG, s.channel, p.Words(0, 0, message, 1, rights, uint64(unix.CmsgSpace(4)), 0), 0)
	s.closes(master)
	return true
}

// nullStreams connects streams that lead nowhere to the container's null device.
func (s *straight) nullStreams(mask uint64) bool {
	if !guards.OwnNull.On() {
		return false
	}
	null := s.openNull(unix.O_RDWR)
	for i := range uint64(3) {
		if mask&(1<<i) != 0 {
			s.program.Call(unix.SYS_DUP3, null, i, 0)
		}
	}
	s.closes(null)
	return true
}

// ownStreams gives FIFOs to the user.
func (s *straight) ownStreams(uid uint64) {
	for i, f := range s.files[:3] {
		var st unix.Stat_t
		if f != nil && unix.Fstat(int(f.Fd()), &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFIFO && uint64(st.Uid) != uid {
			s.program.Try(unix.SYS_FCHOWN, uint64(i), uid, all32)
		}
	}
}

// openProc opens a file below the host's /proc.
func (s *straight) openProc(name string, flags, resolve uint64) (fd uint64) {
	if guards.HostProc.On() {
		return s.beneath(s.proc, name, flags, resolve)
	}
	return s.opens(unix.SYS_OPENAT, here, s.program.String("/proc/"+name), flags|unix.O_CLOEXEC, 0)
}

// writeProc writes to a file below the host's /proc.
func (s *straight) writeProc(name, value string, resolve uint64) {
	p := &s.program
	fd := s.openProc(name, unix.O_WRONLY, resolve)
	p.Call(unix.SYS_WRITE, fd, p.Data([]byte(value)), uint64(len(value)))
	s.closes(fd)
}

// oomScore sets the score, or leaves it where the machine does not allow so low a one.
func (s *straight) oomScore(adj string) {
	p := &s.program
	fd := s.openProc("self/oom_score_adj", unix.O_RDWR, unix.RESOLVE_NO_MAGICLINKS)
	p.On(tiny.Results{Error: tiny.Report, But: unix.EACCES}, unix.SYS_WRITE, fd, p.Data([]byte(adj)), uint64(len(adj)))
	const size = 8
	room := p.Room(size)
	p.Call(unix.SYS_PREAD64, fd, room, size, 0)
	s.closes(fd)
	at := s.tell(room, size)
	s.check(func(said []byte) bool {
		if now, _, _ := strings.Cut(string(said[at:at+size]), "\n"); now != adj {
			s.warnings = append(s.warnings, plan.ScoreKept(adj))
		}
		return true
	})
}

// raiseLimit raises a hard limit where that may be done.
func (s *straight) raiseLimit(resource, hard uint64) {
	var now unix.Rlimit
	if ownCaps()&(1<<unix.CAP_SYS_RESOURCE) != 0 && unix.Getrlimit(int(resource), &now) == nil && hard > now.Max {
		p := &s.program
		p.Try(unix.SYS_PRLIMIT64, 0, resource, p.Words(now.Cur, hard), 0)
	}
}

// rlimit sets a limit: the highest that is allowed, where this process may not raise its own,
// which the program inherits.
func (s *straight) rlimit(resource, soft, hard uint64, name string) {
	var now unix.Rlimit
	if ownCaps()&(1<<unix.CAP_SYS_RESOURCE) == 0 && unix.Getrlimit(int(resource), &now) == nil && hard > now.Max {
		limit := plan.Unlimited
		if now.Max != unix.RLIM_INFINITY {
			limit = itoa(now.Max)
		}
		hard, soft = now.Max, min(soft, now.Max)
		s.warnings = append(s.warnings, plan.LimitKept(name, limit))
	}
	p := &s.program
	p.Call(unix.SYS_PRLIMIT64, 0, resource, p.Words(soft, hard), 0)
}

// attribute writes to the first of the files that exists.
func (s *straight) attribute(value string, paths []string) bool {
	i := slices.IndexFunc(paths, func(path string) bool {
		return unix.Faccessat(int(s.files[s.proc].Fd()), path, unix.F_OK, 0) == nil
	})
	if i < 0 {
		return false
	}
	s.writeProc(paths[i], value, unix.RESOLVE_NO_MAGICLINKS)
	return true
}

// chdir changes to the working directory as root, and makes it if it is missing. What root
// may not enter is not straight.
func (s *straight) chdir(path string) bool {
	if s.inside {
		return true
	}
	s.inside = true
	p := &s.program
	dir, ok := s.makePath(path, directory, 0)
	if !ok {
		return false
	}
	p.Call(unix.SYS_FCHDIR, dir)
	s.closes(dir)
	if !guards.CwdChecked.On() {
		return true
	}
	p.Call(unix.SYS_GETCWD, s.gate, unix.PathMax)
	at := s.tell(s.gate, 1)
	s.check(func(said []byte) bool { return said[at] == '/' }) // "(unreachable)…": CVE-2024-21626
	return true
}

func (s *straight) bounding(keep uint64) {
	if !guards.Bounding.On() {
		return
	}
	for drop := s.bound &^ keep; drop != 0; drop &= drop - 1 {
		s.program.Call(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, lowest(drop), 0, 0, 0)
	}
}

func (s *straight) user(n []uint64) {
	p := &s.program
	p.Call(unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 1, 0, 0, 0)
	var groups []byte
	for _, g := range n[2:] {
		groups = append(groups, byte(g), byte(g>>8), byte(g>>16), byte(g>>24))
	}
	if guards.Supplemental.On() {
		p.Call(unix.SYS_SETGROUPS, uint64(len(n)-2), p.Data(groups))
	}
	p.Call(unix.SYS_SETRESGID, n[1], n[1], n[1])
	p.Call(unix.SYS_SETRESUID, n[0], n[0], n[0])
	hide(p) // a change of user sets it to what the sysctl fs.suid_dumpable says
}

// caps sets the four sets (capset(2)).
func (s *straight) caps(n []uint64) bool {
	p := &s.program
	if !guards.Inheritable.On() {
		return false
	}
	s.capset(n[0], n[1], n[2])
	for raise := n[3]; raise != 0; raise &= raise - 1 {
		p.Call(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, lowest(raise), 0, 0)
	}
	return true
}

func (s *straight) capset(effective, permitted, inheritable uint64) {
	p := &s.program
	set := p.Words(effective&all32|permitted<<32, inheritable&all32|effective>>32<<32, permitted>>32|inheritable>>32<<32)
	p.Call(unix.SYS_CAPSET, p.Words(unix.LINUX_CAPABILITY_VERSION_3), set)
}

// lowest is the number of the lowest bit that is set.
func lowest(set uint64) uint64 { return uint64(bits.TrailingZeros64(set)) }

// lookupHome asks for the user's home directory: see child/home.go.
func (s *straight) lookupHome(uid uint64) {
	s.users = true
	p := &s.program
	fd := s.take()
	p.On(tiny.Results{Error: tiny.Skip(3)}, unix.SYS_OPENAT2, s.inRoot("/etc/passwd", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)...)
	file := s.stat(fd)
	room := p.Room(maxUsers)
	p.Try(unix.SYS_READ, fd, room, maxUsers)
	s.closes(fd)
	table := s.tell(room, maxUsers)
	s.check(func(said []byte) bool {
		st := statAt(said, file)
		size := st.Size
		if st.Mode&unix.S_IFMT != unix.S_IFREG {
			size = 0
		} else if size > maxUsers || size == 0 && said[table] != 0 {
			return false
		}
		s.home = plan.HomeOf(string(said[table:table+int(size)]), uid)
		return true
	})
}

// lookup lets go of everything that is the host's and looks for the program, as the user
// that will run it: see child/exec.go.
func (s *straight) lookup(file, path string) bool {
	candidates := plan.Candidates(file, path)
	if file == "" || len(candidates) > maxCandidates {
		return false
	}
	p := &s.program
	if guards.LetGo.On() {
		p.Call(unix.SYS_CLOSE_RANGE, s.kept, all32, 0)
	}
	found := make([]int, len(candidates))
	for i, c := range candidates {
		p.On(tiny.Results{Error: tiny.Skip(1)}, unix.SYS_FACCESSAT2, here, p.String(c), unix.X_OK, unix.AT_EACCESS)
		room := p.Room(sizeofStatx)
		found[i] = s.tell(room+uint64(unsafe.Offsetof(unix.Statx_t{}.Mode)), 2)
		p.On(tiny.Results{Zero: tiny.Skip(2 * (len(candidates) - 1 - i))}, unix.SYS_STATX, here, p.String(c), 0, unix.STATX_BASIC_STATS, room)
	}
	s.check(func(said []byte) bool {
		mode := func(at int) uint16 { return uint16(said[at]) | uint16(said[at+1])<<8 }
		i := slices.IndexFunc(found, func(at int) bool { return mode(at) != 0 })
		if i < 0 || mode(found[i])&unix.S_IFMT != unix.S_IFREG || len(candidates[i]) >= unix.PathMax {
			return false
		}
		s.exe = candidates[i]
		return true
	})
	return true
}

func (s *straight) exec(argv, envv []string) bool {
	size := 0
	for _, str := range slices.Concat(argv, envv) {
		size += len(str)
	}
	if size > maxStrings {
		return false
	}
	p := &s.program
	var home []uint64
	if s.users {
		home = append(home, s.gate+homeAt)
	}
	p.Call(unix.SYS_EXECVE, s.gate+exeAt, p.Strings(argv), p.Strings(envv, home...))
	return true
}
