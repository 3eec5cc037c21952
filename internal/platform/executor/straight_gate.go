package executor

import (
	"bytes"
	"math/bits"
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
	s.waits = true
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
func (s *straight) hold(fd uint64, rest []plan.Op) bool {
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
	intent := encodeCalls(p.Len()+1, rest)
	p.Try(unix.SYS_WRITE, s.channel, p.Data(intent), uint64(len(intent)))
	s.waits = true
	return true
}

// encodeCalls tells of the operations after a gate: the index of the first call, and what each
// of them is that note is told of.
func encodeCalls(first int, rest []plan.Op) []byte {
	list := plan.Plan{Ops: []plan.Op{{Code: plan.Gate, N: plan.N(uint64(first))}}}
	for _, o := range rest {
		calls, operand := 1, ""
		switch o.Code {
		case plan.Caps:
			calls += bits.OnesCount64(o.N[3])
		case plan.Exec:
			operand = o.S[0]
			if len(operand) > 1<<10 { // it has to fit into the FIFO
				operand = operand[:1<<10] + "…"
			}
		}
		for range calls {
			list.Add(o.Code, nil, operand)
		}
	}
	b := list.Encode()
	return append([]byte{plan.MsgCalls, byte(len(b)), byte(len(b) >> 8)}, b...)
}

// decodeCalls reads that, and returns what comes after it.
func decodeCalls(b []byte) (after map[int]plan.Failure, rest []byte, ok bool) {
	if len(b) < 3 || b[0] != plan.MsgCalls {
		return nil, nil, false
	}
	n := int(b[1]) | int(b[2])<<8
	if len(b) < 3+n {
		return nil, nil, false
	}
	r := plan.Reader{B: b[3 : 3+n]}
	head, ok := r.Next()
	if !ok || head.Code != plan.Gate || len(head.N) != 1 {
		return nil, nil, false
	}
	after = map[int]plan.Failure{}
	for i := int(head.N[0]); ; i++ {
		o, ok := r.Next()
		if !ok {
			return after, b[3+n:], !r.Bad
		}
		f := plan.Failure{Code: o.Code}
		if len(o.S) > 0 {
			f.Operand = o.S[0]
		}
		after[i] = f
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

// note says what the next call is, if it comes after the gate: then it is the program that
// has to tell of it.
func (s *straight) note(f plan.Failure) {
	if s.waits {
		s.after[s.program.Len()] = f
	}
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
func (s *straight) passed(said []byte) error {
	if len(said) == 0 {
		return nil
	}
	return failedCall(s.after, said)
}

// failedCall is the error of a call that failed after the gate.
func failedCall(after map[int]plan.Failure, said []byte) error {
	call, errno, ok := tiny.Failed(said)
	f, known := after[call]
	if !ok || !known {
		return errs.New(errs.Internal, "the program that starts the process sent a message that is not known: %q", said)
	}
	f.Errno = errno
	if f.Code == plan.Exec {
		f.Hint = plan.ExecHint(errno)
	}
	return failed(f)
}
