package child

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/platform/executor/plan"
)

// channel is the socket to the parent, and the gate's FIFO once that has been passed.
var channel = plan.SocketFD

// receive reads the whole plan and takes it apart. Nothing is parsed later: after the
// seccomp filter is installed, nothing may need memory.
func receive() ([]plan.Op, bool) {
	var head [8]byte
	if n, err := recv(head[:]); err != nil || n != len(head) {
		return nil, false
	}
	var size uint64
	for i, b := range head {
		size |= uint64(b) << (8 * i)
	}
	if size > plan.MaxSize {
		return nil, false
	}
	buf := make([]byte, size)
	for at := 0; at < len(buf); {
		n, err := recv(buf[at:])
		if err != nil || n <= 0 {
			return nil, false
		}
		at += n
	}
	r := plan.Reader{B: buf}
	ops := make([]plan.Op, 0, 128)
	for {
		o, ok := r.Next()
		if !ok {
			return ops, !r.Bad
		}
		ops = append(ops, o)
	}
}

func recv(b []byte) (int, error) {
	for {
		n, err := unix.Read(channel, b)
		if err != unix.EINTR {
			return n, err
		}
	}
}

// send uses write(2), which seccomp profiles allow if they allow anything. A parent that
// is gone shows as EPIPE at the next read; SIGPIPE is handled by Go.
func send(b []byte) {
	unix.RawSyscall(unix.SYS_WRITE, uintptr(channel), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
}

func cut(s string) string {
	if len(s) > plan.MaxText {
		return s[:plan.MaxText] + "…"
	}
	return s
}

func warn(text string) { send(append([]byte{plan.MsgWarn}, text...)) }

// report tells the parent why the child ends. What an image or a specification puts into
// the words is cut, so that they always fit into one message.
func report(c plan.Code, f *fail) {
	m := plan.Failure{Code: c, Operand: cut(f.operand), Errno: uint64(f.errno), Hint: cut(f.hint)}
	send(m.Encode())
}
