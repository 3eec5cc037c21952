package pidfd

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// begin starts a shell script as our child and returns it with a pidfd.
func begin(t *testing.T, script string) (*exec.Cmd, *os.File) {
	t.Helper()
	fd := -1
	cmd := exec.Command("/bin/sh", "-c", script)
	cmd.SysProcAttr = &syscall.SysProcAttr{PidFD: &fd}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	t.Cleanup(func() { f.Close() })
	return cmd, f
}

func ended(t *testing.T, f *os.File, flag int16) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); Poll(f)&flag == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the process does not end")
		}
	}
}

var ends = map[string]End{"exit 0": {}, "exit 7": {Code: 7}, "kill -9 $$": {Code: 137, Signal: 9}, "kill -TERM $$": {Code: 143, Signal: 15}}

func TestReap(t *testing.T) {
	for script, want := range ends {
		_, f := begin(t, script)
		if got, err := Reap(f, true); err != nil || got != want {
			t.Errorf("%s: %+v, %v", script, got, err)
		}
		if _, err := Reap(f, false); !errors.Is(err, unix.ECHILD) {
			t.Errorf("again: %v", err)
		}
	}
	cmd, f := begin(t, "exec sleep 100")
	if _, err := Reap(f, false); err != ErrRuns {
		t.Errorf("of one that runs: %v", err)
	}
	Signal(f, unix.SIGKILL)
	if got, err := Reap(f, true); err != nil || got.Signal != 9 {
		t.Errorf("killed: %+v %v", got, err)
	}
	if err := Signal(f, unix.SIGKILL); err != nil {
		t.Errorf("signal of one that has ended: %v", err)
	}
	if _, err := Open(cmd.Process.Pid, 1); err == nil {
		t.Error("another process was opened")
	}
}

// keeps tells whether the kernel keeps what became of a process (as pidfdtest.Keeps).
func keeps(t *testing.T) bool {
	t.Helper()
	_, f := begin(t, "exit 3")
	if _, err := Reap(f, true); err != nil {
		t.Fatal(err)
	}
	_, ok := Kept(f)
	return ok
}

// A zombie tells its end by /proc, one that was reaped by its pidfd.
func TestLook(t *testing.T) {
	keeps := keeps(t)
	t.Logf("this kernel keeps the end of a process: %t", keeps)
	for script, want := range ends {
		cmd, f := begin(t, "read x; "+script)
		_ = cmd
		started, err := StartTime(cmd.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		ended(t, f, unix.POLLIN)
		got, known, _, err := Look(f, cmd.Process.Pid, started)
		if err != nil || !known || got != want {
			t.Errorf("%s, a zombie: %+v %v %v", script, got, known, err)
		}
		if _, ok := Kept(f); ok {
			t.Errorf("%s: kept before it was reaped", script)
		}
		if _, err := Reap(f, true); err != nil {
			t.Fatal(err)
		}
		if keeps {
			ended(t, f, unix.POLLHUP)
		} else {
			want = End{}
		}
		got, known, again, err := Look(f, cmd.Process.Pid, started)
		if err != nil || known != keeps || again || got != want {
			t.Errorf("%s, reaped: %+v %v %v", script, got, known, err)
		}
	}
	cmd, f := begin(t, "exec sleep 100")
	if _, _, again, err := Look(f, cmd.Process.Pid, 0); err != ErrRuns || !again {
		t.Errorf("of one that runs: %v", err)
	}
	cmd.Process.Kill()
	cmd.Wait()
}

func TestStartTime(t *testing.T) {
	// The name of a process may look like the rest of the line.
	raw, err := os.ReadFile("/proc/self/comm")
	if err != nil {
		t.Fatal(err)
	}
	defer os.WriteFile("/proc/self/comm", []byte(strings.TrimSpace(string(raw))), 0)
	want, err := StartTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("/proc/self/comm", []byte(") Z 1 (x) 2 3"), 0); err != nil {
		t.Fatal(err)
	}
	if got, err := StartTime(os.Getpid()); err != nil || got != want {
		t.Errorf("%d, %v; want %d", got, err, want)
	}
	if _, err := StartTime(1 << 29); err == nil {
		t.Error("a process that does not exist has started: " + strconv.Itoa(1<<29))
	}
}

// The group that a process leads ends with it; of one that leads none, the process alone.
func TestKillGroup(t *testing.T) {
	self, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(self)
	groups := unix.PidfdSendSignal(self, 0, nil, signalGroup) != unix.EINVAL // Linux 6.9
	for name, leads := range map[string]bool{"leader": true, "member": false} {
		t.Run(name, func(t *testing.T) {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			fd := -1
			cmd := exec.Command("/bin/sh", "-c", "sleep 100 & echo $!; wait")
			cmd.SysProcAttr = &syscall.SysProcAttr{PidFD: &fd, Setsid: leads}
			cmd.Stdout = w
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			w.Close()
			f := os.NewFile(uintptr(fd), "pidfd")
			defer f.Close()
			var child int
			if _, err := fmt.Fscanln(r, &child); err != nil {
				t.Fatal(err)
			}
			its, err := unix.PidfdOpen(child, 0)
			if err != nil {
				t.Fatal(err)
			}
			of := os.NewFile(uintptr(its), "pidfd of the child")
			defer of.Close()
			if err := KillGroup(f); err != nil {
				t.Fatal(err)
			}
			if end, err := Reap(f, true); err != nil || end.Signal != 9 {
				t.Errorf("%+v %v", end, err)
			}
			if !leads || !groups {
				if Poll(of)&unix.POLLIN != 0 {
					t.Error("a process was killed that is of another's group, or of a group that the kernel cannot name")
				}
				Signal(of, unix.SIGKILL)
			}
			ended(t, of, unix.POLLIN)
			if err := KillGroup(f); err != nil {
				t.Errorf("one that has ended: %v", err)
			}
		})
	}
}
