package executor

import (
	"os"
	"slices"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/platform/executor/guards"
	"github.com/orlop-io/orlop/internal/platform/executor/plan"
	"github.com/orlop-io/orlop/internal/platform/executor/tiny"
)

// An ordinary container, and an ordinary process that joins one, need little of what orlop-init
// can do: what the plan has is, as a rule, a list of system calls with hardly a question in
// between. Such a plan is written down as a program of package tiny, which has neither a
// runtime to start nor a plan to read, and takes the place of orlop-init (straight_start.go).
//
// The questions are left to the parent. What it can know before, it looks at: which
// of the paths to mask this kernel has. What only the process can find,
// like the type of a file in the image, where a mount point is, and the first lines of
// /etc/passwd, the program tells with its word that it is ready; the parent looks at it
// before it opens the gate, and sends with its own word what follows from it. Where a call
// fails or an answer is not the usual one, the process is thrown away with its namespaces, has done nothing
// that remains but mount points that were missing, and orlop-init takes its turn: it does what
// there is to do then, or says what is wrong. So no error of the set-up has two texts.

// straight is a plan as a program.
type straight struct {
	program tiny.Program
	files   []*os.File        // the process's descriptors, from 0 on; nil is the null device
	fds     map[uint64]uint64 // of the plan's descriptors, those of the process
	channel uint64            // the socket's; after it comes the gate's, if it is a FIFO
	kept    uint64            // those from here on lead to the host, or are not needed after the gate
	proc    uint64            // the host's /proc
	next    uint64            // the number that the next descriptor gets, but for those that are
	free    []uint64          // free again, in order
	root    uint64
	at      string // where the root is, until the pivot
	slots   []slot
	kernel  []kernelMount
	held    uint64                   // the directory that the last device or link was made in,
	holds   string                   // and its path
	rootAt  func(said []byte) string // where the root was, from the host's root; "" if not where it was expected
	crosses bool                     // into another user or time namespace
	bound   uint64                   // the bounding set
	ownProc bool                     // a proc filesystem is mounted on /proc
	inside  bool                     // the working directory has been entered
	users   bool                     // HOME is asked for

	told   []uint64 // what is told when all is ready, as struct iovec
	size   int      // of it
	clocks []int    // where in it the times are
	checks []check

	pause uint64   // the program of a pause
	fifo  *os.File // the gate, nil where it is the parent's word
	gate  uint64   // where the parent's word goes
	exe   string   // what that says: the program, and
	home  string   // the variable HOME
	after calls    // the gate

	warnings []string
	code     plan.Code   // of the operation that is being added
	rest     []plan.Op   // the operations after it
	codes    []plan.Code // of each call, for what is told of a failure
}

const (
	maxStrings    = 128 << 10 // of arguments and environment
	maxCandidates = 16
	maxUsers      = 8 << 10 // of /etc/passwd
	exeAt         = 1       // in the parent's word
	homeAt        = exeAt + unix.PathMax
	maxWord       = homeAt + maxUsers // a home directory is shorter than the table that has it

	here  = uint64(1<<64 - 100) // AT_FDCWD
	all32 = uint64(1<<32 - 1)   // the highest descriptor, and the user or group that stays what it is
)

