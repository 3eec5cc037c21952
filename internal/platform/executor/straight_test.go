package executor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/executor/plan"
)

// byInit has what joins a container begin as orlop-init, always, until restore is called.
func byInit() (restore func()) {
	old := shared
	shared = &Executor{log: old.log, init: old.init, long: true}
	return func() { shared = old }
}

// eachWay runs a test of processes that join a container twice: as they begin by themselves,
// and with orlop-init.
func eachWay(t *testing.T, test func(t *testing.T)) {
	t.Run("straight", test)
	t.Run("init", func(t *testing.T) {
		defer byInit()()
		test(t)
	})
}

// TestStraight: which processes that join a container begin as a program, and which as
// orlop-init. Either runs, and says the same.
func TestStraight(t *testing.T) {
	type change func(p *specs.Process, c *ExecConfig)
	env := func(list ...string) change {
		return func(p *specs.Process, c *ExecConfig) { p.Env = list }
	}
	long := strings.Repeat("x", maxStrings)
	for name, tt := range map[string]struct {
		root     func(dir string) // changes the container's image
		change   change
		straight bool
		out      string // beside what is asked of each
	}{
		"plain": {nil, nil, true, ""},
		"user": {nil, func(p *specs.Process, c *ExecConfig) {
			p.User = specs.User{UID: 42, GID: 43, AdditionalGids: []uint32{7, 1 << 20}, Umask: ptr(uint32(0o77))}
		}, true, "42:43 43 7 1048576 0077 /"},
		"seccomp": {nil, func(p *specs.Process, c *ExecConfig) { c.Seccomp = defaultSeccomp(t) }, true, ""},
		"seccomp with privileges": {nil, func(p *specs.Process, c *ExecConfig) {
			c.Seccomp, p.NoNewPrivileges = defaultSeccomp(t), false
			p.Capabilities.Inheritable, p.Capabilities.Ambient = p.Capabilities.Permitted, []string{"CAP_KILL"}
		}, true, ""},
		"score, limits, scheduling": {nil, func(p *specs.Process, c *ExecConfig) {
			p.OOMScoreAdj = ptr(900)
			p.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 20, Hard: 30}}
			p.Scheduler = &specs.Scheduler{Policy: specs.SchedBatch, Nice: 3}
			p.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_IDLE}
			c.Personality = &specs.LinuxPersonality{Domain: specs.PerLinux}
		}, true, ""},
		"directory":              {nil, func(p *specs.Process, c *ExecConfig) { p.Cwd = "/dev/../bin" }, true, "0:0 0 0022 /bin"},
		"directory that is made": {nil, func(p *specs.Process, c *ExecConfig) { p.Cwd = "/made/here" }, true, "0:0 0 0022 /made/here"},
		"home":                   {nil, env("PATH=/bin"), true, "home=/root"},
		"home, no file":          {func(dir string) { os.Remove(dir + "/etc/passwd") }, env("PATH=/bin"), true, "home=/ "},
		"home, a directory":      {func(dir string) { os.Remove(dir + "/etc/passwd"); os.Mkdir(dir+"/etc/passwd", 0o755) }, env("PATH=/bin"), true, "home=/ "},
		"home, a FIFO": {func(dir string) { os.Remove(dir + "/etc/passwd"); unix.Mkfifo(dir+"/etc/passwd", 0o666) }, func(p *specs.Process, c *ExecConfig) {
			p.Args, p.Env = []string{"sh", "-c", "echo home=$HOME ."}, []string{"PATH=/bin"} // others would wait
		}, true, "home=/ "},
		"home, a large file": {func(dir string) {
			write(t, dir+"/etc/passwd", strings.Repeat("#\n", maxUsers)+"root:x:0:0::/far:/bin/sh\n")
		}, env("PATH=/bin"), false, "home=/far"},
		"home, long":                  {func(dir string) { write(t, dir+"/etc/passwd", "root:x:0:0::/"+long[:maxUsers-100]+":/bin/sh\n") }, env("PATH=/bin"), true, "home=/xxxxx"},
		"last of the path":            {nil, env("PATH=/nothing:/etc:/sbin::/bin", "HOME=/"), true, ""},
		"a directory of the name":     {func(dir string) { os.MkdirAll(dir+"/first/sh", 0o755) }, env("PATH=/first:/bin", "HOME=/"), false, ""},
		"a file that may not be run":  {func(dir string) { os.Mkdir(dir+"/first", 0o755); write(t, dir+"/first/sh", "no") }, env("PATH=/first:/bin", "HOME=/"), true, ""},
		"a longer path than is told":  {nil, env("PATH="+strings.Repeat("/no:", maxCandidates)+"/bin", "HOME=/"), false, ""},
		"more strings than are told":  {nil, env("PATH=/bin", "HOME=/", "LONG="+long[:maxStrings/2], "LONGER="+long[:maxStrings/2]), false, ""},
		"many strings":                {nil, env("PATH=/bin", "HOME=/", "LONG="+long[:maxStrings/2]), true, ""},
		"null device that is missing": {func(dir string) { os.Remove(dir + "/dev/null") }, nil, true, ""}, // the container's /dev is its own
		"files":                       {nil, func(p *specs.Process, c *ExecConfig) { c.ExtraFiles = []*os.File{os.Stderr, os.Stdout} }, true, ""},
		"processors": {nil, func(p *specs.Process, c *ExecConfig) {
			p.ExecCPUAffinity = &specs.CPUAffinity{Initial: "0-1", Final: "0"}
		}, true, ""},
	} {
		t.Run(name, func(t *testing.T) {
			root := image(t)
			write(t, root+"/etc/passwd", "root:x:0:0::/root:/bin/sh\n")
			if tt.root != nil {
				tt.root(root)
			}
			p, end := start(t, Config{ID: "target", Spec: spec("sleep", "1000"), Rootfs: layers(t, root)})
			defer end()
			var said []string
			for _, way := range []bool{true, false} {
				process := spec("sh", "-c", "echo $(id -u):$(id -g) $(id -G) $(umask) $(pwd) home=$HOME .; grep -E '^(Name|Umask|Uid|Gid|Groups|SigBlk|SigIgn|Cap|NoNew|Seccomp|Cpus)' /proc/self/status; cat /proc/self/oom_score_adj /proc/self/limits; env; ls /proc/self/fd").Process
				process.Env = append(process.Env, "A=1")
				// Go's runtime raises it where nobody says what it is to be.
				process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 200, Hard: 300}}
				c := ExecConfig{PID: p.PID(), PIDFD: p.PIDFD(), Process: process}
				if tt.change != nil {
					tt.change(process, &c)
				}
				restore := func() {}
				if !way {
					restore = byInit()
				}
				r, w, err := os.Pipe()
				if err != nil {
					t.Fatal(err)
				}
				c.Stdout, c.Stderr = w, w
				q, err := shared.Exec(contextT(t), c)
				restore()
				w.Close()
				if err != nil {
					t.Fatal(err)
				}
				if got := q.straight != nil; got != (tt.straight && way) {
					t.Errorf("it begins as a program: %v", got)
				}
				if err := q.Start(contextT(t)); err != nil {
					t.Error(err)
				}
				out, _ := io.ReadAll(r)
				r.Close()
				wait(t, q)
				if !strings.Contains(string(out), tt.out) {
					t.Errorf("it says %s", out)
				}
				said = append(said, string(out))
			}
			if said[0] != said[1] {
				t.Errorf("it says\n%s\nand as orlop-init\n%s", said[0], said[1])
			}
		})
	}
}

