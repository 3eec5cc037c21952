// Package child is the executor's half that runs inside a container: it carries out a
// plan, as orlop-init.
//
// It is linked into a binary whose start is on the path of every container, so it
// imports nothing that initialises much: no os, no fmt. Everything happens on the
// process's first thread: namespaces, credentials and seccomp filters belong to
// threads, and Go's other threads end at execve.
//
// What is in the container may be hostile (see path.go), and processes of the container
// may run beside it when it joins a container that runs: it makes itself undumpable
// first, and its descriptors close at execve.
package child

import (
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/platform/executor/guards"
	"github.com/orlop-io/orlop/internal/platform/executor/plan"
)

// fail is why an operation could not be carried out.
type fail struct {
	errno   unix.Errno
	operand string
	hint    string
}

// failed returns nil for a nil err. Errors of package unix are errno values.
func failed(err error, operand string) *fail {
	if err == nil {
		return nil
	}
	errno, ok := err.(unix.Errno)
	if !ok {
		errno = unix.EINVAL
	}
	return &fail{errno: errno, operand: operand}
}

// slot is a mount, or tree of mounts, that is attached nowhere.
type slot struct {
	fd     int
	dir    bool
	source string // for errors
}

type state struct {
	slots  []slot
	proc   int    // the host's /proc, which no image can have tampered with
	root   int    // the container's root, once it is entered
	at     string // where that is, until the pivot: for those who do without it (guards.InRoot)
	procAt string // where the container's /proc is, once that is certain
	extra  int    // descriptors of the program's beside the standard streams
	exe    *byte
	made   bool   // makePath made the directory at the end of its path
	cwd    bool   // changed to the working directory
	home   string // of the user, "" where the environment says it
	argv   []*byte
	envv   []*byte
	notify *notifier
	rest   []plan.Op // operations after the present one

	// The filesystems that were mounted on /proc and /sys.
	kernel []kernelMount
}

func init() {
	runtime.LockOSThread() // in an init function: main then runs on the first thread
}

// Main carries out the plan that comes over the socket. It does not return.
func Main() {
	undumpable() // before the first thing that another process could be interested in
	quiet()
	ops, ok := receive()
	if !ok {
		exit(plan.NotExecuted) // nobody to tell: not started by an executor, or it died
	}
	fileLimit()
	s := &state{proc: -1, root: -1}
	for i := range ops {
		s.rest = ops[i+1:]
		if f := s.run(&ops[i]); f != nil {
			report(ops[i].Code, f)
			exit(plan.NotExecuted)
		}
	}
	exit(plan.NotExecuted) // a plan ends with Exec or Pause
}

// undumpable keeps other processes that have the child's user, as those of a container
// have that it joins, from its memory, its binary and its descriptors (ptrace(2), "Ptrace
// access mode checking").
func undumpable() {
	if guards.Undumpable.On() {
		unix.RawSyscall(unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 0, 0)
	}
}

// fileLimit gives the process the soft limit of open files again that it began with, and with it
// the program. Package syscall raises it to the hard one before main, and remembers it for
// its Exec, which puts it back even if, as here, there is nothing to execute.
func fileLimit() { syscall.Exec("", nil, nil) }

