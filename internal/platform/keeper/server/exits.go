package server

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/keeper"
)

// watchExit notices the end of the process. A child is reaped then; another's child
// tells its exit code only once its parent has reaped it, which is a hang-up
// (pidfd_open(2), pidfs in Linux 6.15).
func (c *container) watchExit() error {
	events := uint32(unix.EPOLLIN)
	return c.s.poll.watch(int(c.pidfd.Fd()), events, func(ev uint32) {
		if !c.child && ev&unix.EPOLLHUP == 0 && exitInfoSupported() {
			c.mu.Lock()
			pidfd := c.pidfd
			c.mu.Unlock()
			if pidfd != nil && c.s.poll.watch(int(pidfd.Fd()), 0, func(uint32) { c.onExit() }) == nil {
				return
			}
		}
		c.onExit()
	})
}

func (c *container) onExit() {
	c.mu.Lock()
	if c.pidfd == nil || c.rec.Status.Exit != nil {
		c.mu.Unlock()
		return
	}
	pidfd, child, gate := c.pidfd, c.child, c.gate
	c.mu.Unlock()
	if gate != nil {
		return // Start finds out, and reaps
	}
	var x keeper.Exit
	if child {
		var err error
		if x, err = reap(pidfd, false); err != nil {
			c.warn("a container's end could not be read", "error", err)
			x = keeper.Exit{Code: 255, At: time.Now()}
		}
	} else {
		x = exitInfo(pidfd)
	}
	c.finish(x)
}

// finish records the end once the last output is in the log.
func (c *container) finish(x keeper.Exit) {
	if x.Signal == int(unix.SIGKILL) || !x.Known {
		if n, err := c.group.OOMKills(); err == nil && n > 0 {
			x.OOMKilled = true
		}
	}
	c.out.finish()
	c.mu.Lock()
	c.ended(x)
	id := c.rec.Status.ID
	c.mu.Unlock()
	c.s.unhold(id)
	c.s.publish(keeper.Event{Type: "exited", ID: id, Exit: &x})
}

// ended is called with mu held.
func (c *container) ended(x keeper.Exit) {
	if c.rec.Status.Exit != nil {
		return
	}
	c.rec.Status.State, c.rec.Status.Exit, c.unknown = keeper.Stopped, &x, false
	if err := c.save(); err != nil {
		c.warn("a container's end could not be recorded", "error", err)
	}
	if c.pidfd != nil {
		c.s.poll.forget(int(c.pidfd.Fd()))
		c.pidfd.Close()
		c.pidfd = nil
	}
	close(c.exited)
}

// cldExited is CLD_EXITED of sigaction(2); the other codes of an end are signals.
const cldExited = 1

// reap waits for our child and says how it ended.
func reap(pidfd *os.File, wait bool) (keeper.Exit, error) {
	flags := unix.WEXITED
	if !wait {
		flags |= unix.WNOHANG
	}
	var si unix.Siginfo
	for {
		err := unix.Waitid(unix.P_PIDFD, int(pidfd.Fd()), &si, flags, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return keeper.Exit{}, fmt.Errorf("waitid: %w", err)
		}
		break
	}
	if si.Signo == 0 {
		return keeper.Exit{}, errs.New(errs.FailedPrecondition, "the process has not ended")
	}
	// siginfo_t of waitid(2): signo, errno, code, then pid, uid and status.
	c := (*struct {
		signo, errno, code, _, pid int32
		uid                        uint32
		status                     int32
	})(unsafe.Pointer(&si))
	x := keeper.Exit{Code: int(c.status), Known: true, At: time.Now()}
	if c.code != cldExited {
		x.Signal, x.Code = int(c.status), 128+int(c.status)
	}
	return x, nil
}

// pidfdInfo is struct pidfd_info of linux/pidfd.h, in its first published size.
type pidfdInfo struct {
	mask, cgroupID         uint64
	pid, tgid, ppid        uint32
	ruid, rgid, euid, egid uint32
	suid, sgid, fsuid      uint32
	fsgid                  uint32
	exitCode               int32
}

const (
	pidfdGetInfo  = 0xC040FF0B // _IOWR(0xFF, 11, struct pidfd_info)
	pidfdInfoExit = 1 << 3
)

// exitInfo reads the exit code that the kernel keeps for whoever holds a pidfd.
func exitInfo(pidfd *os.File) keeper.Exit {
	x := keeper.Exit{Code: 255, At: time.Now()}
	info := pidfdInfo{mask: pidfdInfoExit}
	_, _, errno := syscall.Syscall(unix.SYS_IOCTL, pidfd.Fd(), pidfdGetInfo, uintptr(unsafe.Pointer(&info)))
	if errno != 0 || info.mask&pidfdInfoExit == 0 {
		return x
	}
	ws := syscall.WaitStatus(info.exitCode)
	x.Known = true
	if x.Code = ws.ExitStatus(); ws.Signaled() {
		x.Signal = int(ws.Signal())
		x.Code = 128 + x.Signal
	}
	return x
}

// exitInfoSupported asks the kernel, by a pidfd of this very process, whether it
// knows PIDFD_INFO_EXIT: one that does not know the request fails it.
var exitInfoSupported = func() func() bool {
	known := -1
	return func() bool {
		if known < 0 {
			known = 0
			if fd, err := unix.PidfdOpen(os.Getpid(), 0); err == nil {
				info := pidfdInfo{mask: pidfdInfoExit}
				_, _, errno := syscall.Syscall(unix.SYS_IOCTL, uintptr(fd), pidfdGetInfo, uintptr(unsafe.Pointer(&info)))
				unix.Close(fd)
				if errno == 0 && kernelHolds() {
					known = 1
				}
			}
		}
		return known == 1
	}
}()

// kernelHolds tells of Linux 6.15, which keeps exit codes and signals the hang-up. A
// kernel before it ignores the unknown bit, so the request alone does not tell.
func kernelHolds() bool {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return false
	}
	var major, minor int
	fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor)
	return major > 6 || major == 6 && minor >= 15
}

// startTime returns when the process started, in clock ticks since boot (proc(5)).
func startTime(pid int) (uint64, error) {
	raw, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, err
	}
	// The name, in parentheses, may hold anything; fields are counted behind it.
	fields := bytes.Fields(raw[bytes.LastIndexByte(raw, ')')+1:])
	if len(fields) < 20 {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	return strconv.ParseUint(string(fields[19]), 10, 64)
}
