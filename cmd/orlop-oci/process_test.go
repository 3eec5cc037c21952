package main

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/platform/pidfd"
)

func TestExec(t *testing.T) {
	r := newRig(t, "/bin/sleep", "100")
	r.ok("run", "-d", r.id)
	defer r.kill()
	process := filepath.Join(t.TempDir(), "process.json")
	os.WriteFile(process, []byte(`{"args": ["/bin/sh", "-c", "pwd; id -u; echo $X"], "cwd": "/tmp", "env": ["X=y", "PATH=/bin"], "user": {"uid": 5}}`), 0o644)
	for _, tt := range []struct {
		name string
		args []string
		out  string
		code int
	}{
		{"output", []string{r.id, "echo", "-n", "hello"}, "hello", 0},
		{"code", []string{r.id, "sh", "-c", "exit 9"}, "", 9},
		{"signal", []string{r.id, "sh", "-c", "kill -TERM $$"}, "", 128 + 15},
		{"user", []string{"--user", "1000:1001", r.id, "sh", "-c", "id; echo $HOME"}, "uid=1000(some) gid=1001\n/home/some\n", 0},
		{"groups", []string{"-u", "1000:1001", "-g", "7", "-g", "8", r.id, "id", "-G"}, "1001 7 8\n", 0},
		{"cwd", []string{"--cwd", "/tmp", r.id, "pwd"}, "/tmp\n", 0},
		{"env", []string{"-e", "A=b", "--env=C=d", r.id, "sh", "-c", "echo $A $C"}, "b d\n", 0},
		{"no new privileges", []string{"--no-new-privs", r.id, "sh", "-c", "grep -h NoNewPrivs /proc/self/status"}, "NoNewPrivs:\t1\n", 0},
		{"capability", []string{"--cap", "CAP_SYS_TIME", r.id, "sh", "-c", "grep -h CapBnd /proc/self/status"}, "CapBnd:\t0000000022000420\n", 0},
		{"process", []string{"--process", process, r.id}, "/tmp\n5\ny\n", 0},
		{"flags of the program", []string{r.id, "echo", "--user", "-t"}, "--user -t\n", 0},
		{"not found", []string{r.id, "none"}, "", 255},
		{"no such user", []string{"--user", "me", r.id, "true"}, "", 255},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := r.run(append([]string{"exec"}, tt.args...)...)
			if got.out != tt.out || got.code != tt.code {
				t.Errorf("%+v, want %q and %d", got, tt.out, tt.code)
			}
		})
	}
	pid := filepath.Join(t.TempDir(), "pid")
	r.ok("exec", "--detach", "--pid-file", pid, r.id, "sleep", "50")
	data, _ := os.ReadFile(pid)
	if n, err := strconv.Atoi(string(data)); err != nil || unix.Kill(n, 0) != nil {
		t.Errorf("pid file %q", data)
	}
	var pids []int
	if err := json.Unmarshal([]byte(r.ok("ps", "--format", "json", r.id)), &pids); err != nil || len(pids) != 2 {
		t.Errorf("processes %v: %v", pids, err)
	}
	if out := r.ok("ps", r.id); !strings.Contains(out, "PID") || !strings.Contains(out, "sleep 50") {
		t.Errorf("%q", out)
	}
	if out := r.ok("ps", r.id, "-o", "pid,args"); !strings.Contains(out, "sleep 50") || strings.Contains(out, "UID") {
		t.Errorf("%q", out)
	}
}

// receive takes a descriptor, and the message with it, from who connects to a socket.
func receive(t *testing.T, l *net.UnixListener) (message string, f *os.File) {
	t.Helper()
	l.SetDeadline(time.Now().Add(10 * time.Second))
	c, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	buf, oob := make([]byte, 100), make([]byte, 100)
	n, oobn, _, _, err := c.ReadMsgUnix(buf, oob)
	if err != nil || n == 0 {
		t.Fatal(n, err)
	}
	ms, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(ms) != 1 {
		t.Fatal(ms, err)
	}
	fds, err := unix.ParseUnixRights(&ms[0])
	if err != nil || len(fds) != 1 {
		t.Fatal(fds, err)
	}
	unix.SetNonblock(fds[0], true)
	return string(buf[:n]), os.NewFile(uintptr(fds[0]), "received")
}

