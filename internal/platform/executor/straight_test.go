package executor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"

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

// overAgain is a log that tells whether a start was done over.
type overAgain bool

func (o *overAgain) Handle(_ context.Context, r slog.Record) error {
	*o = *o || r.Message == doneOver
	return nil
}
func (o *overAgain) Enabled(context.Context, slog.Level) bool { return true }
func (o *overAgain) WithAttrs([]slog.Attr) slog.Handler       { return o }
func (o *overAgain) WithGroup(string) slog.Handler            { return o }

// hear begins a process, in its own way or as orlop-init, and returns what it says to its end.
// begun is called before it starts, with whether it was done over.
func hear(t *testing.T, ownWay bool, begin func(out *os.File) (*Process, error), begun func(p *Process, again bool)) string {
	t.Helper()
	var again overAgain
	defer func(old *Executor) { shared = old }(shared)
	shared = &Executor{log: slog.New(&again), init: shared.init, long: !ownWay}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	p, err := begin(w)
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	begun(p, bool(again))
	if err := p.Start(contextT(t)); err != nil {
		t.Error(err)
	}
	out, _ := io.ReadAll(r)
	wait(t, p)
	return string(out)
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
				out := hear(t, way, func(w *os.File) (*Process, error) {
					c.Stdout, c.Stderr = w, w
					return shared.Exec(contextT(t), c)
				}, func(q *Process, _ bool) {
					if got := q.straight != nil; got != (tt.straight && way) {
						t.Errorf("it begins as a program: %v", got)
					}
				})
				if !strings.Contains(out, tt.out) {
					t.Errorf("it says %s", out)
				}
				said = append(said, out)
			}
			differ(t, said[0], said[1])
		})
	}
}

// differ fails where a process that begins as a program says other lines than one that begins as
// orlop-init.
func differ(t *testing.T, program, init string) {
	t.Helper()
	a, b := strings.Split(program, "\n"), strings.Split(init, "\n")
	for _, line := range a {
		if !slices.Contains(b, line) {
			t.Errorf("only the program's: %s", line)
		}
	}
	for _, line := range b {
		if !slices.Contains(a, line) {
			t.Errorf("only orlop-init's: %s", line)
		}
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
	for _, code := range []plan.Code{plan.Hook, plan.Sync, plan.Listen, plan.Cross, plan.Take, plan.MoveRoot} {
		b.plan.Ops = []plan.Op{{Code: code}}
		if b.straight([3]*os.File{}) != nil {
			t.Errorf("%s has a straight form", plan.Names[code])
		}
	}
	b.plan.Ops = nil
	if b.straight([3]*os.File{}) == nil {
		t.Error("nothing has none")
	}
	for name, change := range map[string]func(*builder){
		"a class":         func(b *builder) { b.rdt = &rdt{} },
		"network devices": func(b *builder) { b.devs = []*netDevice{{}} },
	} {
		b := newBuilder(nil, nil, nil, nil)
		change(b)
		if b.straight([3]*os.File{}) != nil {
			t.Errorf("a start with %s has a straight form", name)
		}
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

// TestCalls: what a program tells of its calls after a gate is read as it was written, and
// nothing else is.
func TestCalls(t *testing.T) {
	rest := []plan.Op{{Code: plan.Seccomp}, {Code: plan.Caps, N: plan.N(0, 0, 0, 0b101)}, {Code: plan.Exec, S: []string{strings.Repeat("x", 2<<10)}}}
	b := callsOf(40, rest).encode()
	after, left, ok := decodeCalls(append(b, "left"...))
	var codes []plan.Code
	for _, f := range after.list {
		codes = append(codes, f.Code)
	}
	if want := []plan.Code{plan.Seccomp, plan.Caps, plan.Caps, plan.Caps, plan.Exec}; !ok || string(left) != "left" || !slices.Equal(codes, want) || after.first != 40 {
		t.Errorf("got %v and %q, %v", after, left, ok)
	}
	if len(b) > 2<<10 {
		t.Errorf("it takes %d bytes of the FIFO", len(b))
	}
	for n := range b {
		if _, _, ok := decodeCalls(b[:n]); ok {
			t.Errorf("%d bytes of it are read", n)
		}
	}
	if _, _, ok := decodeCalls([]byte{plan.MsgCalls, 3, 0, byte(plan.Gate), 0, 0}); ok {
		t.Error("calls without a first are read")
	}
}
