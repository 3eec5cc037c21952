package executor

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/orlop-io/orlop/internal/platform/executor/plan"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/cgroup"
)

// start makes a container that is to be ended by the returned function.
func start(t testing.TB, c Config) (*Process, func()) {
	t.Helper()
	p, err := shared.Create(contextT(t), c)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Start(contextT(t)); err != nil {
		p.Close()
		t.Fatal(err)
	}
	return p, func() {
		unix.PidfdSendSignal(int(p.PIDFD().Fd()), unix.SIGKILL, nil, 0)
		wait(t, p)
	}
}

// execute runs a process in a container and returns what it wrote.
func execute(t testing.TB, c ExecConfig) string {
	t.Helper()
	r, w, _ := os.Pipe()
	defer r.Close()
	c.Stdout, c.Stderr = w, w
	p, err := shared.Exec(contextT(t), c)
	if err == nil {
		err = p.Start(contextT(t))
	}
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	out, _ := io.ReadAll(r)
	wait(t, p)
	return string(out)
}

func namespaces(t testing.TB, pid int) map[string]string {
	t.Helper()
	m := map[string]string{}
	for _, n := range []string{"mnt", "pid", "net", "ipc", "uts", "cgroup"} {
		to, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, n))
		if err != nil {
			t.Fatal(err)
		}
		m[n] = to
	}
	return m
}

func TestExec(t *testing.T) { eachWay(t, testExec) }

func testExec(t *testing.T) {
	g := group(t)
	s := spec("sleep", "1000")
	s.Linux.Seccomp = defaultSeccomp(t)
	p, end := start(t, Config{ID: "target", Spec: s, Rootfs: layers(t, image(t)), Cgroup: g})
	defer end()
	host, ctr := namespaces(t, os.Getpid()), namespaces(t, p.PID())
	for n := range host {
		if host[n] == ctr[n] {
			t.Errorf("the container has the host's %s namespace", n)
		}
	}
	for _, pidfd := range []*os.File{nil, p.PIDFD()} {
		out := execute(t, ExecConfig{PID: p.PID(), PIDFD: pidfd, Cgroup: g, Seccomp: s.Linux.Seccomp, Process: &specs.Process{
			Args: []string{"sh", "-c", "for n in mnt pid net ipc uts cgroup; do echo $n=$(readlink /proc/self/ns/$n); done; cat /proc/self/status /proc/self/cgroup; pwd; ls /proc/self/fd; ps"},
			Cwd:  "/tmp", Env: []string{"PATH=/bin"}, NoNewPrivileges: true, User: specs.User{UID: 7, GID: 8, AdditionalGids: []uint32{9}},
		}})
		for n, want := range ctr {
			if !strings.Contains(out, n+"="+want+"\n") {
				t.Errorf("the %s namespace is not %s", n, want)
			}
		}
		f := fields(out)
		if f["Uid"] != "7 7 7 7" || f["Groups"] != "9" || f["Seccomp"] != "2" || f["CapBnd"] != "0000000000000000" || f["NoNewPrivs"] != "1" {
			t.Errorf("its identity:\n%s", out)
		}
		if !strings.Contains(out, "\n/tmp\n") || !strings.Contains(out, "sleep 1000") || strings.Contains(out, g.Path()) || !strings.Contains(out, ":/\n") {
			t.Errorf("where it is:\n%s", out)
		}
	}
	// Errors of the process, and of the container.
	for name, tt := range map[string]struct {
		c    ExecConfig
		kind *errs.Kind
		text string
	}{
		"no program":   {ExecConfig{PID: p.PID(), Process: &specs.Process{Args: []string{"nope"}, Cwd: "/"}}, errs.NotFound, "nope"},
		"no cwd":       {ExecConfig{PID: p.PID(), Process: &specs.Process{Args: []string{"ls"}, Cwd: "/proc/1/fd/0/x"}}, errs.Invalid, "working directory"},
		"no process":   {ExecConfig{PID: p.PID()}, errs.Invalid, "no process"},
		"no container": {ExecConfig{PID: 1 << 22, Process: &specs.Process{Args: []string{"ls"}, Cwd: "/"}}, errs.NotFound, "no such process"},
	} {
		before := leftovers()
		if tt.c.Process != nil {
			tt.c.Process.Env = []string{"PATH=/bin"}
		}
		if _, err := shared.Exec(contextT(t), tt.c); !errors.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: got %v (kind %v), want kind %v and %q", name, err, errs.KindOf(err), tt.kind, tt.text)
		}
		if after := leftovers(); after != before {
			t.Errorf("%s: left behind:\nbefore %s\nafter  %s", name, before, after)
		}
	}
}

