package proc

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// HeedSignals takes back what the caller has this process ignore, such as a shell for its
// background jobs: whatever is started here would ignore it too. What is caught is not
// inherited.
func HeedSignals() error {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	_, mask, _ := strings.Cut(string(status), "SigIgn:\t")
	mask, _, _ = strings.Cut(mask, "\n")
	ignored, err := strconv.ParseUint(mask, 16, 64)
	if err != nil {
		return fmt.Errorf("/proc/self/status: SigIgn: %w", err)
	}
	for sig := range 64 {
		if ignored&(1<<sig) == 0 {
			continue
		}
		var dfl [4]uintptr // struct sigaction of the kernel, with SIG_DFL; the runtime knows nothing of all signals
		if _, _, e := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig+1), uintptr(unsafe.Pointer(&dfl)), 0, 8, 0, 0); e != 0 {
			return fmt.Errorf("signal %d: %w", sig+1, e)
		}
	}
	return nil
}
