package child

import (
	"runtime"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A filter may end the thread that makes a call and not the process (SCMP_ACT_KILL_THREAD,
// SCMP_ACT_KILL). If the call is execve, or what comes between the filter and it, Go's
// other threads would be what stays: a process that does nothing and never ends. So a
// second thread waits for the end of the first, of which the kernel tells by a futex
// (set_tid_address(2)), and ends the rest, as what is killed by SIGSYS ends. If the program
// is executed, that is the end of the second.
type watcher struct {
	thread atomic.Uint32 // the first one's number, 0 when it has ended
}

// watch is called by the thread that takes the filter, when all memory that is needed has
// been taken: nobody could collect garbage from then on.
func (c *confined) watch() {
	if c.notify == nil { // its thread cannot be stopped to change the number, which suffices
		runtime.GOMAXPROCS(2)
	}
	w := &watcher{}
	w.thread.Store(uint32(unix.Gettid()))
	ready := make(chan struct{})
	go w.wait(ready)
	<-ready
	unix.RawSyscall(unix.SYS_SET_TID_ADDRESS, uintptr(unsafe.Pointer(&w.thread)), 0, 0)
}

func (w *watcher) wait(ready chan<- struct{}) {
	const futexWait = 0
	runtime.LockOSThread()
	first := w.thread.Load()
	close(ready)
	for w.thread.Load() == first {
		unix.RawSyscall6(unix.SYS_FUTEX, uintptr(unsafe.Pointer(&w.thread)), futexWait, uintptr(first), 0, 0, 0)
	}
	exit(128 + int(unix.SIGSYS))
}
