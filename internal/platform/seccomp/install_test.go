package seccomp

import (
	"runtime"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// BenchmarkInstall is what the kernel takes to check, translate and attach the filter.
func BenchmarkInstall(b *testing.B) {
	prog, err := Compile(defaultProfile(b))
	if err != nil {
		b.Fatal(err)
	}
	var total time.Duration
	for range b.N {
		done := make(chan time.Duration)
		go func() {
			runtime.LockOSThread() // and never unlocked: the thread ends with its filter
			unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
			fprog := unix.SockFprog{Len: uint16(len(prog.Filter)), Filter: &prog.Filter[0]}
			start := time.Now()
			if _, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(prog.Flags), uintptr(unsafe.Pointer(&fprog))); e != 0 {
				b.Error(e)
			}
			done <- time.Since(start)
		}()
		total += <-done
	}
	b.ReportMetric(float64(total.Microseconds())/float64(b.N), "µs/install")
}
