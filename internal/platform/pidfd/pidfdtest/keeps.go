// Package pidfdtest tells tests what they may expect of the kernel.
package pidfdtest

import (
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/platform/pidfd"
)

// Keeps tells whether the kernel keeps the end of a process for those who hold a pidfd of
// it (PIDFD_INFO_EXIT, Linux 6.15). It is tried on a process. Where it does not, the end of
// one whose parent was not asked is not known.
func Keeps(t testing.TB) bool {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", "read x; exit 3")
	in, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(cmd.Process.Pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	defer f.Close()
	in.Close()
	cmd.Wait()
	end, ok := pidfd.Kept(f)
	if ok && end.Code != 3 {
		t.Fatalf("the kernel keeps %+v of a process that ended with 3", end)
	}
	return ok
}
