// Package sysmon lets the monitor thread of Go's runtime sleep.
//
// While anything runs, that thread looks every 20 µs whether a system call blocks or a
// goroutine has run for too long. A process that lives for some milliseconds pays for it
// with a hundred wakeups, a tenth and more of what it uses. The runtime has no setting
// for it; the kernel has one for how late a sleep may end.
package sysmon

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// slack is how late the thread may be, in nanoseconds: how long, at worst, goroutines
// wait for a thread while all that may run are in system calls that block.
const slack = "1000000"

// usual is the slack that the threads had before Calm, in nanoseconds. 0: it was not called.
var usual int

// Calm makes the thread slow. It is for processes that do one thing after the other and
// end. Where it may not (without CAP_SYS_NICE, without /proc) nothing changes. It imports
// nothing that initialises anything, for orlop-init. Called once, before anything else runs.
func Calm() {
	tid := thread()
	if tid == "" {
		return
	}
	usual, _ = unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	// In /proc/PID/task the file is missing (proc_pid_timerslack_ns(5)).
	fd, err := unix.Open("/proc/"+tid+"/timerslack_ns", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return
	}
	unix.Write(fd, []byte(slack))
	unix.Close(fd)
}

// Calmed is for a process whose first thread had the slack before the runtime began, and had
// before that as many nanoseconds: all threads have it from there. Calm is not called then.
func Calmed(before int) {
	usual = before
	unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(before), 0, 0, 0)
}

// Spawn runs fn on a thread with the slack that threads had before Calm: those that the
// monitor starts have its own, and so would the processes that they start (PR_SET_TIMERSLACK
// in prctl(2)).
func Spawn(fn func()) {
	if usual > 0 {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(usual), 0, 0, 0)
	}
	fn()
}

// thread returns the number of the monitor thread, as /proc has it: the runtime starts
// it before any other, and a directory of threads lists them in that order.
func thread() string {
	fd, err := unix.Open("/proc/self/task", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	var buf [192]byte // getdents64(2): 24 bytes and up to 8 for each
	n, err := unix.Getdents(fd, buf[:])
	unix.Close(fd)
	if err != nil {
		return ""
	}
	const reclen, name = 16, 19
	at := 0
	for range 3 { // ., .., the first thread
		if at+name > n {
			return ""
		}
		at += int(buf[at+reclen]) | int(buf[at+reclen+1])<<8
	}
	end := at + name
	for end < n && buf[end] != 0 {
		end++
	}
	if end >= n {
		return ""
	}
	return string(buf[at+name : end])
}
