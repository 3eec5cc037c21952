// Package ociruntime has containers made by an OCI runtime that is a program of its own:
// runc, crun, youki, runsc. It is the caller's side of the command line that these share,
// which no specification fixes: runc's commands, flags and files (runc(8), and the
// draft "OCI Runtime Command Line Interface" of runtime-tools).
//
// A runtime is trusted, but not to be well: every command has a time limit, after which
// its process group is killed, and dies with the caller, so that nobody who comes after
// a caller that was killed finds one still at work.
package ociruntime

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// Runtime is a runtime's command line.
type Runtime struct {
	// Name is the handler's, for messages.
	Name string
	// Path is the executable.
	Path string
	// Root is the directory of its state, which is nobody else's: --root.
	Root string
	// Args come before the command: options of the runtime itself.
	Args []string `json:",omitempty"`
	// Timeout bounds each command; 0 is DefaultTimeout.
	Timeout time.Duration `json:",omitempty"`
	// Systemd has it ask systemd for control groups: --systemd-cgroup.
	Systemd bool `json:",omitempty"`
}

// DefaultTimeout is how long a command may take where nothing is said: a runtime that works
// takes a tenth of a second, and those that boot a machine a few.
const DefaultTimeout = 30 * time.Second

// endTimeout bounds the commands by which containers end, where SIGKILL and the control
// group do as well.
const endTimeout = 10 * time.Second

// Limit is how long a command may take.
func (r *Runtime) Limit() time.Duration {
	if r.Timeout > 0 {
		return r.Timeout
	}
	return DefaultTimeout
}

// call is one command.
type call struct {
	args  []string      // the command and what follows
	limit time.Duration // how long it may take
	log   string        // file that the runtime writes its messages to; "": standard error alone
	// stdin is read by the command. streams, where they are not nil, are its standard
	// streams as a container inherits them; other output is kept for errors.
	stdin   []byte
	streams *[3]*os.File
}

// killedWithin is how long a command that was killed is waited for.
const killedWithin = 5 * time.Second

// maxSaid is how much of a command's output is read.
const maxSaid = 1 << 20

// run carries the command out and returns what it has written to standard output.
func (r *Runtime) run(ctx context.Context, c call) ([]byte, error) {
	what := c.args[0]
	ctx, cancel := context.WithTimeout(ctx, c.limit)
	defer cancel()
	args := append([]string{}, r.Args...)
	args = append(args, "--root", r.Root)
	if c.log != "" {
		args = append(args, "--log", c.log, "--log-format", "json")
		defer os.Remove(c.log)
	}
	if r.Systemd {
		args = append(args, "--systemd-cgroup")
	}
	cmd := exec.Command(r.Path, append(args, c.args...)...)
	cmd.Dir, cmd.Env = "/", environment()
	// A group of its own, to be killed as a whole.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	// Files and not pipes: what the command leaves running may keep them.
	said := [2]*os.File{}
	for i, name := range [2]string{"stdout", "stderr"} {
		f, err := memory(name)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		said[i] = f
	}
	cmd.Stdout, cmd.Stderr = said[0], said[1]
	if s := c.streams; s != nil {
		for i, to := range [3]func(*os.File){func(f *os.File) { cmd.Stdin = f }, func(f *os.File) { cmd.Stdout = f }, func(f *os.File) { cmd.Stderr = f }} {
			if s[i] != nil {
				to(s[i])
			}
		}
	}
	if c.stdin != nil {
		f, err := memory("stdin")
		if err != nil {
			return nil, err
		}
		defer f.Close()
		if _, err := f.WriteAt(c.stdin, 0); err != nil {
			return nil, err
		}
		cmd.Stdin = f
	}
	started, done := make(chan error, 1), make(chan error, 1)
	go func() {
		// The command dies with the thread that began it (PR_SET_PDEATHSIG), so that stays.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			done <- cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		return nil, r.missing(what, err)
	}
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		unix.Kill(-cmd.Process.Pid, unix.SIGKILL)
		select {
		case <-done:
		case <-time.After(killedWithin): // it waits in the kernel
		}
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return nil, errs.New(errs.Timeout, "runtime handler %s: %s %s did not end within %s and was killed%s", r.Name, r.Path, what, c.limit, behind(c.reason(said[1])))
		}
		return nil, fmt.Errorf("runtime handler %s: %s %s: %w", r.Name, r.Path, what, context.Cause(ctx))
	}
	if err != nil {
		reason := c.reason(said[1])
		if reason == "" {
			reason = err.Error() + " without a word"
		}
		return nil, errs.New(kindOf(reason), "runtime handler %s: %s %s: %s", r.Name, r.Path, what, reason)
	}
	return io.ReadAll(io.NewSectionReader(said[0], 0, maxSaid))
}