// onTerminal runs a process in a container, with a terminal of its own, and returns what
// that says up to want. However it goes the process is reaped: the first process of a PID
// namespace ends only when all others of it have been, also those whose parent is here
// (pid_namespaces(7)), so that who gives up on this one could not end the container.
func onTerminal(t testing.TB, c ExecConfig, want string) string {
	t.Helper()
	c.Process.Terminal = true
	p, err := shared.Exec(contextT(t), c)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Console().Close()
	if err := p.Start(contextT(t)); err != nil {
		p.Close()
		t.Fatal(err)
	}
	defer func() {
		unix.PidfdSendSignal(int(p.PIDFD().Fd()), unix.SIGKILL, nil, 0)
		wait(t, p)
	}()
	return talk(t, p.Console(), want)
}

// talk reads from a terminal until it says want. What has come with it is gone for the
// next call.
func talk(t testing.TB, f *os.File, want string) string {
	t.Helper()
	f.SetReadDeadline(time.Now().Add(20 * time.Second))
	var all strings.Builder
	buf := make([]byte, 4096)
	for !strings.Contains(all.String(), want) {
		n, err := f.Read(buf)
		all.Write(buf[:n])
		if err != nil {
			t.Fatalf("the terminal says %q and then %v; expected %q", all.String(), err, want)
		}
	}
	return all.String()
}

func TestTerminal(t *testing.T) {
	s := spec("sh", "-c", "tty; stty size; stat -c %u /dev/pts/0; test -c /dev/console && echo console; echo hi >/dev/tty; read x; echo got $x; stty size; exec sleep 1000")
	s.Process.Terminal = true
	s.Process.ConsoleSize = &specs.Box{Height: 33, Width: 101}
	s.Process.User.UID = 12
	p, end := start(t, Config{ID: "tty", Spec: s, Rootfs: layers(t, image(t))})
	defer end()
	con := p.Console()
	if con == nil {
		t.Fatal("there is no console")
	}
	defer con.Close()
	out := talk(t, con, "hi")
	for _, want := range []string{"/dev/pts/0", "33 101", "12", "console"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in %q", want, out)
		}
	}
	rc, _ := con.SyscallConn()
	rc.Control(func(fd uintptr) { unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: 5, Col: 6}) })
	con.Write([]byte("word\n"))
	talk(t, con, "got word\r\n5 6")

	// Another terminal in the same container.
	out = onTerminal(t, ExecConfig{PID: p.PID(), Process: &specs.Process{Args: []string{"sh", "-c", "tty; echo $((6*7))"}, Cwd: "/", Env: []string{"PATH=/bin"}}}, "42")
	if !strings.Contains(out, "/dev/pts/1") {
		t.Errorf("the terminal says %q", out)
	}
}