func write(t *testing.T, path, data string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(data), 0o644); err != nil {
		t.Fatal(err)
	}
}

// TestStraightFails: what is wrong with a process is said in the same words both ways, before
// the gate and after it, and nothing is left.
func TestStraightFails(t *testing.T) {
	root := image(t)
	for name, data := range map[string]string{"orphan": "#!/nothing\n", "garbage": "\x00\x01", "plain": "#!/bin/sh\n"} {
		write(t, root+"/bin/"+name, data)
		if name != "plain" {
			os.Chmod(root+"/bin/"+name, 0o755)
		}
	}
	p, end := start(t, Config{ID: "target", Spec: spec("sleep", "1000"), Rootfs: layers(t, root)})
	defer end()
	forbids := func(names ...string) *specs.LinuxSeccomp {
		return &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: names, Action: specs.ActErrno, ErrnoRet: ptr(uint(unix.EDOM))}}}
	}
	for name, tt := range map[string]struct {
		change func(p *specs.Process, c *ExecConfig)
		args   []string
		kind   *errs.Kind
		text   string
		late   bool // it is told by Start
	}{
		"missing":             {nil, []string{"nothing"}, errs.NotFound, "it is not in PATH", false},
		"missing path":        {nil, []string{"/bin/nothing"}, errs.NotFound, "/bin/nothing", false},
		"empty":               {nil, []string{""}, errs.NotFound, "the command is empty", false},
		"directory":           {nil, []string{"/bin"}, errs.PermissionDenied, "it is a directory", false},
		"may not be executed": {nil, []string{"plain"}, errs.PermissionDenied, "may not be executed", false},
		"missing interpreter": {nil, []string{"orphan"}, errs.NotFound, "what it needs to run is not", true},
		"not a program":       {nil, []string{"garbage"}, errs.Invalid, "not a program for this machine", true},
		"forbidden by seccomp": {func(p *specs.Process, c *ExecConfig) { c.Seccomp = forbids("execve") }, []string{"true"}, nil,
			"numerical argument out of domain", true},
		"forbidden privileges": {func(p *specs.Process, c *ExecConfig) { c.Seccomp, p.NoNewPrivileges = forbids("capset"), false }, []string{"true"}, nil,
			plan.Names[plan.Caps] + ": numerical argument out of domain", true},
		"no working directory": {func(p *specs.Process, c *ExecConfig) { p.Cwd = "/bin/busybox" }, []string{"true"}, errs.Invalid, "/bin/busybox", false},
	} {
		t.Run(name, func(t *testing.T) {
			var said []string
			for _, way := range []bool{true, false} {
				before := leftovers()
				process := spec(tt.args...).Process
				c := ExecConfig{PID: p.PID(), PIDFD: p.PIDFD(), Process: process}
				if tt.change != nil {
					tt.change(process, &c)
				}
				restore := func() {}
				if !way {
					restore = byInit()
				}
				q, err := shared.Exec(contextT(t), c)
				restore()
				if (err == nil) != tt.late {
					t.Fatalf("got %v", err)
				}
				if err == nil {
					if (q.straight != nil) != way {
						t.Error("it began the other way")
					}
					err = q.Start(contextT(t))
					q.Close()
				}
				if err == nil || !strings.Contains(err.Error(), tt.text) || tt.kind != nil && !errors.Is(err, tt.kind) {
					t.Errorf("got %v (kind %v)", err, errs.KindOf(err))
				}
				said = append(said, fmt.Sprint(err))
				if after := leftovers(); after != before {
					t.Errorf("left behind:\nbefore %s\nafter  %s", before, after)
				}
			}
			if said[0] != said[1] {
				t.Errorf("it says %q, and as orlop-init %q", said[0], said[1])
			}
		})
	}
}

