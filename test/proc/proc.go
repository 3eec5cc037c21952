// Package proc reads what proc(5) says of processes, for tests that measure them.
package proc

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// KiB is the number of a field in a file of /proc/PID that has lines like "Pss: 12 kB",
// such as status and smaps_rollup.
func KiB(t testing.TB, pid int, file, field string) int {
	t.Helper()
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, file))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(raw)) {
		if rest, ok := strings.CutPrefix(line, field+":"); ok {
			n, err := strconv.Atoi(strings.Fields(rest)[0])
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("/proc/%d/%s has no %s", pid, file, field)
	return 0
}

// Peak watches a process's proportional set size until stop, which returns the most that
// it was, in KiB.
func Peak(pid int) (stop func() int) {
	end, most := make(chan struct{}), make(chan int)
	go func() {
		top := 0
		for {
			raw, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid)) // it may have ended
			for line := range strings.Lines(string(raw)) {
				if rest, ok := strings.CutPrefix(line, "Pss:"); ok {
					n, _ := strconv.Atoi(strings.Fields(rest)[0])
					top = max(top, n)
				}
			}
			select {
			case <-end:
				most <- top
				return
			case <-time.After(lookPause):
			}
		}
	}()
	return func() int { close(end); return <-most }
}

// lookPause is short enough to see what a request takes that lasts a while.
const lookPause = 20 * time.Millisecond
