package namespace

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// OnThread runs fn on a thread that ends with it, so that fn may do to the thread what
// cannot be undone, like entering a namespace. It is never the process's first thread:
// that one cannot end, and /proc/self is its view of the world, for everybody.
func OnThread(fn func() error) error {
	return onThread(func(func()) error { return fn() })
}

// onThread is OnThread; fn may call leave to let the thread live on.
func onThread(fn func(leave func()) error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // a thread ends with the goroutine that it is locked to
		if unix.Gettid() == unix.Getpid() {
			// While this goroutine holds the first thread, another cannot get it.
			done <- onThread(fn)
			runtime.UnlockOSThread()
			return
		}
		done <- fn(runtime.UnlockOSThread)
	}()
	return <-done
}
