package executor

import (
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ended says in words how a process ended. unix.Siginfo keeps the fields of waitid(2)
// as bytes: pid, uid and status follow the three numbers at its start.
func ended(si *unix.Siginfo) string {
	type child struct {
		signo, errno, code int32
		_                  int32
		pid                int32
		uid                uint32
		status             int32
	}
	c := (*child)(unsafe.Pointer(si))
	const cldExited = 1
	if c.code == cldExited {
		return "ended with status " + strconv.Itoa(int(c.status))
	}
	return "was killed by " + unix.SignalName(unix.Signal(c.status))
}
