package executor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"regexp"
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

// TestStraightContainer: which containers begin as a program, and which as orlop-init, because
// their plan says so or because something is not as usual. What they see is the same.
func TestStraightContainer(t *testing.T) {
	type change func(s *specs.Spec, c *Config)
	mounts := func(list ...specs.Mount) change {
		return func(s *specs.Spec, c *Config) { s.Mounts = append(s.Mounts, list...) }
	}
	bind := func(source, destination string, options ...string) specs.Mount {
		return specs.Mount{Type: "bind", Source: source, Destination: destination, Options: append(options, "bind")}
	}
	tmpfs := func(destination string, options ...string) specs.Mount {
		return specs.Mount{Type: "tmpfs", Source: "tmpfs", Destination: destination, Options: options}
	}
	own := regexp.MustCompile(temporary + `/[^/ ]+/\d+`)
	many := func(n int) (list []specs.Mount) {
		for i := range n {
			list = append(list, bind("/etc/hostname", fmt.Sprintf("/many/%d", i)))
		}
		return list
	}
	dir, file := t.TempDir(), t.TempDir()+"/file"
	write(t, dir+"/in", "a file of a volume")
	write(t, file, "a file")
	for name, tt := range map[string]struct {
		root     func(dir string) // changes the image
		change   change
		straight bool
		again    bool // it begins straight, and is done over
		out      string
	}{
		"plain": {nil, nil, true, false, "box"},
		"everything of a pod": {nil, func(s *specs.Spec, c *Config) {
			s.Mounts = append(s.Mounts, bind(file, "/etc/hosts", "ro"), bind(dir, "/var/run/secrets/of", "rbind", "ro", "nosuid"), bind(dir, "/data", "rprivate"), bind(dir, "/shared", "rshared"))
			s.Process.OOMScoreAdj, s.Process.User = ptr(900), specs.User{UID: 42, GID: 43, AdditionalGids: []uint32{44}}
			s.Process.Env = []string{"PATH=/sbin:/bin"}
			s.Linux.Sysctl = map[string]string{"net.ipv4.ip_unprivileged_port_start": "80", "kernel.msgmax": "9000"}
			s.Linux.Seccomp, s.Domainname = defaultSeccomp(t), "domain"
			s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229, UID: ptr(uint32(5)), GID: ptr(uint32(6)), FileMode: ptr(os.FileMode(0o640))}, {Path: "/dev/deep/fifo", Type: "p"}}
		}, true, false, "a file of a volume"},
		"read-only root":                {nil, func(s *specs.Spec, c *Config) { s.Root = &specs.Root{Readonly: true}; s.Process.Cwd = "/made/here" }, true, false, "/made/here"},
		"a directory as root":           {nil, func(s *specs.Spec, c *Config) { c.Rootfs = Rootfs{Dir: c.Rootfs.Lower[0]} }, true, false, "box"},
		"one layer":                     {nil, func(s *specs.Spec, c *Config) { c.Rootfs = Rootfs{Lower: c.Rootfs.Lower} }, true, false, "box"},
		"mount points that are missing": {nil, mounts(bind(dir, "/a"), bind(dir, "/b/c"), bind(dir, "/d/e/f"), bind(file, "/g"), bind(file, "/h/i"), bind(file, "/j/k/l"), tmpfs("/m/n/o/p", "mode=700")), true, false, "box"},
		"mount points over links": {func(dir string) {
			for path, to := range map[string]string{"/var": "usr/var", "/dangling": "/run/far", "/links": "../../links", "/hosts": "/etc/hosts"} {
				os.Symlink(to, dir+path)
			}
			os.MkdirAll(dir+"/usr/var", 0o755)
			os.MkdirAll(dir+"/links", 0o755)
			write(t, dir+"/etc/hosts", "")
		}, mounts(bind(dir, "/var"), bind(file, "/hosts")), true, false, "box"},
		"mount point over a link to nothing": {func(dir string) { os.Symlink("/run/far", dir+"/dangling") }, mounts(bind(dir, "/dangling/deep")), true, true, "box"},
		"volume on /dev":                     {nil, func(s *specs.Spec, c *Config) { ownDev(s, deviceVolume(t)) }, true, false, "box"},
		"own files in /proc":                 {nil, mounts(bind(file, "/proc/meminfo")), true, false, "box"},
		"no /proc":                           {nil, func(s *specs.Spec, c *Config) { s.Mounts = s.Mounts[1:] }, true, false, "box"},
		"masked files of the image": {nil, func(s *specs.Spec, c *Config) {
			s.Linux.MaskedPaths = append(s.Linux.MaskedPaths, "/etc/none")
		}, true, false, "box"},
		"masked files of the image that are there": {nil, func(s *specs.Spec, c *Config) {
			s.Linux.MaskedPaths = append(s.Linux.MaskedPaths, "/root")
		}, true, true, "box"},
		"links that are there":       {func(dir string) { os.Symlink("elsewhere", dir+"/dev/fd") }, func(s *specs.Spec, c *Config) { s.Mounts = slices.Delete(s.Mounts, 1, 5) }, true, false, "box"},
		"devices that are there":     {func(dir string) { unix.Mknod(dir+"/dev/null", unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))) }, func(s *specs.Spec, c *Config) { s.Mounts = slices.Delete(s.Mounts, 1, 5) }, true, true, "box"},
		"a tmpfs without a mode":     {nil, mounts(tmpfs("/tmp")), false, false, "box"},
		"a tmpfs with what is there": {nil, mounts(tmpfs("/etc", "tmpcopyup", "mode=755")), false, false, "box"},
		"limits above what is allowed": {nil, func(s *specs.Spec, c *Config) {
			s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_MEMLOCK", Soft: unix.RLIM_INFINITY, Hard: unix.RLIM_INFINITY}}
			s.Process.OOMScoreAdj = ptr(-1000)
		}, true, false, "box"},
		"many mounts":                  {nil, mounts(many(100)...), true, false, "box"},
		"more mounts than are told of": {nil, mounts(many(200)...), false, false, "box"},
		"hooks": {nil, func(s *specs.Spec, c *Config) {
			s.Hooks = &specs.Hooks{CreateContainer: []specs.Hook{{Path: "/bin/true"}}}
		}, false, false, "box"},
		"user namespace": {nil, func(s *specs.Spec, c *Config) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
			s.Linux.UIDMappings = []specs.LinuxIDMapping{{HostID: 100000, Size: 65536}}
			s.Linux.GIDMappings = s.Linux.UIDMappings
			c.Rootfs.IDMap = true
		}, true, false, "box"},
		"new time namespace": {nil, func(s *specs.Spec, c *Config) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.TimeNamespace})
			s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {Secs: 100000}}
		}, true, false, "box"},
	} {
		t.Run(name, func(t *testing.T) {
			var said []string
			var warned [2][]string
			for i, way := range []bool{true, false} {
				root := image(t)
				write(t, root+"/etc/passwd", "root:x:0:0::/root:/bin/sh\nsome:x:42:43::/home/some:/bin/sh\n")
				if tt.root != nil {
					tt.root(root)
				}
				s := spec("sh", "-c", `hostname; pwd; id; echo $HOME; cat /proc/sys/kernel/domainname /proc/sys/kernel/msgmax /data/in /proc/self/oom_score_adj
					sed -E 's/^[0-9]+ [0-9]+ [0-9:]+ //; s/(master|shared):[0-9]+/\1/g; s/(upper|work)dir=[^, ]*//g; s/lowerdir[^ ,]*//g; s/uuid=on,//' /proc/self/mountinfo | sort
					grep -E '^(Umask|Uid|Gid|Groups|SigBlk|SigIgn|Cap|NoNew|Seccomp|Cpus)' /proc/self/status; cat /proc/self/limits; env | sort; ls -l /proc/self/fd /dev 2>/dev/null | sed -E 's/[A-Z][a-z][a-z] +[0-9]+ +[0-9:]+ //; s/pipe:.*//; s/[0-9]+ -> .proc.*//'; ls -ld /var /data /shared /a /b /b/c /d /d/e /d/e/f /g /h /h/i /j/k/l /m/n/o/p /m/n /etc /tmp /dangling 2>/dev/null | sed -E 's/[A-Z][a-z][a-z] +[0-9]+ +[0-9:]+ //'; ip -o link show lo | cut -c1-40; cat /proc/sys/net/ipv4/ip_unprivileged_port_start`)
				// Go's runtime raises it where nobody says what it is to be.
				s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 200, Hard: 300}}
				c := Config{ID: "straight", Spec: s, Rootfs: layers(t, root)}
				if tt.change != nil {
					tt.change(s, &c)
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
				before := shared.again.Load()
				p, err := shared.Create(contextT(t), c)
				again := shared.again.Load() > before
				restore()
				w.Close()
				if err != nil {
					t.Fatal(err)
				}
				if got := p.straight != nil; got != (tt.straight && !tt.again && way) || again != (tt.again && way) {
					t.Errorf("it begins as a program: %v, and is done over: %v", got, again)
				}
				warned[i] = slices.Sorted(slices.Values(p.Warnings()))
				if err := p.Start(contextT(t)); err != nil {
					t.Error(err)
				}
				out, _ := io.ReadAll(r)
				r.Close()
				wait(t, p)
				if !strings.Contains(string(out), tt.out) {
					t.Errorf("it says %s", out)
				}
				said = append(said, own.ReplaceAllString(string(out), "DIR"))
			}
			differ(t, said[0], said[1])
			if !slices.Equal(warned[0], warned[1]) {
				t.Errorf("it warns of %v, and as orlop-init of %v", warned[0], warned[1])
			}
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

// TestStraightGivenUp: whoever gives up at any moment leaves nothing, of an exec, a container, and
// one in a user namespace, where another process is thrown away on the way.
func TestStraightGivenUp(t *testing.T) {
	root := image(t)
	p, end := start(t, Config{ID: "target", Spec: spec("sleep", "1000"), Rootfs: layers(t, root)})
	defer end()
	container := func(change func(s *specs.Spec, c *Config)) func(ctx context.Context, i int) (*Process, error) {
		c := Config{ID: "given-up", Rootfs: layers(t, root), Spec: spec("sh", "-c", "exit 0")}
		change(c.Spec, &c)
		return func(ctx context.Context, i int) (*Process, error) {
			c.Spec.Process.Terminal = i%2 == 0
			return shared.Create(ctx, c)
		}
	}
	for name, begin := range map[string]func(ctx context.Context, i int) (*Process, error){
		"exec": func(ctx context.Context, i int) (*Process, error) {
			return shared.Exec(ctx, ExecConfig{PID: p.PID(), PIDFD: p.PIDFD(), Process: &specs.Process{
				Args: []string{"sh", "-c", "exit 0"}, Cwd: "/", Env: []string{"PATH=/bin"}, Terminal: i%2 == 0, OOMScoreAdj: ptr(900)}})
		},
		"container":                     container(func(s *specs.Spec, c *Config) {}),
		"container in a user namespace": container(mapped),
	} {
		t.Run(name, func(t *testing.T) { givenUp(t, begin) })
	}
}

func givenUp(t *testing.T, begin func(ctx context.Context, i int) (*Process, error)) {
	fds := func() int {
		list, _ := os.ReadDir("/proc/self/fd")
		return len(list)
	}
	before, open := leftovers(), 0
	given, straight := 0, 0
	for i := range 150 {
		ctx, cancel := context.WithTimeout(contextT(t), time.Duration(i)*50*time.Microsecond)
		if i == 149 {
			ctx = contextT(t)
		}
		q, err := begin(ctx, i)
		if err == nil {
			if q.straight != nil {
				straight++
			}
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
	if given == 0 || straight == 0 {
		t.Errorf("%d gave up, %d began as a program", given, straight)
	}
	if after := leftovers(); after != before {
		t.Errorf("left behind:\nbefore %s\nafter  %s", before, after)
	}
}

// TestCalls: what a program tells of its calls after a gate is read as it was written, and
// nothing else is.
func TestCalls(t *testing.T) {
	rest := []plan.Op{{Code: plan.Seccomp}, {Code: plan.Caps, N: plan.N(0, 0, 0, 0b101)}, {Code: plan.Exec, S: []string{strings.Repeat("x", 2<<10)}}}
	b := encodeCalls(40, rest)
	after, left, ok := decodeCalls(append(b, "left"...))
	var codes []plan.Code
	for i := 40; i < 45; i++ {
		codes = append(codes, after[i].Code)
	}
	if want := []plan.Code{plan.Seccomp, plan.Caps, plan.Caps, plan.Caps, plan.Exec}; !ok || string(left) != "left" || !slices.Equal(codes, want) || len(after) != 5 {
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