// TestPause: containers share the PID namespace of a process that reaps what they leave.
func TestPause(t *testing.T) {
	s := spec()
	s.Process, s.Mounts = nil, nil
	s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil
	pause, end := start(t, Config{ID: "pause", Spec: s, Pause: true})
	ended := false
	defer func() {
		if !ended {
			end()
		}
	}()
	c := spec("sh", "-c", "(sleep 1000 & ) ; ps; echo end; exec sleep 1000")
	for i, n := range c.Linux.Namespaces {
		if n.Type == specs.PIDNamespace {
			c.Linux.Namespaces[i].Path = fmt.Sprintf("/proc/%d/ns/pid", pause.PID())
		}
	}
	r, w, _ := os.Pipe()
	defer r.Close()
	p, endMember := start(t, Config{ID: "member", Spec: c, Rootfs: layers(t, image(t)), Stdout: w})
	w.Close()
	in := bufio.NewReader(r)
	var out string
	for !strings.Contains(out, "end\n") {
		line, err := in.ReadString('\n')
		if err != nil {
			t.Fatalf("%v after %q", err, out)
		}
		out += line
	}
	if !strings.Contains(out, "    1 0        ") || !strings.Contains(out, " pause\n") {
		t.Errorf("process 1 is not pause:\n%s", out)
	}
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pause.PID()))
	f := fields(string(status))
	if f["Threads"] != "1" || f["CapEff"] != "0000000000000000" {
		t.Errorf("pause is\n%s", status)
	}
	// The orphan is reaped by pause once it ends, also while nobody else looks.
	orphan := 0
	for deadline := time.Now().Add(20 * time.Second); orphan == 0; {
		if time.Now().After(deadline) {
			t.Fatal("there is no orphan")
		}
		kids, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pause.PID(), pause.PID()))
		fmt.Sscan(string(kids), &orphan)
	}
	unix.Kill(orphan, unix.SIGKILL)
	for deadline := time.Now().Add(20 * time.Second); unix.Kill(orphan, 0) == nil; {
		if time.Now().After(deadline) {
			t.Fatal("the orphan is not reaped")
		}
	}
	endMember()
	_ = p
	// SIGTERM ends it, although it is process 1.
	unix.Kill(pause.PID(), unix.SIGTERM)
	ended = true
	if code, sig := wait(t, pause); code != 0 || sig != 0 {
		t.Errorf("pause ended with %d, signal %d", code, sig)
	}
}

func TestSeccomp(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(p *specs.LinuxSeccomp)
		script string
		out    string
		signal int
		nnp    bool
	}{
		"errno": {func(p *specs.LinuxSeccomp) {
			p.DefaultAction = specs.ActAllow
			p.Syscalls = rule(specs.ActErrno, 38, "mkdir", "mkdirat")
		}, "mkdir /x", "Function not implemented", 0, true},
		"without nnp": {func(p *specs.LinuxSeccomp) {
			p.DefaultAction = specs.ActAllow
			p.Syscalls = rule(specs.ActErrno, 38, "mkdir", "mkdirat")
		}, "mkdir /x", "Function not implemented", 0, false},
		"kill": {func(p *specs.LinuxSeccomp) {
			p.DefaultAction = specs.ActAllow
			p.Syscalls = rule(specs.ActKillProcess, -1, "mkdir", "mkdirat")
		}, "exec mkdir /x", "", int(unix.SIGSYS), true},
		"trap": {func(p *specs.LinuxSeccomp) {
			p.DefaultAction = specs.ActAllow
			p.Syscalls = rule(specs.ActTrap, -1, "mkdir", "mkdirat")
		}, "exec mkdir /x", "", int(unix.SIGSYS), true},
		"default deny": {func(p *specs.LinuxSeccomp) {}, "mount -t tmpfs x /tmp; unshare -r true; echo alive", "alive", 0, true},
		// Nothing but what the program itself needs: neither Go's runtime nor the executor
		// need anything after the filter is there.
		"only the program's": {func(p *specs.LinuxSeccomp) {
			p.DefaultAction = specs.ActKillProcess
			p.Syscalls = rule(specs.ActAllow, -1, "execve", "brk", "arch_prctl", "set_tid_address", "set_robust_list", "rseq", "prlimit64", "readlink", "readlinkat",
				"getrandom", "mprotect", "getuid", "prctl", "exit_group", "write")
		}, "", "said", 0, true},
	} {
		t.Run(name, func(t *testing.T) {
			s := spec("sh", "-c", tt.script)
			if tt.script == "" {
				s.Process.Args = []string{"echo", "said"}
			}
			s.Process.NoNewPrivileges = tt.nnp
			s.Linux.Seccomp = defaultSeccomp(t)
			if tt.change(s.Linux.Seccomp); len(s.Linux.Seccomp.Syscalls) == 1 {
				s.Linux.Seccomp.DefaultErrnoRet = nil
			}
			r := run(t, Config{Spec: s, Rootfs: layers(t, image(t))})
			if !strings.Contains(r.out, tt.out) || r.signal != tt.signal {
				t.Errorf("signal %d, output %q", r.signal, r.out)
			}
		})
	}
}

func rule(a specs.LinuxSeccompAction, errno int, names ...string) []specs.LinuxSyscall {
	s := specs.LinuxSyscall{Names: names, Action: a}
	if errno >= 0 {
		s.ErrnoRet = ptr(uint(errno))
	}
	return []specs.LinuxSyscall{s}
}

