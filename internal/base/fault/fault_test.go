//go:build faults

package fault

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
)

var point = New("fault.test.point")

func TestMain(m *testing.M) {
	if os.Getenv("FAULT_TEST_CHILD") != "" {
		for range 3 {
			point.Hit()
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func killed(t *testing.T, env ...string) bool {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), append(env, "FAULT_TEST_CHILD=1")...)
	err := cmd.Run()
	if err == nil {
		return false
	}
	if ws := cmd.ProcessState.Sys().(syscall.WaitStatus); !ws.Signaled() || ws.Signal() != syscall.SIGKILL {
		t.Fatalf("child ended with %v", err)
	}
	return true
}

func TestHit(t *testing.T) {
	if killed(t) {
		t.Error("killed with no fault named")
	}
	if !killed(t, "ORLOP_FAULT=fault.test.point") || !killed(t, "ORLOP_FAULT=fault.test.point:3") {
		t.Error("not killed at the point")
	}
	if killed(t, "ORLOP_FAULT=fault.test.point:4") || killed(t, "ORLOP_FAULT=fault.test.other") {
		t.Error("killed at a point that was not reached")
	}
	once := "ORLOP_FAULT_ONCE=" + filepath.Join(t.TempDir(), "once")
	if !killed(t, "ORLOP_FAULT=fault.test.point", once) || killed(t, "ORLOP_FAULT=fault.test.point", once) {
		t.Error("not killed exactly once")
	}
	if !slices.Contains(List(), "fault.test.point") {
		t.Error("List does not name the point")
	}
}
