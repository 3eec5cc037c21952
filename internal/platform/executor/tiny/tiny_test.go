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
	if err := cmd.Run(); err != nil {
		t.Error(err)
	}
	w.Close()
	msg := make([]byte, 100)
	n, _ := r.Read(msg)
	if call, errno, ok := Failed(msg[:n]); !ok || call != 2 || unix.Errno(errno) != unix.EBADF {
		t.Errorf("call %d failed with %v (%v)", call, unix.Errno(errno), ok)
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