// listen makes a socket at a path that is short enough for one.
func listen(t *testing.T) (l *net.UnixListener, path string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "orlop-oci")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if l, err = net.ListenUnix("unix", &net.UnixAddr{Name: dir + "/s", Net: "unix"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l, dir + "/s"
}

// A console socket gets the master of the terminal (create and exec).
func TestConsoleSocket(t *testing.T) {
	r := newRig(t, "/bin/sh", "-c", "tty; stty size; read x; echo got $x")
	r.spec.Process.Terminal = true
	r.spec.Process.ConsoleSize = nil
	r.save()
	l, socket := listen(t)
	r.ok("create", "--console-socket", socket, r.id)
	_, master := receive(t, l)
	defer master.Close()
	unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 33, Col: 77})
	unix.SetNonblock(int(master.Fd()), true)
	r.ok("start", r.id)
	if res := r.run("exec", "-t", "-d", "--console-socket", socket, r.id, "sh", "-c", "tty; exit 0"); res.code != 0 {
		t.Fatalf("%+v", res)
	}
	_, second := receive(t, l)
	if out := all(second); !strings.Contains(out, "/dev/pts/1") {
		t.Errorf("exec wrote %q", out)
	}
	second.Close()
	master.WriteString("it\n")
	if out := all(master); !strings.Contains(out, "/dev/pts/0") || !strings.Contains(out, "33 77") || !strings.Contains(out, "got it") {
		t.Errorf("wrote %q", out)
	}
	r.reaches("stopped")
	r.ok("delete", r.id)
	r.fails("cannot allocate tty", "create", r.id)
}

// A pidfd socket gets a descriptor of the process, before it is started, and words by which one tells
// the container's process from a further one.
func TestPIDFDSocket(t *testing.T) {
	r := newRig(t, "/bin/sleep", "100")
	l, socket := listen(t)
	signal := func(f *os.File, sig syscall.Signal) {
		t.Helper()
		if err := pidfd.Signal(f, sig); err != nil {
			t.Error(err)
		}
	}
	number := func(f *os.File) string { // proc_pid_fdinfo(5)
		data, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", f.Fd()))
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(data), "Pid:\t")
		pid, _, _ := strings.Cut(rest, "\n")
		return pid
	}
	r.ok("create", "--pidfd-socket", socket, r.id)
	message, first := receive(t, l)
	defer first.Close()
	if pid := strconv.Itoa(r.state().Pid); message != "standard" || number(first) != pid {
		t.Errorf("create sent %q with a descriptor of %s, want one of %s", message, number(first), pid)
	}
	r.ok("start", r.id)
	pidFile := t.TempDir() + "/pid"
	if res := r.run("exec", "-d", "--pidfd-socket", socket, "--pid-file", pidFile, r.id, "sleep", "100"); res.code != 0 {
		t.Fatalf("%+v", res)
	}
	message, further := receive(t, l)
	defer further.Close()
	if pid, _ := os.ReadFile(pidFile); message != "setns" || number(further) != string(pid) {
		t.Errorf("exec sent %q with a descriptor of %s, want one of %s", message, number(further), pid)
	}
	signal(further, syscall.SIGKILL)
	eventually(t, "the command still runs", func() (bool, string) {
		reapOrphans(false)
		return number(further) == "-1" || unix.Kill(atoi(t, pidFile), 0) == unix.ESRCH, ""
	})
	if st := r.state().Status; st != "running" {
		t.Errorf("the container is %s", st)
	}
	signal(first, syscall.SIGKILL)
	r.reaches("stopped")
	r.ok("delete", r.id)

	// In the foreground it is sent too.
	done := make(chan result, 1)
	go func() { done <- r.run("run", "--pidfd-socket", socket, r.id) }()
	message, first = receive(t, l)
	defer first.Close()
	r.reaches("running")
	signal(first, syscall.SIGKILL)
	if res := <-done; message != "standard" || res.code != 137 {
		t.Errorf("run sent %q and ended so: %+v", message, res)
	}

	// Where nobody listens nothing is made.
	l.Close()
	r.fails("pidfd socket "+socket, "create", "--pidfd-socket", socket, r.id)
	r.fails("pidfd socket /no/such", "run", "--pidfd-socket", "/no/such", r.id)
	r.fails("container does not exist", "state", r.id)
	r.ok("run", "-d", r.id)
	r.fails("pidfd socket /no/such", "exec", "--pidfd-socket", "/no/such", r.id, "true")
	r.kill()
}