// straight returns the plan as a program, nil where it is not one: then it is orlop-init's.
// That is so for a process in a user namespace whose caller is not the host's root, or that is
// given network devices, and for what add does not know: listeners of seccomp profiles, and hooks.
func (b *builder) straight(stdio [3]*os.File) *straight {
	if b.crosses() && !privileged() || b.rdt != nil || b.listener != nil || len(b.devs) > 0 || !guards.Sealed.On() {
		return nil
	}
	has := func(codes ...plan.Code) bool {
		is := func(o plan.Op) bool { return slices.Contains(codes, o.Code) }
		return slices.ContainsFunc(b.host.Ops, is) || slices.ContainsFunc(b.plan.Ops, is)
	}
	// What is mounted and written for a container is in its group, and its groups' namespace too.
	// What the kernel takes from a CPU set has to come after the group.
	if !b.joining || has(plan.Affinity, plan.Scheduler, plan.MemoryPolicy) {
		if whole, _ := b.clones(); !whole {
			return nil
		}
	}
	s := &straight{fds: map[uint64]uint64{}, crosses: b.crosses(), bound: bounds().set}
	s.files = append(append(s.files, stdio[:]...), b.extra...)
	s.channel = s.give(nil)
	s.program.Channel(s.channel)
	s.kept = s.channel + 1
	if b.gate != nil {
		s.fifo = b.gate
		s.give(b.gate)
		s.kept++
	}
	for i, f := range b.files {
		switch {
		case slices.Contains(b.extra, f):
		case f == b.gate:
			s.fds[uint64(plan.FirstFD+i)] = s.channel + 1
		default:
			s.fds[uint64(plan.FirstFD+i)] = s.give(f)
		}
	}
	if !b.joining || has(plan.OOMScore, plan.Attribute) {
		proc := hostProc()
		if proc == nil {
			return nil
		}
		b.opened = append(b.opened, proc)
		s.proc = s.give(proc)
	}
	if has(plan.Pause) {
		f, err := program("pause", tiny.Pause())
		if err != nil {
			return nil
		}
		b.opened = append(b.opened, f)
		s.pause = s.give(f)
	}
	var user uint64
	if b.user != nil {
		user, s.bound = s.give(b.user.file), bounds().known
	}
	var entered []uint64
	for _, n := range b.entered {
		entered = append(entered, s.give(n.file))
	}
	s.next = uint64(len(s.files))
	hide(&s.program)
	// The program itself, and what the caller forgot to close.
	s.program.Call(unix.SYS_CLOSE_RANGE, s.next, all32, 0)
	s.gate = s.program.Room(maxWord)
	s.ownProc = slices.ContainsFunc(b.plan.Ops, func(o plan.Op) bool {
		return o.Code == plan.Mount && o.N[1]&plan.MountStrict != 0 && o.S[0] == "/proc" && o.S[1] == "proc"
	})
	if s.crosses {
		if !s.all(b.host.Ops) {
			return nil
		}
		s.cross(b, user, entered)
		s.counted(plan.Cross)
	}
	if !s.all(b.plan.Ops) || 1+s.size > maxMessage {
		return nil
	}
	return s
}

// all adds operations, and tells whether all have a straight form.
func (s *straight) all(ops []plan.Op) bool {
	for i := range ops {
		o := &ops[i]
		if o.Code != plan.Device && o.Code != plan.Symlink {
			s.release()
		}
		s.code, s.rest = o.Code, ops[i+1:]
		if !s.add(o) {
			return false
		}
		s.counted(o.Code)
	}
	return true
}

// counted notes whose the calls are that were added.
func (s *straight) counted(c plan.Code) {
	for len(s.codes) < s.program.Len() {
		s.codes = append(s.codes, c)
	}
}

func (s *straight) give(f *os.File) uint64 {
	s.files = append(s.files, f)
	return uint64(len(s.files) - 1)
}