func (s *state) run(o *plan.Op) *fail {
	n := func(i int) uint64 {
		if i < len(o.N) {
			return o.N[i]
		}
		return 0
	}
	str := func(i int) string {
		if i < len(o.S) {
			return o.S[i]
		}
		return ""
	}
	switch o.Code {
	case plan.Setns:
		return s.setns(int(n(0)), int(n(1)), str(0))
	case plan.Unshare:
		return failed(unix.Unshare(int(n(0))), "")
	case plan.Cross:
		return s.cross(int(n(0)), int(n(1)))
	case plan.TimeClock:
		return s.writeProc("self/timens_offsets", str(0), str(0))
	case plan.LoUp:
		return loUp()

	case plan.Take:
		return s.take(int(n(0)), int(n(1)))
	case plan.Idmap:
		return s.idmap(int(n(0)), n(1), n(2) != 0)
	case plan.Cover:
		return s.cover(n(0), str(0))
	case plan.Tree:
		return s.tree(int(n(0)), n(1) != 0, str(0))
	case plan.Overlay:
		return s.overlay(int(n(0)), n(1) != 0, n(2) != 0, uint32(n(3)), uint32(n(4)), n(5) != 0, o.S)
	case plan.NewFS:
		return s.filesystem(int(n(0)), n(1), o.S)
	case plan.Propagate:
		return failed(unix.Mount("", str(0), "", uintptr(n(0)), ""), str(0))
	case plan.Root:
		return s.enter(int(n(0)), str(0))
	case plan.Pivot:
		return s.pivot()
	case plan.MoveRoot:
		return s.moveRoot()
	case plan.EnterRoot:
		return s.enterRoot()

	case plan.SlotAttr:
		return s.slotAttr(int(n(0)), n(1), n(2), n(3), n(4) != 0)
	case plan.Attach:
		return s.attach(int(n(0)), str(0), n(1), n(2) != 0)
	case plan.Mount:
		return s.mount(n(0), n(1), n(2), o.S)
	case plan.PathAttr:
		return s.pathAttr(str(0), n(0), n(1), n(2) != 0)
	case plan.MakeCwd:
		s.makeCwd(str(0))
		return nil
	case plan.Symlink:
		return s.symlink(str(0), str(1))
	case plan.Device:
		return s.device(str(0), uint32(n(0)), n(1), int(n(2)), int(n(3)))
	case plan.Mask:
		return s.mask(o.S)
	case plan.ReadOnly:
		return s.readOnly(o.S)

	case plan.Hostname:
		return failed(unix.Sethostname([]byte(str(0))), str(0))
	case plan.Domainname:
		return failed(unix.Setdomainname([]byte(str(0))), str(0))
	case plan.Sysctl:
		return s.sysctl(str(0), str(1))

	case plan.Session:
		if !guards.Session.On() {
			return nil
		}
		_, err := unix.Setsid()
		return failed(err, "")
	case plan.Console:
		return s.console(uint16(n(0)), uint16(n(1)), int(n(2)), n(3) != 0)
	case plan.NullStreams:
		return s.nullStreams(n(0))
	case plan.OwnStreams:
		ownStreams(int(n(0)))
		return nil
	case plan.OOMScore:
		return s.oomScore(int32(n(0)))
	case plan.Rlimit:
		return rlimit(int(n(0)), n(1), n(2), str(0))
	case plan.RaiseLimit:
		raiseLimit(int(n(0)), n(2))
		return nil
	case plan.Keyring:
		keyring(str(0))
		return nil
	case plan.Personality:
		_, _, e := unix.RawSyscall(unix.SYS_PERSONALITY, uintptr(n(0)), 0, 0)
		return raw(e, str(0))
	case plan.Scheduler:
		return scheduler(o.N, str(0))
	case plan.IOPriority:
		_, _, e := unix.RawSyscall(unix.SYS_IOPRIO_SET, 1, 0, uintptr(n(0)))
		return raw(e, str(0))
	case plan.Affinity:
		if len(o.N) == 0 {
			return nil
		}
		_, _, e := unix.RawSyscall(unix.SYS_SCHED_SETAFFINITY, 0, uintptr(8*len(o.N)), uintptr(unsafe.Pointer(&o.N[0])))
		return raw(e, str(0))
	case plan.MemoryPolicy:
		return memoryPolicy(n(0), o.N[1:], str(0))
	case plan.Attribute:
		return s.attribute(str(0), str(1), o.S[2:])
	case plan.Home:
		s.setHome(n(0))
		return nil
	case plan.Umask:
		unix.Umask(int(n(0)))
		return nil
	case plan.Bounding:
		return bounding(n(0))
	case plan.User:
		return s.user(o.N)
	case plan.Caps:
		return raw(newCapSets(n(0), n(1), n(2), n(3)).set(), "")
	case plan.Chdir:
		return s.chdir(str(0), n(0) != 0, n(1) != 0)
	case plan.NoNewPrivs:
		if !guards.NoNewPrivs.On() {
			return nil
		}
		_, _, e := unix.RawSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0)
		return raw(e, "")
	case plan.Lookup:
		return s.lookup(str(0), str(1))
	case plan.Sync:
		s.sync()
		return nil
	case plan.Hook:
		return s.hook(o.N, o.S)
	case plan.Clock:
		clock(n(0))
		return nil
	case plan.Files:
		return s.files(o.N)
	case plan.Gate:
		if len(o.N) > 0 {
			return s.fifo(int(n(0)))
		}
		return s.gate()
	case plan.Listen:
		return s.listen(int(n(0)), n(1) != 0, str(0), str(1))
	case plan.Seccomp:
		return s.confine(uintptr(n(0)), n(1) != 0, str(0))
	case plan.Exec:
		return s.exec(str(0))
	case plan.Pause:
		return s.pause()
	}
	return &fail{errno: unix.ENOSYS}
}

func raw(e unix.Errno, operand string) *fail {
	if e == 0 {
		return nil
	}
	return &fail{errno: e, operand: operand}
}

func exit(code int) {
	for {
		unix.RawSyscall(unix.SYS_EXIT_GROUP, uintptr(code), 0, 0)
	}
}

// itoa is strconv.Itoa without the package.
func itoa(n int) string {
	if n < 0 {
		return "-" + itoa(-n)
	}
	var b [20]byte
	i := len(b)
	for {
		i--
		b[i] = byte('0' + n%10)
		if n /= 10; n == 0 {
			return string(b[i:])
		}
	}
}
