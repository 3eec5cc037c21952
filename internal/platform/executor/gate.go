package executor

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/executor/plan"
)

// hold gives the child the FIFO that is its gate. The child needs a descriptor of its own
// for both ways, and may not be able to open one when it is the user.
func (b *builder) hold(gate *os.File) error {
	if gate == nil {
		return nil
	}
	path := fmt.Sprintf("/proc/self/fd/%d", gate.Fd())
	var st unix.Stat_t
	if err := unix.Fstat(int(gate.Fd()), &st); err != nil {
		return kinded(fmt.Errorf("gate: %w", err), err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFIFO {
		return errs.New(errs.Invalid, "gate: %s is not a FIFO", gate.Name())
	}
	// A FIFO has readers where a process waits.
	if fd, err := unix.Open(path, unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0); err == nil {
		unix.Close(fd)
		return errs.New(errs.InUse, "gate: another process waits at %s", gate.Name())
	} else if err != unix.ENXIO {
		return kinded(fmt.Errorf("gate: open %s: %w", gate.Name(), err), err)
	}
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return kinded(fmt.Errorf("gate: open %s: %w", gate.Name(), err), err)
	}
	b.gate = os.NewFile(uintptr(fd), "gate")
	b.opened = append(b.opened, b.gate)
	return nil
}

// waitAtGate puts the gate into the plan.
func (b *builder) waitAtGate() {
	if b.gate == nil {
		b.plan.Add(plan.Gate, nil)
		return
	}
	b.plan.Add(plan.Gate, plan.N(b.give(b.gate)))
}

// extraFiles hands the program its further descriptors.
func (b *builder) extraFiles() error {
	if len(b.extra) == 0 {
		return nil
	}
	var fds []uint64
	for i, f := range b.extra {
		if f == nil {
			return errs.New(errs.Invalid, "extra file %d is nil", i)
		}
		fds = append(fds, b.give(f))
	}
	b.plan.Add(plan.Files, fds)
	return nil
}

// OpenGate opens the gate of a process that Create made with Config.Gate: path is the
// FIFO. It returns nil once the program was executed, or why it could not be, with the
// kinds of Process.Start; the process has ended then. Nobody waiting there, not even
// somebody who is being started by another, is errs.FailedPrecondition. A gate opens
// once, and for one caller. If ctx ends while the program is being started, that goes on.
func OpenGate(ctx context.Context, path string) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return kinded(fmt.Errorf("open gate %s: %w", path, err), err)
	}
	f := os.NewFile(uintptr(fd), path) // pollable, because it does not block
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return kinded(fmt.Errorf("open gate %s: %w", path, err), err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFIFO {
		return errs.New(errs.Invalid, "open gate %s: it is not a FIFO", path)
	}
	// Openers exclude each other, so that none takes what the process says to another.
	if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err == unix.EWOULDBLOCK {
		return errs.New(errs.FailedPrecondition, "open gate %s: it is being opened by another", path)
	} else if err != nil {
		return kinded(fmt.Errorf("open gate %s: lock: %w", path, err), err)
	}
	// The process has filled the pipe and waits until there is room in it. One read takes
	// everything, so one caller gets it.
	buf := make([]byte, 1<<20) // more than a page of any machine
	n, err := readNow(f, buf)
	switch {
	case err == unix.EAGAIN || n > 0 && buf[0] != plan.Closed:
		return errs.New(errs.FailedPrecondition, "open gate %s: it has been opened already", path)
	case err != nil:
		return kinded(fmt.Errorf("open gate %s: %w", path, err), err)
	case n == 0:
		return errs.New(errs.FailedPrecondition, "open gate %s: nobody waits there: the process has been started or has ended", path)
	}
	stop := context.AfterFunc(ctx, func() { f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	// What it says ends when its descriptor closes: by execve, or by its death.
	said, err := io.ReadAll(io.LimitReader(f, int64(len(buf))))
	if err != nil {
		return fmt.Errorf("open gate %s: %w", path, contextual(ctx, err))
	}
	if len(said) == 0 || said[0] != plan.MsgGo {
		return errs.New(errs.FailedPrecondition, "open gate %s: the process ended before it was started", path)
	}
	said = said[1:]
	if after, rest, ok := decodeCalls(said); ok {
		err = after.passed(rest)
	} else {
		err = passed(said)
	}
	if err != nil {
		return fmt.Errorf("open gate %s: %w", path, err)
	}
	return nil
}

// passed reads what a process says on its way from the gate to execve: of the hooks that
// it runs, and of a failure.
func passed(said []byte) error {
	running := false
	for len(said) > 0 && said[0] != plan.MsgFail {
		switch said[0] {
		case plan.MsgHook:
			running = true
		case plan.MsgHooked:
			running = false
		default:
			return failure(said)
		}
		said = said[1:]
	}
	if len(said) > 0 {
		return failure(said)
	}
	if running {
		return errs.New(errs.FailedPrecondition, "the process ended while its startContainer hooks ran")
	}
	return nil
}

// readNow reads what is there, and does not wait.
func readNow(f *os.File, b []byte) (n int, err error) {
	rc, err := f.SyscallConn()
	if err != nil {
		return 0, err
	}
	e := rc.Read(func(fd uintptr) bool {
		for {
			if n, err = unix.Read(int(fd), b); err != unix.EINTR {
				return true
			}
		}
	})
	if e != nil {
		return 0, e
	}
	return n, err
}
