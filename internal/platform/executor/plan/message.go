package plan

// NotExecuted is the status with which init ends where the program was not executed: its
// parent went away before it had opened the gate, or something failed, as a Failure says to
// who hears it.
const NotExecuted = 97

// MaxOutput is how much of what a hook writes is kept for its error: the end.
const MaxOutput = 1 << 10

// Closed is what a FIFO is full of while a process waits at it. One that has been opened
// then carries Go, and Fail where the program could not be executed.
const Closed = '.'

// The socket between the halves keeps the boundaries of messages (SOCK_SEQPACKET).
//
// The parent sends the length of the plan (8 bytes, little endian), then the plan in
// pieces of at most Chunk bytes, and later Go. The child sends messages whose first
// byte is one of the others below. That the program runs is told by the end of the
// stream: the child's socket closes at execve.
const (
	Chunk = 32 << 10

	MaxSize = 64 << 20 // of a plan
	MaxText = 4 << 10  // of the operand and the hint of a Failure

	MsgGo      = 'g' // parent: go on, open the gate
	MsgSync    = 's' // child: the parent's hooks can run
	MsgReady   = 'r' // child: waits at the gate
	MsgHook    = 'h' // child: a hook of the start runs
	MsgHooked  = 'd' // child: it has succeeded
	MsgWarn    = 'w' // child: text of a warning
	MsgConsole = 'c' // child: a terminal's master comes with it
	MsgFail    = 'f' // child: a Failure
	MsgClock   = 't' // child: what EncodeClock makes
	MsgCrossed = 'p' // child: the first word of a process that package tiny has cloned
	MsgCalls   = 'k' // child: what calls it makes after its gate, by whose numbers it tells of a failure
)

// EncodeClock returns the message of operation Clock: its number, and the time in
// nanoseconds since 1970.
func EncodeClock(n uint64, nanoseconds int64) (m [10]byte) {
	m[0], m[1] = MsgClock, byte(n)
	for i := range 8 {
		m[2+i] = byte(nanoseconds >> (8 * i))
	}
	return m
}

// DecodeClock reads the message, and returns false if it is not one.
func DecodeClock(m []byte) (n uint64, nanoseconds int64, ok bool) {
	if len(m) != 10 || m[0] != MsgClock {
		return 0, 0, false
	}
	for i := range 8 {
		nanoseconds |= int64(m[2+i]) << (8 * i)
	}
	return uint64(m[1]), nanoseconds, true
}

// SocketFD is the child's end of the socket. Descriptors from FirstFD on are those that
// the plan speaks of.
const (
	SocketFD = 3
	FirstFD  = 4
)

// Failure says why the child ended.
type Failure struct {
	Code    Code
	Operand string
	Errno   uint64
	Hint    string // what to know more, "" where there is nothing
}

// Encode returns the message of a failure.
func (f *Failure) Encode() []byte {
	p := Plan{Ops: []Op{{f.Code, N(f.Errno), []string{f.Operand, f.Hint}}}}
	return append([]byte{MsgFail}, p.Encode()...)
}

// Prepare returns the message with room for an errno, which SetErrno writes into it.
func (f *Failure) Prepare() []byte {
	wide := *f
	wide.Errno = 1 << 7 // takes two bytes
	return wide.Encode()
}

// SetErrno writes the errno into a prepared message. It needs neither memory nor stack.
//
//go:nosplit
func SetErrno(prepared []byte, errno uint64) {
	// After the kind of the message, the operation's code and how many numbers it has.
	prepared[3], prepared[4] = 0x80|byte(errno&0x7f), byte(errno>>7)
}

// DecodeFailure reads the message of a failure, and returns false if it is not one.
func DecodeFailure(b []byte) (Failure, bool) {
	if len(b) == 0 || b[0] != MsgFail {
		return Failure{}, false
	}
	r := Reader{B: b[1:]}
	o, ok := r.Next()
	if !ok || len(o.N) != 1 || len(o.S) != 2 {
		return Failure{}, false
	}
	return Failure{o.Code, o.S[0], o.N[0], o.S[1]}, true
}
