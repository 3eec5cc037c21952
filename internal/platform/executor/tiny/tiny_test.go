package tiny

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/platform/executor/plan"
)

func file(t *testing.T, b []byte) string {
	t.Helper()
	p := filepath.Join(t.TempDir(), "tiny")
	if err := os.WriteFile(p, b, 0o755); err != nil {
		t.Fatal(err)
	}
	return p
}

// TestProgram runs one that writes, forks, and executes another program from the new
// process.
func TestProgram(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var p Program
	p.Call(unix.SYS_WRITE, 3, p.Data([]byte("first,")), 6)
	p.Fork(unix.SYS_CLONE, uint64(unix.CLONE_PARENT|unix.SIGCHLD))
	p.Call(unix.SYS_DUP3, 3, 1, 0)
	p.Call(unix.SYS_EXECVE, p.Data([]byte("/bin/busybox\x00")), p.Strings([]string{"sh", "-c", "echo $A"}), p.Strings([]string{"A=second"}))
	cmd := exec.Command(file(t, p.Executable()))
	cmd.ExtraFiles = []*os.File{w}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	var out []byte
	buf := make([]byte, 100)
	for {
		n, err := r.Read(buf)
		out = append(out, buf[:n]...)
		if err != nil {
			break
		}
	}
	if string(out) != "first,second\n" {
		t.Errorf("it wrote %q", out)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	// What it made is a child of ours.
	if pid, err := unix.Wait4(-1, nil, 0, nil); err != nil || pid <= 0 {
		t.Errorf("wait for the second: %d, %v", pid, err)
	}
}

func TestProgramFails(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var p Program
	p.Call(unix.SYS_GETPID)
	p.Try(unix.SYS_CLOSE, 78)
	p.Call(unix.SYS_CLOSE, 77)
	p.Call(unix.SYS_EXIT_GROUP, 9)
	cmd := exec.Command(file(t, p.Executable()))
	cmd.ExtraFiles = []*os.File{w}
	if err := cmd.Run(); cmd.ProcessState.ExitCode() != plan.NotExecuted {
		t.Error(err)
	}
	w.Close()
	msg := make([]byte, 100)
	n, _ := r.Read(msg)
	if call, errno, ok := Failed(msg[:n]); !ok || call != 2 || unix.Errno(errno) != unix.EBADF {
		t.Errorf("call %d failed with %v (%v)", call, unix.Errno(errno), ok)
	}
}

// TestProgramGoesOn shows what follows a result: calls that are left out, room that was written
// to, another channel, and an end with a status.
func TestProgramGoesOn(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	in, answer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	if _, err := answer.Write([]byte("told")); err != nil {
		t.Fatal(err)
	}
	answer.Close()
	var p Program
	p.Channel(4)
	say := func(text string) { p.Call(unix.SYS_WRITE, 4, p.Data([]byte(text)), uint64(len(text))) }
	p.On(Results{Error: Skip(2)}, unix.SYS_CLOSE, 77)
	say("left out")
	say("left out")
	p.On(Results{Error: Skip(1), Zero: Skip(1)}, unix.SYS_GETPID)
	say("a,")
	p.On(Results{Zero: Skip(1)}, unix.SYS_UMASK, 0)
	say("b,")
	p.On(Results{Zero: Skip(1)}, unix.SYS_UMASK, 0)
	say("left out")
	p.Room(3)
	room := p.Room(100)
	p.On(Results{Error: Report, Zero: Report}, unix.SYS_READ, 3, room+1, 99)
	p.Call(unix.SYS_WRITE, 4, room, 6)
	p.On(Results{Zero: End(97)}, unix.SYS_READ, 3, room, 100)
	say("left out")
	cmd := exec.Command(file(t, p.Executable()))
	cmd.ExtraFiles = []*os.File{in, w}
	if err := cmd.Run(); cmd.ProcessState.ExitCode() != 97 {
		t.Error(err)
	}
	w.Close()
	out := make([]byte, 100)
	n, _ := r.Read(out)
	for n > 0 && n < len(out) {
		m, err := r.Read(out[n:])
		if err != nil {
			break
		}
		n += m
	}
	if got, want := string(out[:n]), "a,b,\x00told\x00"; got != want {
		t.Errorf("it wrote %q, not %q", got, want)
	}
}

func TestPause(t *testing.T) {
	cmd := exec.Command(file(t, Pause()))
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	// It blocks its signals first: until then SIGTERM would end it by default.
	deadline := time.Now().Add(10 * time.Second)
	for {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", cmd.Process.Pid))
		if strings.Contains(string(b), "(tiny) S") || time.Now().After(deadline) {
			break
		}
	}
	cmd.Process.Signal(unix.SIGTERM)
	if err := cmd.Wait(); err != nil {
		t.Errorf("it ended with %v", err)
	}
}
