package child

import (
	"runtime"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A profile that hands calls to a listener needs somebody to send the listener's
// descriptor away once the filter is there. The thread that installs it cannot: the
// filter may hand the very call to the listener, which is nobody yet. Filters,
// credentials and capabilities belong to threads, so a second thread does it, which has
// no filter and is still who init was: it connects to the listener's socket before the
// filter is installed, and waits for the descriptor's number in memory. The first waits,
// in memory again, until that is done, and then executes the program, which ends the
// second.
type notifier struct {
	fd     atomic.Int64 // of the listener plus one, 0 as long as there is none
	sent   atomic.Int64 // 0 as long as it is not sent, 1, or 1 plus an errno
	socket int          // connected to whoever it is sent to, once send is ready
}

// listen connects to the listener's socket, which target names by a descriptor, and gets
// ready to send payload with a descriptor that is not there yet.
func (s *state) listen(target int, connected bool, path, payload string) *fail {
	runtime.GOMAXPROCS(3) // this thread, send, and watcher.wait in Go code at the same time
	n := &notifier{}
	ready := make(chan *fail)
	go n.send(s.proc, target, connected, path, payload, ready)
	if f := <-ready; f != nil {
		return f
	}
	s.notify = n
	return s.letGo()
}

// send is the second thread. From ready on it needs no memory, because nobody could
// collect garbage.
func (n *notifier) send(proc, target int, connected bool, path, payload string, ready chan<- *fail) {
	runtime.LockOSThread()
	if !connected {
		var f *fail
		if target, f = connect(proc, target, path); f != nil {
			ready <- f
			return
		}
	}
	n.socket = target
	data := []byte(payload)
	oob := unix.UnixRights(0)
	iov := unix.Iovec{Base: &data[0]}
	msg := unix.Msghdr{Iov: &iov, Iovlen: 1, Control: &oob[0]}
	msg.SetControllen(len(oob))
	pause := unix.Timespec{Nsec: 20000}
	ready <- nil
	for n.fd.Load() == 0 {
		unix.RawSyscall(unix.SYS_NANOSLEEP, uintptr(unsafe.Pointer(&pause)), 0, 0)
	}
	*(*int32)(unsafe.Pointer(&oob[unix.CmsgLen(0)])) = int32(n.fd.Load() - 1)
	for at := 0; at < len(data); {
		iov.Base = &data[at]
		iov.SetLen(len(data) - at)
		sent, _, e := unix.RawSyscall(unix.SYS_SENDMSG, uintptr(target), uintptr(unsafe.Pointer(&msg)), unix.MSG_NOSIGNAL)
		if e == unix.EINTR {
			continue
		}
		if e != 0 {
			n.sent.Store(1 + int64(e))
			return
		}
		at += int(sent)
		msg.Control = nil // the descriptor goes with the first piece
		msg.SetControllen(0)
	}
	unix.RawSyscall(unix.SYS_CLOSE, uintptr(target), 0, 0)
	n.sent.Store(1)
}

// pass hands the descriptor over and waits until it is sent, without a system call.
//
//go:nosplit
func (n *notifier) pass(fd uintptr) unix.Errno {
	n.fd.Store(int64(fd) + 1)
	for {
		if done := n.sent.Load(); done != 0 {
			return unix.Errno(done - 1)
		}
	}
}

// connect connects to the socket that is open as target. It is reached through the host's
// /proc, from a working directory that is this thread's alone.
func connect(proc, target int, path string) (int, *fail) {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return -1, failed(err, path)
	}
	if err := unix.Fchdir(proc); err != nil {
		return -1, failed(err, path)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, failed(err, path)
	}
	err = unix.Connect(fd, &unix.SockaddrUnix{Name: "self/fd/" + itoa(target)})
	if err == unix.ECONNREFUSED {
		return -1, &fail{unix.ECONNREFUSED, path, "nobody listens there"}
	}
	return fd, failed(err, path)
}
