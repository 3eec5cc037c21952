package sysmon

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Only the monitor thread is late; it is the one that sleeps by nanosleep for no goroutine.
func TestCalm(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("another thread's timer slack is set by root: run the tests as root")
	}
	Calm()
	tids, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	var late []string
	for _, e := range tids {
		got, err := os.ReadFile("/proc/" + e.Name() + "/timerslack_ns")
		if err == nil && strings.TrimSpace(string(got)) == slack {
			late = append(late, e.Name())
		}
	}
	if !slices.Equal(late, []string{thread()}) {
		t.Fatalf("late are %v, want %s", late, thread())
	}
	if tid, _ := strconv.Atoi(late[0]); tid == unix.Getpid() {
		t.Error("the first thread is late")
	}
	// Nobody else enters nanosleep: while a goroutine spins, the thread that does is the monitor.
	var stop atomic.Bool
	go func() {
		for !stop.Load() {
		}
	}()
	defer stop.Store(true)
	for end := time.Now().Add(10 * time.Second); ; runtime.Gosched() {
		call, err := os.ReadFile("/proc/self/task/" + late[0] + "/syscall")
		if err == nil && strings.HasPrefix(string(call), fmt.Sprint(unix.SYS_NANOSLEEP)+" ") {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the thread never sleeps: %s, %v", call, err)
		}
	}
}

// A thread that the monitor started has its slack; what is started there does not.
func TestSpawn(t *testing.T) {
	Calm()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	late, _ := strconv.Atoi(slack)
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(late), 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	var got []byte
	Spawn(func() { got, err = exec.Command("cat", "/proc/self/timerslack_ns").Output() })
	if err != nil || strings.TrimSpace(string(got)) != strconv.Itoa(before) {
		t.Errorf("a process has %s ns, %v, want %d", got, err, before)
	}
}

// After Calmed the thread has the slack from before, and so has what others start.
func TestCalmed(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before, err := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	late := before + 12345
	unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(late), 0, 0, 0)
	Calmed(before)
	if got, _ := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0); got != before {
		t.Errorf("the thread has a slack of %d, want %d", got, before)
	}
	unix.Prctl(unix.PR_SET_TIMERSLACK, uintptr(late), 0, 0, 0)
	Spawn(func() {
		if got, _ := unix.PrctlRetInt(unix.PR_GET_TIMERSLACK, 0, 0, 0, 0); got != before {
			t.Errorf("a start has a slack of %d, want %d", got, before)
		}
	})
	Calmed(before)
}