// memory makes a file that is nowhere.
func memory(name string) (*os.File, error) {
	fd, err := unix.MemfdCreate("orlop-runtime-"+name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// missing is the error of a command that could not be begun.
func (r *Runtime) missing(what string, err error) error {
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, exec.ErrNotFound):
		return errs.New(errs.FailedPrecondition, "runtime handler %s: %s: there is no such program; install it, or set cri.runtimes.%s.path", r.Name, r.Path, r.Name)
	case errors.Is(err, os.ErrPermission), errors.Is(err, unix.ENOEXEC):
		return errs.New(errs.FailedPrecondition, "runtime handler %s: %s cannot be executed: %w; set cri.runtimes.%s.path", r.Name, r.Path, err, r.Name)
	}
	return fmt.Errorf("runtime handler %s: %s %s: %w", r.Name, r.Path, what, err)
}

// environment is the caller's without what is meant for our own programs.
func environment() (env []string) {
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "ORLOP_") {
			env = append(env, e)
		}
	}
	return env
}

func behind(reason string) string {
	if reason == "" {
		return ""
	}
	return "; it said: " + reason
}

// reason is what the command has said of its failure: the last error of its log, or the last
// line that it wrote to standard error.
func (c *call) reason(said *os.File) string {
	if c.log != "" {
		if f, err := os.Open(c.log); err == nil {
			raw, _ := io.ReadAll(io.LimitReader(f, maxSaid))
			f.Close()
			if msg := lastError(raw); msg != "" {
				return msg
			}
		}
	}
	raw, _ := io.ReadAll(io.NewSectionReader(said, 0, maxSaid))
	if s := c.streams; len(raw) == 0 && s != nil && s[2] != nil {
		raw = waiting(s[2]) // it was the container's
	}
	return lastLine(raw)
}

// maxReason keeps an error readable.
const maxReason = 1024

func cut(s string) string {
	s = strings.TrimSpace(strings.ToValidUTF8(s, ""))
	if len(s) > maxReason {
		s = strings.ToValidUTF8(s[:maxReason], "") + " …"
	}
	return s
}

func lastLine(raw []byte) string {
	lines := bytes.Split(bytes.TrimSpace(raw), []byte("\n"))
	return cut(string(lines[len(lines)-1]))
}

// lastError finds the last message of an error in a log of JSON lines, as logrus writes them;
// of one in another format it is the last line.
func lastError(raw []byte) (msg string) {
	decoded := false
	for line := range bytes.Lines(raw) {
		var m struct{ Level, Msg string }
		if json.Unmarshal(line, &m) != nil {
			continue
		}
		decoded = true
		switch strings.ToLower(m.Level) {
		case "error", "fatal", "panic":
			msg = m.Msg
		}
	}
	if !decoded {
		return lastLine(raw)
	}
	return cut(msg)
}

// waiting reads what is in a FIFO and does not wait for more.
func waiting(f *os.File) []byte {
	fd := int(f.Fd())
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	if n, err := unix.Poll(p, 0); err != nil || n == 0 || p[0].Revents&unix.POLLIN == 0 {
		return nil
	}
	if mode, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0); err != nil || mode&unix.O_ACCMODE == unix.O_WRONLY {
		return nil
	}
	buf := make([]byte, 64<<10)
	n, err := unix.Read(fd, buf)
	if err != nil {
		return nil
	}
	return buf[:n]
}

// kindOf tells of a program that the container does not have from everything else that a
// runtime may complain of. Runtimes have no codes for it: what they say begins, as Go's errors
// of package exec and crun's do, with the program's name.
func kindOf(reason string) *errs.Kind {
	low := strings.ToLower(reason)
	program := strings.Contains(low, `exec: "`) || strings.Contains(low, "executable")
	switch {
	case program && (strings.Contains(low, "no such file") || strings.Contains(low, "not found")):
		return errs.NotFound
	case program && strings.Contains(low, "permission denied"):
		return errs.PermissionDenied
	}
	return errs.FailedPrecondition
}