// hostProc opens the host's /proc, nil if that is none.
func hostProc() *os.File {
	fd, err := unix.Open("/proc", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	var st unix.Statfs_t
	if unix.Fstatfs(fd, &st) != nil || st.Type != unix.PROC_SUPER_MAGIC {
		unix.Close(fd)
		return nil
	}
	return os.NewFile(uintptr(fd), "/proc")
}

// add adds the calls of an operation, and tells whether it has a straight form. They are
// those of package child.
func (s *straight) add(o *plan.Op) bool {
	p := &s.program
	n := func(i int) uint64 {
		if i < len(o.N) {
			return o.N[i]
		}
		return 0
	}
	switch o.Code {
	case plan.Setns:
		p.Call(unix.SYS_SETNS, s.fds[n(0)], n(1))
	case plan.Clock:
		now := p.Room(16)
		p.Call(unix.SYS_CLOCK_GETTIME, unix.CLOCK_REALTIME, now)
		s.clocks = append(s.clocks, s.tell(now, 16))
	case plan.Unshare:
		p.Call(unix.SYS_UNSHARE, n(0))
	case plan.LoUp:
		s.loUp()
	case plan.TimeClock:
		s.writeProc("self/timens_offsets", o.S[0], unix.RESOLVE_NO_MAGICLINKS)
	case plan.Idmap:
		s.idmap(s.slots[n(0)].fd, s.fds[n(1)], n(2) != 0)
	case plan.Cover:
		s.cover(s.fds[n(0)], o.S[0])
	case plan.Tree:
		s.tree(n(0), n(1) != 0, o.S[0])
	case plan.Overlay:
		return s.overlay(o)
	case plan.NewFS:
		s.put(n(0), slot{fd: s.newFS(o.S[0], o.S[1], o.S[2:], n(1)), kind: directory, proc: o.S[0] == "proc"})
	case plan.Propagate:
		s.propagate(n(0), o.S[0])
	case plan.Root:
		s.enterRoot(n(0), o.S[0])
	case plan.SlotAttr:
		s.setattr(s.slots[n(0)].fd, n(4) != 0, unix.MountAttr{Attr_set: n(1), Attr_clr: n(2), Propagation: n(3)})
	case plan.Attach:
		return s.attach(n(0), o.S[0], n(1), n(2) != 0)
	case plan.Mount:
		return s.mount(n(0), n(1), n(2), o.S)
	case plan.PathAttr:
		s.pathAttr(o.S[0], n(0), n(1), n(2) != 0)
	case plan.MakeCwd:
		fd, ok := s.makePath(o.S[0], directory, 0)
		s.closes(fd)
		return ok
	case plan.Device:
		return s.device(o.S[0], n(0), n(1), n(2), n(3))
	case plan.Symlink:
		return s.symlink(o.S[0], o.S[1])
	case plan.Mask:
		return s.mask(o.S)
	case plan.ReadOnly:
		return s.readOnly(o.S)
	case plan.Pivot:
		s.pivot()
	case plan.Hostname:
		p.Call(unix.SYS_SETHOSTNAME, p.String(o.S[0]), uint64(len(o.S[0])))
	case plan.Domainname:
		p.Call(unix.SYS_SETDOMAINNAME, p.String(o.S[0]), uint64(len(o.S[0])))
	case plan.Sysctl:
		s.writeProc("sys/"+o.S[0], o.S[1], unix.RESOLVE_NO_SYMLINKS)
	case plan.EnterRoot:
		p.Call(unix.SYS_CHDIR, p.String("/"))
		s.root = s.opens(unix.SYS_OPENAT, here, p.String("/"), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	case plan.Session:
		if guards.Session.On() {
			p.Call(unix.SYS_SETSID)
		}
	case plan.Console:
		return s.console(n(0), n(1), n(2), n(3) != 0)
	case plan.NullStreams:
		return s.nullStreams(n(0))
	case plan.OwnStreams:
		s.ownStreams(n(0))
	case plan.OOMScore:
		s.oomScore(strconv.Itoa(int(int32(n(0)))))
	case plan.Attribute:
		return s.attribute(o.S[0], o.S[2:])
	case plan.Keyring:
		if guards.Keyring.On() {
			p.Call(unix.SYS_KEYCTL, unix.KEYCTL_JOIN_SESSION_KEYRING, p.String(o.S[0]))
		}
	case plan.Personality:
		p.Call(unix.SYS_PERSONALITY, n(0))
	case plan.Scheduler: // struct sched_attr of sched_setattr(2)
		p.Call(unix.SYS_SCHED_SETATTR, 0, p.Words(unix.SizeofSchedAttr|n(0)<<32, n(1), n(2)&all32|n(3)<<32, n(4), n(5), n(6), 0), 0)
	case plan.IOPriority:
		p.Call(unix.SYS_IOPRIO_SET, 1, 0, n(0))
	case plan.Affinity:
		p.Call(unix.SYS_SCHED_SETAFFINITY, 0, uint64(8*len(o.N)), p.Words(o.N...))
	case plan.MemoryPolicy:
		var mask uint64
		if len(o.N) > 1 {
			mask = p.Words(o.N[1:]...)
		}
		p.Call(unix.SYS_SET_MEMPOLICY, n(0), mask, uint64(64*len(o.N[1:])+1))
	case plan.Umask:
		p.Call(unix.SYS_UMASK, n(0))
	case plan.Chdir:
		return s.chdir(o.S[0])
	case plan.Bounding:
		s.bounding(n(0))
	case plan.Rlimit:
		s.rlimit(n(0), n(1), n(2), o.S[0])
	case plan.RaiseLimit:
		s.raiseLimit(n(0), n(2))
	case plan.User:
		s.user(o.N)
	case plan.Caps:
		return s.caps(o.N)
	case plan.NoNewPrivs:
		if guards.NoNewPrivs.On() {
			p.Call(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
		}
	case plan.Files: // they are where they belong from the beginning
	case plan.Home:
		s.lookupHome(n(0))
	case plan.Lookup:
		return s.lookup(o.S[0], o.S[1])
	case plan.Gate:
		if len(o.N) > 0 {
			return s.hold(s.fds[n(0)])
		}
		s.wait()
	case plan.Seccomp:
		filter := p.Data([]byte(o.S[0]))
		p.Call(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, n(0), p.Words(uint64(len(o.S[0])/8), filter))
	case plan.Pause:
		p.Call(unix.SYS_EXECVEAT, s.pause, p.String(""), p.Strings([]string{"pause"}), p.Strings(nil), unix.AT_EMPTY_PATH)
	case plan.Exec:
		return s.exec(o.S[:n(0)], o.S[n(0):])
	default:
		return false
	}
	return true
}