// TestStraightNot: what has no straight form is not made one.
func TestStraightNot(t *testing.T) {
	b := newBuilder(nil, nil, nil, nil)
	b.pidfd = os.Stdin
	for _, code := range []plan.Code{plan.Hook, plan.Listen, plan.Cross, plan.Mount, plan.Pause} {
		b.plan.Ops = []plan.Op{{Code: code}}
		if b.straight([3]*os.File{}) != nil {
			t.Errorf("%s has a straight form", plan.Names[code])
		}
	}
	b.plan.Ops = nil
	if b.straight([3]*os.File{}) == nil {
		t.Error("nothing has none")
	}
	b.pidfd = nil
	if b.straight([3]*os.File{}) != nil {
		t.Error("a container's first process has a straight form")
	}
}

// TestStraightEnds: a process whose caller goes away at the gate ends as orlop-init does, and
// what the caller ignores or blocks is not the program's.
func TestStraightEnds(t *testing.T) {
	p, end := start(t, Config{ID: "target", Spec: spec("sleep", "1000"), Rootfs: layers(t, image(t))})
	defer end()
	eachWay(t, func(t *testing.T) {
		q, err := shared.Exec(contextT(t), ExecConfig{PID: p.PID(), Process: spec("true").Process})
		if err != nil {
			t.Fatal(err)
		}
		q.Close()
		var ws unix.WaitStatus
		if _, err := unix.Wait4(q.PID(), &ws, 0, nil); err != nil || ws.ExitStatus() != plan.NotExecuted {
			t.Errorf("it ended with %d: %v", ws.ExitStatus(), err)
		}
	})
	if list := ignoredSignals(); slices.Contains(list, uint64(unix.SIGKILL)) {
		t.Errorf("ignored are %v", list)
	}
}

// TestStraightGivenUp: whoever gives up at any moment leaves nothing.
func TestStraightGivenUp(t *testing.T) {
	p, end := start(t, Config{ID: "target", Spec: spec("sleep", "1000"), Rootfs: layers(t, image(t))})
	defer end()
	fds := func() int {
		list, _ := os.ReadDir("/proc/self/fd")
		return len(list)
	}
	before, open := leftovers(), 0
	given := 0
	for i := range 150 {
		ctx, cancel := context.WithTimeout(contextT(t), time.Duration(i)*50*time.Microsecond)
		q, err := shared.Exec(ctx, ExecConfig{PID: p.PID(), PIDFD: p.PIDFD(), Process: &specs.Process{
			Args: []string{"sh", "-c", "exit 0"}, Cwd: "/", Env: []string{"PATH=/bin"}, Terminal: i%2 == 0, OOMScoreAdj: ptr(900)}})
		if err == nil {
			if err = q.Start(ctx); err == nil {
				wait(t, q)
			}
			q.Close()
			if q.Console() != nil {
				q.Console().Close()
			}
		}
		cancel()
		if errors.Is(err, context.DeadlineExceeded) {
			given++
		} else if err != nil {
			t.Fatal(err)
		}
		if n := fds(); i == 0 {
			open = n
		} else if n > open {
			list, _ := exec.Command("ls", "-l", fmt.Sprintf("/proc/%d/fd", os.Getpid())).CombinedOutput()
			t.Fatalf("after %d tries %d descriptors are open, %d were: %v\n%s", i, n, open, err, list)
		}
	}
	if given == 0 {
		t.Error("nobody gave up")
	}
	if after := leftovers(); after != before {
		t.Errorf("left behind:\nbefore %s\nafter  %s", before, after)
	}
}
