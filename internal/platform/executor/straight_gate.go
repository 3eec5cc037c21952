package executor

import (
	"bytes"
	"math/bits"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/executor/guards"
	"github.com/orlop-io/orlop/internal/platform/executor/plan"
	"github.com/orlop-io/orlop/internal/platform/executor/tiny"
)

// The gate: see gate.go and child/gate.go.

// clean puts back what a program inherits: see child/exec.go.
func (s *straight) clean() {
	p := &s.program
	// What the caller blocks or ignores is nothing to the program.
	p.Call(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, p.Words(0), 0, 8)
	var dfl uint64
	for _, sig := range ignoredSignals() {
		if dfl == 0 {
			dfl = p.Words(0, 0, 0, 0) // struct sigaction of the kernel, SIG_DFL
		}
		p.Call(unix.SYS_RT_SIGACTION, sig, dfl, 0, 8)
	}
	if guards.CloseOnExec.On() {
		p.Call(unix.SYS_CLOSE_RANGE, s.channel, all32, unix.CLOSE_RANGE_CLOEXEC)
	}
}

// wait adds the gate: see child/gate.go.
func (s *straight) wait() {
	s.clean()
	s.ready()
	s.after = callsOf(s.program.Len(), s.rest)
}

// ready tells that all is ready, and what has been found, and waits for the parent's word.
func (s *straight) ready() {
	p := &s.program
	ready := []uint64{p.Data([]byte{plan.MsgReady}), 1}
	p.Call(unix.SYS_WRITEV, s.channel, p.Words(append(ready, s.told...)...), uint64(1+len(s.told)/2))
	lost := tiny.End(plan.NotExecuted)
	p.On(tiny.Results{Error: lost, Zero: lost}, unix.SYS_READ, s.channel, s.gate, maxWord)
}

// hold adds a gate that outlives the parent: see child/gate.go. From then on the FIFO is in the
// place of the socket. Whoever opens it has never seen the program, so that begins with what it is going to do.
func (s *straight) hold(fd uint64) bool {
	size, err := unix.FcntlInt(s.fifo.Fd(), unix.F_SETPIPE_SZ, 1)
	if err != nil {
		return false
	}
	s.clean()
	p := &s.program
	p.Call(unix.SYS_WRITE, fd, p.Data(bytes.Repeat([]byte{plan.Closed}, size)), uint64(size))
	s.ready()
	p.Call(unix.SYS_DUP3, fd, s.channel, unix.O_CLOEXEC)
	p.On(tiny.Results{Error: tiny.End(plan.NotExecuted)}, unix.SYS_WRITE, s.channel, p.Data([]byte{plan.MsgGo}), 1)
	// Whoever opened it may die and read no more. What is to be said must not wait.
	p.Try(unix.SYS_FCNTL, s.channel, unix.F_SETFL, unix.O_RDWR|unix.O_NONBLOCK)
	intent := callsOf(p.Len()+1, s.rest).encode()
	p.Try(unix.SYS_WRITE, s.channel, p.Data(intent), uint64(len(intent)))
	return true
}

// calls are those after a gate, of which the program tells by number if they fail.
type calls struct {
	first int // its index
	list  []plan.Failure
}

// callsOf are the calls of operations after a gate, as add makes them.
func callsOf(first int, ops []plan.Op) calls {
	c := calls{first: first}
	for _, o := range ops {
		n, f := 1, plan.Failure{Code: o.Code}
		switch o.Code {
		case plan.Caps:
			n += bits.OnesCount64(o.N[3])
		case plan.Exec:
			f.Operand = o.S[0]
		}
		c.list = append(c.list, slices.Repeat([]plan.Failure{f}, n)...)
	}
	return c
}

// encode returns the message of the calls.
func (c calls) encode() []byte {
	var list plan.Plan
	list.Add(plan.Gate, plan.N(uint64(c.first)))
	for _, f := range c.list {
		operand := f.Operand
		if len(operand) > 1<<10 { // it has to fit into the FIFO
			operand = operand[:1<<10] + "…"
		}
		list.Add(f.Code, nil, operand)
	}
	b := list.Encode()
	return append([]byte{plan.MsgCalls, byte(len(b)), byte(len(b) >> 8)}, b...)
}

// decodeCalls reads that, and returns what comes after it.
func decodeCalls(b []byte) (c calls, rest []byte, ok bool) {
	if len(b) < 3 || b[0] != plan.MsgCalls {
		return c, nil, false
	}
	n := int(b[1]) | int(b[2])<<8
	if len(b) < 3+n {
		return c, nil, false
	}
	r := plan.Reader{B: b[3 : 3+n]}
	head, ok := r.Next()
	if !ok || head.Code != plan.Gate || len(head.N) != 1 {
		return c, nil, false
	}
	c.first = int(head.N[0])
	for {
		o, ok := r.Next()
		if !ok {
			return c, b[3+n:], !r.Bad
		}
		f := plan.Failure{Code: o.Code}
		if len(o.S) > 0 {
			f.Operand = o.S[0]
		}
		c.list = append(c.list, f)
	}
}

// ignoredSignals are the signals that this process ignores, and so what it executes.
func ignoredSignals() (list []uint64) {
	for sig := uint64(1); sig <= 64; sig++ {
		var old [4]uintptr // the handler is first
		const ignore = 1
		if _, _, e := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), 0, uintptr(unsafe.Pointer(&old)), 8, 0, 0); e == 0 && old[0] == ignore {
			list = append(list, sig)
		}
	}
	return list
}

// word is what opens the gate.
func (s *straight) word() []byte {
	word := append(make([]byte, 0, maxWord), plan.MsgGo)
	word = append(append(word, s.exe...), 0)
	if s.users {
		word = append(word, make([]byte, homeAt-len(word))...)
		word = append(append(append(word, "HOME="...), s.home...), 0)
	}
	return word
}

// passed reads what the program says after the gate: nothing, or of a failure.
func (c calls) passed(said []byte) error {
	if len(said) == 0 {
		return nil
	}
	call, errno, ok := tiny.Failed(said)
	if call -= c.first; !ok || call < 0 || call >= len(c.list) {
		return errs.New(errs.Internal, "the program that starts the process sent a message that is not known: %q", said)
	}
	f := c.list[call]
	f.Errno = errno
	if f.Code == plan.Exec {
		f.Hint = plan.ExecHint(errno)
	}
	return failed(f)
}