func atoi(t *testing.T, file string) int {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(string(data))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// In the foreground the terminal is the caller's.
func TestForegroundTerminal(t *testing.T) {
	r := newRig(t, "/bin/sh", "-c", "stty size; read x; echo got $x; exit 3")
	r.spec.Process.Terminal = true
	r.save()
	master, slave := pty(t)
	unix.IoctlSetWinsize(int(slave.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 21, Col: 55})
	before, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	cmd := r.command("run", r.id)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the terminal is not raw", func() (bool, string) {
		now, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
		return err == nil && now.Lflag&unix.ICANON == 0, fmt.Sprint(err)
	})
	master.WriteString("it\r")
	if c := code(t, cmd.Wait()); c != 3 {
		t.Errorf("code %d", c)
	}
	after, _ := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
	if *after != *before {
		t.Error("the terminal is not as it was")
	}
	slave.Close()
	if out := all(master); !strings.Contains(out, "21 55") || !strings.Contains(out, "got it") {
		t.Errorf("wrote %q", out)
	}
}

// Signals go on to the process, the rare ones too.
func TestForegroundSignals(t *testing.T) {
	r := newRig(t, "/bin/sh", "-c", `for s in TERM USR1 HUP 37; do trap "echo got $s" $s; done; echo ready; while :; do sleep 0.02; done`)
	cmd := r.command("run", r.id)
	out, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = w, os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	line := func() string {
		var b [1]byte
		var s string
		out.SetReadDeadline(time.Now().Add(10 * time.Second))
		for {
			if n, err := out.Read(b[:]); err != nil || n == 0 {
				t.Fatalf("after %q: %v", s, err)
			}
			if b[0] == '\n' {
				return s
			}
			s += string(b[:])
		}
	}
	if got := line(); got != "ready" {
		t.Fatal(got)
	}
	for _, s := range []struct {
		sig  unix.Signal
		name string
	}{{unix.SIGTERM, "TERM"}, {unix.SIGUSR1, "USR1"}, {unix.SIGHUP, "HUP"}, {37, "37"}} {
		cmd.Process.Signal(s.sig)
		if s.sig == 37 { // a rare one, which is not taken from the first moment
			got := make(chan bool)
			defer close(got)
			go func() {
				for {
					select {
					case <-got:
						return
					case <-time.After(30 * time.Millisecond):
						cmd.Process.Signal(s.sig)
					}
				}
			}()
		}
		if got := line(); got != "got "+s.name {
			t.Errorf("%q, want %s", got, s.name)
		}
	}
	// The container's end by a signal is the command's by its code.
	r.ok("kill", r.id, "SIGKILL")
	if c := code(t, cmd.Wait()); c != 128+9 {
		t.Errorf("code %d", c)
	}
}

