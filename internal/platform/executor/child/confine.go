package child

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/platform/executor/plan"
)

// confined is what happens from the seccomp filter on, ready to be done.
type confined struct {
	flags  uintptr
	notify *notifier // who gets the filter's descriptor; nil: nobody
	filter struct {  // struct sock_fprog
		len    uint16
		filter *byte
	}
	caps                     *capSets // where the filter needed CAP_SYS_ADMIN; nil: they are set already
	exe                      *byte
	argv                     **byte
	envv                     **byte
	atNotify, atCaps, atExec bool // how far it came
}

// confine installs the filter on this thread and executes the program. It returns only if
// the filter was refused.
func (s *state) confine(flags uintptr, filter string) *fail {
	c := &confined{flags: flags, notify: s.notify, exe: s.exe, argv: &s.argv[0], envv: &s.envv[0]}
	c.filter.len, c.filter.filter = uint16(len(filter)/8), unsafe.StringData(filter)
	var operand string
	for i := range s.rest {
		switch o := &s.rest[i]; o.Code {
		case plan.Caps:
			c.caps = newCapSets(o.N[0], o.N[1], o.N[2], o.N[3])
		case plan.Exec:
			operand = o.S[0]
		}
	}
	e := c.run()
	switch {
	case c.atExec:
		report(plan.Exec, execFailed(e, operand))
	case c.atCaps:
		report(plan.Caps, raw(e, ""))
	case c.atNotify:
		return &fail{e, "", "its listener did not take the descriptor"}
	default:
		return raw(e, "")
	}
	exit(1)
	return nil
}

// run makes the system calls. The filter may allow nothing but what the program itself
// needs, and Go's scheduler needs more (futex): it gets hold of a goroutine that has run
// for 10 ms, on a slow or busy machine this one, at the beginning of the next function that
// checks its stack. So neither this function nor what it calls does.
//
//go:nosplit
func (c *confined) run() unix.Errno {
	fd, _, e := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, c.flags, uintptr(unsafe.Pointer(&c.filter)))
	if e != 0 {
		return e
	}
	if c.notify != nil {
		c.atNotify = true
		if e := c.notify.pass(fd); e != 0 {
			return e
		}
	}
	if c.caps != nil {
		c.atCaps = true
		if e := c.caps.set(); e != 0 {
			return e
		}
	}
	c.atExec = true
	_, _, e = unix.RawSyscall(unix.SYS_EXECVE, uintptr(unsafe.Pointer(c.exe)), uintptr(unsafe.Pointer(c.argv)), uintptr(unsafe.Pointer(c.envv)))
	return e
}
