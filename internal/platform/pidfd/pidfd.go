// Package pidfd asks the kernel how a process ended, by a descriptor of it
// (pidfd_open(2)): of a child by reaping it, of anybody else's by what the kernel
// keeps for those who hold a pidfd (PIDFD_INFO_EXIT, Linux 6.15), or by the zombie in
// /proc as long as nobody has reaped it.
package pidfd

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/rawfile"
)

// End is how a process ended.
type End struct {
	Code   int // 128+Signal for one that a signal ended, as shells say it
	Signal int
}

func endOf(ws syscall.WaitStatus) End {
	if ws.Signaled() {
		return End{Code: 128 + int(ws.Signal()), Signal: int(ws.Signal())}
	}
	return End{Code: ws.ExitStatus()}
}

// ErrRuns is the answer for a process that has not ended.
var ErrRuns = errors.New("the process has not ended")

// cldExited is CLD_EXITED of sigaction(2); the other codes of an end are signals.
const cldExited = 1

// Reap takes the end of our child, waiting for it if wait is set. ErrRuns: it has not
// ended. unix.ECHILD: it is not our child, or somebody has reaped it.
func Reap(f *os.File, wait bool) (End, error) {
	flags := unix.WEXITED | unix.WALL
	if !wait {
		flags |= unix.WNOHANG
	}
	var si unix.Siginfo
	for {
		err := unix.Waitid(unix.P_PIDFD, int(f.Fd()), &si, flags, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return End{}, fmt.Errorf("waitid: %w", err)
		}
		break
	}
	if si.Signo == 0 {
		return End{}, ErrRuns
	}
	// siginfo_t of waitid(2): signo, errno, code, then pid, uid and status.
	c := (*struct {
		signo, errno, code, _, pid int32
		uid                        uint32
		status                     int32
	})(unsafe.Pointer(&si))
	if c.code != cldExited {
		return End{Code: 128 + int(c.status), Signal: int(c.status)}, nil
	}
	return End{Code: int(c.status)}, nil
}

// info is struct pidfd_info of linux/pidfd.h, in its first published size.
type info struct {
	mask, cgroupID         uint64
	pid, tgid, ppid        uint32
	ruid, rgid, euid, egid uint32
	suid, sgid, fsuid      uint32
	fsgid                  uint32
	exitCode               int32
}

const (
	getInfo  = 0xC040FF0B // _IOWR(0xFF, 11, struct pidfd_info)
	infoExit = 1 << 3
)

// Kept returns the end that the kernel keeps of a process that has been reaped, whoever
// its parent was. It is false before that, and on kernels that keep nothing.
func Kept(f *os.File) (End, bool) {
	i := info{mask: infoExit}
	_, _, errno := syscall.Syscall(unix.SYS_IOCTL, f.Fd(), getInfo, uintptr(unsafe.Pointer(&i)))
	if errno != 0 || i.mask&infoExit == 0 {
		return End{}, false
	}
	return endOf(syscall.WaitStatus(i.exitCode)), true
}

// Poll returns what poll(2) says of the descriptor now: POLLIN once the process has
// ended, with POLLHUP once it has been reaped (Linux 6.9).
func Poll(f *os.File) int16 {
	p := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(p, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return unix.POLLNVAL
		}
		return p[0].Revents
	}
}

// Look returns the end of a process that is not our child, or ErrRuns. known is false
// where it has ended and nothing tells how, and again where that may still change: its
// parent has yet to reap it, which Poll will show as POLLHUP.
func Look(f *os.File, pid int, started uint64) (end End, known, again bool, err error) {
	if Poll(f)&(unix.POLLIN|unix.POLLHUP) == 0 {
		return End{}, false, true, ErrRuns
	}
	if end, ok := Kept(f); ok {
		return end, true, false, nil
	}
	end, known, there := zombie(pid, started)
	if !there { // reaped, perhaps a moment ago
		end, known = Kept(f)
	}
	return end, known, there && !known, nil
}

// zombie reads the status of a process that has ended and was not reaped, from
// /proc/PID/stat (proc(5), field 52). The kernel shows zero to those who may not trace it.
func zombie(pid int, started uint64) (end End, known, there bool) {
	fields, err := stat(pid)
	if err != nil || len(fields) < 50 || string(fields[19]) != strconv.FormatUint(started, 10) {
		return End{}, false, false
	}
	code, err := strconv.Atoi(string(fields[49]))
	if err != nil || string(fields[0]) != "Z" || code == 0 && !mayTrace() {
		return End{}, false, true
	}
	return endOf(syscall.WaitStatus(code)), true, true
}

// mayTrace tells whether this process has CAP_SYS_PTRACE.
var mayTrace = sync.OnceValue(func() bool {
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	return unix.Capget(&head, &data[0]) == nil && data[0].Effective&(1<<unix.CAP_SYS_PTRACE) != 0
})

// StartTime returns when the process started, in clock ticks since boot: with its
// number it names a process for as long as the machine runs.
func StartTime(pid int) (uint64, error) {
	fields, err := stat(pid)
	if err != nil {
		return 0, err
	}
	if len(fields) < 20 {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	return strconv.ParseUint(string(fields[19]), 10, 64)
}

// stat returns the fields of /proc/PID/stat from the third on. The second, the name in
// parentheses, may hold anything.
func stat(pid int) ([][]byte, error) {
	raw, err := rawfile.Read("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return nil, err
	}
	return bytes.Fields(raw[bytes.LastIndexByte(raw, ')')+1:]), nil
}

// Open opens the process that has that number and started at that time, or returns
// unix.ESRCH.
func Open(pid int, started uint64) (*os.File, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, err
	}
	if at, err := StartTime(pid); err != nil || at != started {
		unix.Close(fd)
		return nil, unix.ESRCH
	}
	return os.NewFile(uintptr(fd), "pidfd"), nil
}

// Signal sends a signal. A process that has ended is no error.
func Signal(f *os.File, sig unix.Signal) error {
	if err := unix.PidfdSendSignal(int(f.Fd()), sig, nil, 0); err != nil && err != unix.ESRCH {
		return err
	}
	return nil
}

// signalGroup is PIDFD_SIGNAL_PROCESS_GROUP of linux/pidfd.h: the process group that the
// process leads (Linux 6.9).
const signalGroup = 1 << 2

// KillGroup kills the process and the rest of the group that it leads; where it leads none,
// or the kernel cannot, the process alone.
func KillGroup(f *os.File) error {
	if err := unix.PidfdSendSignal(int(f.Fd()), unix.SIGKILL, nil, signalGroup); err == nil {
		return nil
	}
	return Signal(f, unix.SIGKILL)
}
