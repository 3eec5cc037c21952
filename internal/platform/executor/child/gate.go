package child

import (
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/platform/executor/plan"
)

// gate tells the parent that all is ready and waits for its word.
func (s *state) gate() *fail {
	if f := s.prepare(); f != nil {
		return f
	}
	s.ready()
	return nil
}

// ready says so, and ends the process if the parent lets go of it.
func (s *state) ready() {
	send([]byte{plan.MsgReady})
	s.await()
}

// await waits for the parent's word to go on.
func (s *state) await() {
	var b [1]byte
	if n, err := recv(b[:]); err != nil || n != 1 || b[0] != plan.MsgGo {
		exit(plan.NotExecuted)
	}
}

// fifo is a gate that outlives the parent. The process makes the pipe as small as it can
// be, a page, fills it, and then writes one byte more: that waits until somebody reads,
// and the kernel gives what is read to one reader only. From then on what would go
// through the socket goes through the FIFO. Its descriptor is for both ways, so there is
// always a reader, and a writer: whoever comes and goes without reading changes nothing.
func (s *state) fifo(fd int) *fail {
	if f := s.prepare(); f != nil {
		return f
	}
	size, _, e := unix.RawSyscall(unix.SYS_FCNTL, uintptr(fd), unix.F_SETPIPE_SZ, 1)
	if e != 0 {
		return raw(e, "pipe")
	}
	fill := make([]byte, size)
	for i := range fill {
		fill[i] = plan.Closed
	}
	if n, _, e := unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&fill[0])), size); e != 0 || n != size {
		return &fail{e, "pipe", "somebody else has written into it"}
	}
	s.ready()
	unix.RawSyscall(unix.SYS_CLOSE, uintptr(channel), 0, 0)
	channel = fd
	fill[0] = plan.MsgGo
	for {
		if _, _, e = unix.RawSyscall(unix.SYS_WRITE, uintptr(fd), uintptr(unsafe.Pointer(&fill[0])), 1); e == 0 {
			break
		}
		if e != unix.EINTR {
			exit(plan.NotExecuted)
		}
	}
	// Whoever opened it may die and read no more. What is to be said must not wait.
	unix.RawSyscall(unix.SYS_FCNTL, uintptr(fd), unix.F_SETFL, unix.O_RDWR|unix.O_NONBLOCK)
	return nil
}

// files makes the descriptors the program's, from 3 on, after moving out of their way
// what is still needed. The plan gives them in order and the gate after them, so each
// comes from a higher number than it goes to.
func (s *state) files(n []uint64) *fail {
	for _, fd := range [...]*int{&channel, &s.proc, &s.root} {
		if *fd < 0 || *fd >= plan.SocketFD+len(n) {
			continue
		}
		high, err := unix.FcntlInt(uintptr(*fd), unix.F_DUPFD_CLOEXEC, plan.SocketFD+len(n))
		if err != nil {
			return failed(err, "move a descriptor")
		}
		*fd = high
	}
	for i := range n {
		if err := unix.Dup3(int(n[i]), plan.SocketFD+i, 0); err != nil {
			return failed(err, itoa(plan.SocketFD+i))
		}
	}
	s.extra = len(n)
	return nil
}