func TestDescriptors(t *testing.T) {
	r := newRig(t, "/bin/sh", "-c", "cat <&3; cat <&4; echo $LISTEN_FDS $LISTEN_PID; ls /proc/self/fd | wc -l")
	os.Symlink("busybox", r.bundle+"/rootfs/bin/wc")
	var files []*os.File
	for i := range 2 {
		name := filepath.Join(t.TempDir(), "f")
		os.WriteFile(name, []byte(fmt.Sprintf("file %d\n", i)), 0o644)
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files = append(files, f)
	}
	cmd := r.command("run", "--preserve-fds", "2", r.id)
	cmd.ExtraFiles = files
	out, err := cmd.Output()
	if err != nil || !strings.HasPrefix(string(out), "file 0\nfile 1\n\n") {
		t.Errorf("%q %v", out, err)
	}
	for _, f := range files {
		f.Seek(0, 0)
	}
	// The number of the process is known only once it is there: a shell executes the command.
	sh := r.command("run", "--preserve-fds", "1", r.id)
	sh.Path, sh.Args = "/bin/sh", append([]string{"sh", "-c", `LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" "$@"`}, sh.Args...)
	sh.ExtraFiles = files
	out, err = sh.Output()
	if err != nil || !strings.HasPrefix(string(out), "file 0\nfile 1\n1 1\n") {
		t.Errorf("%q %v", out, err)
	}
}

// NOTIFY_SOCKET: only READY=1 gets out, with the number that means something outside.
func TestNotify(t *testing.T) {
	r := newRig(t, "/inside")
	dir, err := os.MkdirTemp("", "orlop-oci")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: dir + "/n", Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	notifier(t, r.bundle+"/rootfs/inside")
	r.env = []string{"NOTIFY_SOCKET=" + dir + "/n"}
	r.ok("create", r.id)
	r.ok("start", r.id) // waits for it
	l.SetDeadline(time.Now().Add(10 * time.Second))
	buf := make([]byte, 100)
	n, err := l.Read(buf)
	if want := fmt.Sprintf("READY=1\nMAINPID=%d", r.state().Pid); err != nil || string(buf[:n]) != want {
		t.Errorf("%q %v, want %q", buf[:n], err, want)
	}
	r.kill()
}

