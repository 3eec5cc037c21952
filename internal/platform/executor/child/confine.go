package child

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/platform/executor/plan"
)

// confined is what happens from the seccomp filter on, ready to be done.
type confined struct {
	flags  uintptr
	filter struct { // struct sock_fprog
		len    uint16
		filter *byte
	}
	notify *notifier // who sends the listener's descriptor; nil: there is none
	caps   *capSets  // where the filter needed CAP_SYS_ADMIN; nil: they are set already
	exe    *byte
	argv   **byte
	envv   **byte

	// What is said of a failure.
	notSent, notSet []byte
	notRun          [len(plan.ExecErrors)][]byte
}

// confine installs the filter on this thread and executes the program. It returns only if
// the filter was refused. kills: it may end this thread and not the process.
func (s *state) confine(flags uintptr, kills bool, filter string) *fail {
	c := &confined{flags: flags, notify: s.notify, exe: s.exe, argv: &s.argv[0], envv: &s.envv[0]}
	c.filter.len, c.filter.filter = uint16(len(filter)/8), unsafe.StringData(filter)
	c.notSent = prepared(plan.Seccomp, &fail{hint: "its listener did not take the descriptor"})
	c.notSet = prepared(plan.Caps, &fail{})
	for i := range s.rest {
		switch o := &s.rest[i]; o.Code {
		case plan.Caps:
			c.caps = newCapSets(o.N[0], o.N[1], o.N[2], o.N[3])
		case plan.Exec:
			for i, e := range plan.ExecErrors {
				c.notRun[i] = prepared(plan.Exec, execFailed(unix.Errno(e), o.S[0]))
			}
		}
	}
	if kills {
		c.watch()
	}
	return raw(c.run(), "")
}

// run makes the system calls; it returns only if the filter was refused. The filter may
// allow nothing but what the program itself needs, and Go's scheduler needs more (futex): it
// gets hold of a goroutine that has run for 10 ms, on a slow or busy machine this one, at
// the beginning of the next function that checks its stack. So neither this function nor
// what it calls does, and what is said of a failure is ready before.
//
//go:nosplit
func (c *confined) run() unix.Errno {
	fd, _, e := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, c.flags, uintptr(unsafe.Pointer(&c.filter)))
	if e != 0 {
		return e
	}
	if c.notify != nil {
		if e := c.notify.pass(fd); e != 0 {
			die(c.notSent, e)
		}
	}
	if c.caps != nil {
		if e := c.caps.set(); e != 0 {
			die(c.notSet, e)
		}
	}
	_, _, e = unix.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(c.exe)), uintptr(unsafe.Pointer(c.argv)), uintptr(unsafe.Pointer(c.envv)))
	i := 0
	for i < len(plan.ExecErrors)-1 && plan.ExecErrors[i] != uint64(e) {
		i++
	}
	die(c.notRun[i], e)
	return e
}

func prepared(c plan.Code, f *fail) []byte {
	m := plan.Failure{Code: c, Operand: cut(f.operand), Hint: cut(f.hint)}
	return m.Prepare()
}

// die says a failure that was prepared and ends the process.
//
//go:nosplit
func die(message []byte, e unix.Errno) {
	plan.SetErrno(message, uint64(e))
	unix.RawSyscall(unix.SYS_WRITE, uintptr(channel), uintptr(unsafe.Pointer(&message[0])), uintptr(len(message)))
	for {
		unix.RawSyscall(unix.SYS_EXIT_GROUP, plan.NotExecuted, 0, 0)
	}
}
