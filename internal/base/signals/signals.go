// Package signals takes signals by a pipe, for commands that live for milliseconds.
//
// os/signal keeps a thread and a goroutine for signals, and each one that is taken costs four
// switches between threads: taking all that can be passed on to a container's process costs
// more than making it. Here the kernel calls a handler of ten instructions, which writes the signal's number
// into a pipe; taking one is a system call. The handler neither knows Go nor needs it: it
// runs on the stack for signals that each of the runtime's threads has, with everything
// blocked, and what it interrupts is restarted (SA_RESTART) or is told EINTR, as by the
// runtime's own handlers.
//
// Signals that the runtime needs for itself must not be taken: SIGURG, SIGPROF and those of
// faults. A process that is started does not inherit handlers (execve(2)).
package signals

import (
	"context"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Pipe is where signals come out. There is one in a process.
type Pipe struct {
	r  *os.File
	fd int // of r
}

// pipeFD is where the handler writes.
//
//lint:ignore U1000 it is read in assembler
var pipeFD int32

var open = sync.OnceValues(func() (*Pipe, error) {
	var p [2]int
	// Full, it drops what comes more: 64 KiB of signals that nobody has looked at.
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, fmt.Errorf("signals: make a pipe: %w", err)
	}
	pipeFD = int32(p[1])
	return &Pipe{os.NewFile(uintptr(p[0]), "signals"), p[0]}, nil
})

// Open returns the process's pipe, and makes it when it is first asked for.
func Open() (*Pipe, error) { return open() }

// sigaction is the kernel's, on both amd64 and arm64 (rt_sigaction(2)).
type sigaction struct {
	handler, flags, restorer uintptr
	mask                     uint64
}

const (
	saRestorer = 0x04000000
	saOnStack  = 0x08000000
	saRestart  = 0x10000000
)

//lint:ignore U1000 in assembler, which says where they are
var handlerAddr, restorerAddr uintptr

// Take has signals come out of the pipe instead of what they do by themselves. One that is
// ignored stays so.
func (p *Pipe) Take(list ...syscall.Signal) {
	for _, s := range list {
		var a sigaction
		if _, _, e := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(s), 0, uintptr(unsafe.Pointer(&a)), 8, 0, 0); e != 0 || a.handler == 1 { // SIG_IGN
			continue
		}
		a = sigaction{handler: handlerAddr, flags: saOnStack | saRestart | saRestorer, restorer: restorerAddr, mask: ^uint64(0)}
		unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(s), uintptr(unsafe.Pointer(&a)), 0, 8, 0, 0)
	}
}

// FD is for poll(2): it can be read when there is a signal.
func (p *Pipe) FD() int { return p.fd }

// Next returns a signal that has come, false if there is none.
func (p *Pipe) Next() (syscall.Signal, bool) {
	var b [1]byte
	n, _ := unix.Read(p.fd, b[:])
	return syscall.Signal(b[0]), n == 1
}

// Context returns a context that the first signal ends, until stop. What comes after stop is
// for Next again. It must not be used twice at a time.
func (p *Pipe) Context(parent context.Context) (ctx context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(parent)
	ended := make(chan struct{})
	p.r.SetReadDeadline(time.Time{})
	go func() {
		defer close(ended)
		var b [1]byte
		if n, _ := p.r.Read(b[:]); n == 1 {
			cancel(fmt.Errorf("%w by %s", context.Canceled, unix.SignalName(syscall.Signal(b[0]))))
		}
	}()
	return ctx, sync.OnceFunc(func() {
		p.r.SetReadDeadline(time.Unix(1, 0))
		<-ended
	})
}