func TestPauseUpdateEvents(t *testing.T) {
	r := newRig(t, "/bin/sleep", "100")
	r.ok("run", "-d", r.id)
	r.fails("not paused", "resume", r.id)
	r.ok("pause", r.id)
	if s := r.state().Status; s != "paused" {
		t.Errorf("status %s", s)
	}
	r.fails("is paused", "exec", r.id, "true")
	waiting := r.command("exec", "--ignore-paused", r.id, "sh", "-c", "exit 4") // until it is resumed
	waiting.Stderr = os.Stderr
	if err := waiting.Start(); err != nil {
		t.Fatal(err)
	}
	r.ok("resume", r.id)
	r.reaches("running")
	if c := code(t, waiting.Wait()); c != 4 {
		t.Errorf("code %d", c)
	}

	r.ok("update", "--memory", "64m", "--pids-limit", "55", "--cpu-share", "512", r.id)
	if v := r.file("memory", "memory.limit_in_bytes", "memory.max"); v != "67108864" {
		t.Errorf("memory %s", v)
	}
	if v := r.file("pids", "pids.max", "pids.max"); v != "55" {
		t.Errorf("pids %s", v)
	}
	if res := r.feed(`{"memory": {"limit": 50331648, "swap": 0}, "cpu": {"quota": 50000, "period": 100000, "shares": 0}}`, "update", "-r", "-", r.id); res.code != 0 {
		t.Errorf("%+v", res)
	}
	if v := r.file("memory", "memory.limit_in_bytes", "memory.max"); v != "50331648" {
		t.Errorf("memory %s", v)
	}
	r.fails("read the limits", "update", "-r", "/nowhere", r.id)
	r.fails("linux.intelRdt: the container was created without", "update", "--l3-cache-schema", "L3:0=f", r.id)
	// Of what is refused nothing stays.
	r.fails("cpuset.cpus", "update", "--pids-limit", "44", "--memory", "40m", "--cpu-share", "99", "--cpuset-cpus", "4000", r.id)
	if res := r.feed(`{"memory": {"limit": 41943040}, "pids": {"limit": 44}, "unified": {"memory.none": "1"}}`, "update", "-r", "-", r.id); res.code == 0 {
		t.Error("a file that is not there was set")
	}
	if memory, pids := r.file("memory", "memory.limit_in_bytes", "memory.max"), r.file("pids", "pids.max", "pids.max"); memory != "50331648" || pids != "55" {
		t.Errorf("after refused updates: memory %s, pids %s", memory, pids)
	}

	var e struct {
		Type, ID string
		Data     struct {
			CPU    struct{ Usage struct{ Total uint64 } }
			Memory struct{ Usage struct{ Limit, Usage uint64 } }
			Pids   struct{ Current, Limit uint64 }
		}
	}
	if err := json.Unmarshal([]byte(r.ok("events", "--stats", r.id)), &e); err != nil {
		t.Fatal(err)
	}
	if e.Type != "stats" || e.ID != r.id || e.Data.CPU.Usage.Total == 0 || e.Data.Memory.Usage.Limit != 50331648 || e.Data.Pids.Current != 1 || e.Data.Pids.Limit != 55 {
		t.Errorf("%+v", e)
	}
	// One that is killed for want of memory is told of.
	events := r.command("events", "--interval", "50ms", r.id)
	out, err := events.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := events.Start(); err != nil {
		t.Fatal(err)
	}
	dec := json.NewDecoder(out)
	if err := dec.Decode(&e); err != nil {
		t.Fatal(err)
	}
	if res := r.run("exec", r.id, "dd", "if=/dev/zero", "of=/dev/null", "bs=100M", "count=1"); res.code != 128+9 {
		t.Errorf("%+v", res)
	}
	for e.Type = ""; e.Type != "oom"; {
		if err := dec.Decode(&e); err != nil {
			t.Fatal("no event of it: ", err)
		}
	}
	r.ok("kill", r.id, "KILL")
	if err := events.Wait(); err != nil {
		t.Errorf("events: %v", err)
	}
	r.reaches("stopped")
	r.fails("container not running", "events", r.id)
	r.fails("container not running", "update", "--memory", "64m", r.id)
	r.ok("delete", r.id)
}

func TestSpecAndFeatures(t *testing.T) {
	r := newRig(t, "/bin/true")
	dir := t.TempDir()
	r.ok("spec", "--bundle", dir)
	r.fails("exists", "spec", "--bundle", dir)
	// What it writes runs.
	data, _ := os.ReadFile(dir + "/config.json")
	if err := json.Unmarshal(data, r.spec); err != nil {
		t.Fatal(err)
	}
	r.spec.Process.Terminal, r.spec.Process.Args = false, []string{"sh", "-c", "echo ok"}
	r.spec.Linux.CgroupsPath = "/" + cgroupName + "/spec"
	r.save()
	if out := r.ok("run", r.id); out != "ok\n" {
		t.Errorf("%q", out)
	}
	r.ok("spec", "--rootless", "--bundle", t.TempDir())
	var f struct {
		OCIVersionMin, OCIVersionMax string
		Hooks, MountOptions          []string
		Linux                        struct {
			Namespaces, Capabilities []string
			Cgroup                   struct{ V1, V2, Systemd *bool }
			Seccomp                  struct{ Actions, Operators, Archs, KnownFlags, SupportedFlags []string }
		}
	}
	if err := json.Unmarshal([]byte(r.ok("features")), &f); err != nil {
		t.Fatal(err)
	}
	if f.OCIVersionMin != "1.0.0" || len(f.Hooks) != 6 || len(f.MountOptions) < 50 || len(f.Linux.Capabilities) < 38 || len(f.Linux.Namespaces) < 6 ||
		f.Linux.Cgroup.V2 == nil || len(f.Linux.Seccomp.Actions) < 8 || len(f.Linux.Seccomp.SupportedFlags) == 0 || len(f.Linux.Seccomp.Archs) == 0 {
		t.Errorf("%+v", f)
	}
}