// TestGate: between Create and Start the process waits; letting go of it, killing it and
// giving up end it.
func TestGate(t *testing.T) {
	create := func() *Process {
		p, err := shared.Create(contextT(t), Config{ID: "gate", Spec: spec("true"), Rootfs: layers(t, image(t))})
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	t.Run("close", func(t *testing.T) {
		p := create()
		pid := p.PID()
		p.Close()
		var ws unix.WaitStatus
		if _, err := unix.Wait4(pid, &ws, 0, nil); err != nil || ws.ExitStatus() != plan.NotExecuted {
			t.Errorf("it ended with %v, %v", ws, err)
		}
	})
	t.Run("killed", func(t *testing.T) {
		p := create()
		unix.Kill(p.PID(), unix.SIGKILL)
		var si unix.Siginfo
		unix.Waitid(unix.P_PIDFD, int(p.PIDFD().Fd()), &si, unix.WEXITED|unix.WNOWAIT, nil)
		if err := p.Start(contextT(t)); !errors.Is(err, errs.FailedPrecondition) {
			t.Errorf("got %v", err)
		}
		wait(t, p)
	})
	t.Run("twice", func(t *testing.T) {
		p := create()
		if err := p.Start(contextT(t)); err != nil {
			t.Fatal(err)
		}
		if err := p.Start(contextT(t)); !errors.Is(err, errs.FailedPrecondition) {
			t.Errorf("got %v", err)
		}
		wait(t, p)
	})
	t.Run("given up", func(t *testing.T) {
		before := leftovers()
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		if _, err := shared.Create(ctx, Config{ID: "gate", Spec: spec("true"), Rootfs: layers(t, image(t))}); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		if after := leftovers(); after != before {
			t.Errorf("left behind:\nbefore %s\nafter  %s", before, after)
		}
	})
}

func TestParallel(t *testing.T) {
	lower := image(t)
	s := spec("sh", "-c", "echo $ID")
	s.Linux.Seccomp = defaultSeccomp(t)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var failed []error
	roots := make([]Rootfs, 100)
	for i := range roots {
		roots[i] = layers(t, lower)
	}
	before := leftovers()
	for i := range roots {
		wg.Go(func() {
			mine := *s
			process := *s.Process
			process.Env = append(slices.Clone(process.Env), fmt.Sprint("ID=", i))
			mine.Process = &process
			r, w, _ := os.Pipe()
			defer r.Close()
			p, err := shared.Create(contextT(t), Config{ID: fmt.Sprint(i), Spec: &mine, Rootfs: roots[i], Stdout: w})
			if err == nil {
				err = p.Start(contextT(t))
			}
			w.Close()
			if err == nil {
				var out []byte
				if out, err = io.ReadAll(r); err == nil && strings.TrimSpace(string(out)) != fmt.Sprint(i) {
					err = fmt.Errorf("%d wrote %q", i, out)
				}
				wait(t, p)
			}
			if err != nil {
				mu.Lock()
				failed = append(failed, err)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if err := errors.Join(failed...); err != nil {
		t.Error(err)
	}
	if after := leftovers(); after != before {
		t.Errorf("left behind:\nbefore %s\nafter  %s", before, after)
	}
}

// TestDescriptorNumbers: a start works whatever the number of the descriptors is, beside
// that of init's binary too.
func TestDescriptorNumbers(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	next := int(memfdOf(t, shared).Fd())
	for i := range 8 {
		fd, err := unix.FcntlInt(w.Fd(), unix.F_DUPFD_CLOEXEC, next)
		if err != nil {
			t.Fatal(err)
		}
		out := os.NewFile(uintptr(fd), "out")
		e, err := New(Options{InitPath: initPath})
		if err == nil {
			var binary int // right above what is passed
			if binary, err = unix.FcntlInt(memfdOf(t, e).Fd(), unix.F_DUPFD_CLOEXEC, fd+1); err == nil {
				e.Close()
				e.init.copy = os.NewFile(uintptr(binary), "orlop-init")
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		p, err := e.Create(contextT(t), Config{ID: "numbers", Spec: spec("true"), Rootfs: layers(t, image(t)), Stdout: out})
		if err == nil {
			err = p.Start(contextT(t))
		}
		if err != nil {
			t.Errorf("standard output is %d, the binary %d: %v", fd, memfdOf(t, e).Fd(), err)
		} else {
			wait(t, p)
		}
		out.Close()
		e.Close()
		next = fd + i + 1
	}
}

// TestStreams: FIFOs become the user's, files stay whose they are.
func TestStreams(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mkfifo(dir+"/fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	fifo, err := os.OpenFile(dir+"/fifo", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer fifo.Close()
	file, err := os.Create(filepath.Join(dir, "file"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	s := spec("sh", "-c", "echo again >/dev/stdout; echo err >&2")
	s.Process.User.UID = 77
	p, err := shared.Create(contextT(t), Config{ID: "streams", Spec: s, Rootfs: layers(t, image(t)), Stdout: fifo, Stderr: file})
	if err == nil {
		err = p.Start(contextT(t))
	}
	if err != nil {
		t.Fatal(err)
	}
	wait(t, p)
	buf := make([]byte, 100)
	if n, err := fifo.Read(buf); err != nil || string(buf[:n]) != "again\n" {
		t.Errorf("the FIFO has %q, %v", buf[:n], err)
	}
	if st, _ := file.Stat(); st.Sys().(*syscall.Stat_t).Uid != 0 {
		t.Error("the file was given away")
	}
	if data, _ := os.ReadFile(dir + "/file"); string(data) != "err\n" {
		t.Errorf("the file has %q", data)
	}
}

func memfdOf(t *testing.T, e *Executor) *os.File {
	t.Helper()
	f, err := e.init.memfd()
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// TestInitIsSealed: what runs as root next time cannot be changed, and is small.
func TestInitIsSealed(t *testing.T) {
	once, err := New(Options{InitPath: initPath, Once: true})
	if err != nil {
		t.Fatal(err)
	}
	defer once.Close()
	overlay := once.init.readOnly()
	if overlay == nil {
		t.Fatal("there is no overlay of init's directory")
	}
	for _, f := range []*os.File{memfdOf(t, shared), overlay, memfdOf(t, once)} {
		fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err == nil {
			_, err = unix.Write(fd, []byte("x"))
			unix.Close(fd)
		}
		if err == nil {
			t.Errorf("the init binary can be written: %s", f.Name())
		}
	}
	st, err := memfdOf(t, shared).Stat()
	if err != nil {
		t.Fatal(err)
	}
	if st.Size() > 5<<19 {
		t.Errorf("orlop-init has %d bytes; the limit is 2.5 MiB", st.Size())
	}
}

// TestGroup: the program is in the group that it was given.
func TestGroup(t *testing.T) {
	out := sh(t, "cat /proc/self/cgroup", func(s *specs.Spec, c *Config) {
		c.Cgroup = group(t)
		s.Linux.Namespaces = slices.DeleteFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.CgroupNamespace })
	})
	if !strings.Contains(out, "/orlop-exec-test-") {
		t.Errorf("it is not in its group:\n%s", out)
	}
}

// TestOneProcess: a limit of a single process is enough on v1, where init's threads are
// made before they are limited; on v2 the error says what may be wrong.
func TestOneProcess(t *testing.T) {
	h, err := cgroup.Open(cgroup.Options{})
	if err != nil {
		t.Fatal(err)
	}
	path := fmt.Sprintf("/orlop-exec-test-one-%d", os.Getpid())
	g, err := h.Create(path, &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: ptr(int64(1))}})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := g.Remove(contextT(t)); err != nil {
			t.Error(err)
		}
	}()
	before := leftovers()
	p, err := shared.Create(contextT(t), Config{ID: "one", Spec: spec("true"), Rootfs: layers(t, image(t)), Cgroup: g})
	if err == nil {
		if err = p.Start(contextT(t)); err == nil {
			wait(t, p)
		}
	}
	if err != nil {
		if !strings.Contains(err.Error(), "too low") && !errors.Is(err, errs.ResourceExhausted) {
			t.Errorf("got %v", err)
		}
		t.Logf("%s: %v", h.Layout().Mode, err)
	}
	if after := leftovers(); after != before {
		t.Errorf("left behind:\nbefore %s\nafter  %s", before, after)
	}
}
