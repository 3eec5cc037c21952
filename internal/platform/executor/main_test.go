package executor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/guard"
	"github.com/orlop-io/orlop/test/programs"
)

var (
	initPath  string
	probePath string
	attacker  string // testdata/attacker
	shared    *Executor
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("EXECUTOR_TEST_ROOTLESS"); dir != "" { // userns_test.go
		var err error
		if shared, err = New(Options{InitPath: dir + "/init"}); err != nil {
			panic(err)
		}
		os.Exit(m.Run())
	}
	if os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests need root: they make containers")
		os.Exit(1)
	}
	if job := os.Getenv("ORLOP_EXECUTOR_JOB"); job != "" {
		os.Exit(creator(job)) // gate_test.go
	}
	init := programs.Program{Package: "cmd/orlop-init", Name: "orlop-init", LDFlags: "-s -w"}
	if guard.Enabled {
		init.Name, init.Tags = "orlop-init-guards", "guards"
	}
	dir, remove, err := programs.Build(init, programs.Program{Package: "internal/platform/executor/testdata/probe"},
		programs.Program{Package: "internal/platform/executor/testdata/attacker"})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	initPath = filepath.Join(dir, init.Name)
	attacker = filepath.Join(dir, "attacker")
	probePath = filepath.Join(dir, "probe")
	if shared, err = New(Options{InitPath: initPath}); err != nil {
		panic(err)
	}
	if temporary, err = os.MkdirTemp("", "exec-"); err == nil {
		err = errors.Join(os.Chmod(temporary, 0o755), os.Setenv("TMPDIR", temporary))
	}
	if err != nil {
		panic(err)
	}
	before := leftovers()
	code := m.Run()
	if after := leftovers(); after != before {
		fmt.Fprintf(os.Stderr, "the tests left something behind:\nbefore: %s\nafter:  %s\n", before, after)
		code = 1
	}
	shared.Close()
	remove()
	if err := os.RemoveAll(temporary); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// temporary is where the tests' directories are. What others mount on the machine meanwhile,
// another run of these tests for one, is not below it.
var temporary string

// leftovers describes what a start could leave: descriptors, children, mounts.
func leftovers() string {
	fds, _ := os.ReadDir("/proc/self/fd")
	var names []string
	for _, f := range fds {
		to, _ := os.Readlink("/proc/self/fd/" + f.Name())
		if strings.Contains(to, "pidfd") || strings.Contains(to, "socket:") || strings.Contains(to, "ptmx") || strings.Contains(to, "nsfs") || strings.Contains(to, "net:[") {
			names = append(names, to)
		}
	}
	var children []byte
	tasks, _ := os.ReadDir("/proc/self/task")
	for _, t := range tasks {
		c, _ := os.ReadFile("/proc/self/task/" + t.Name() + "/children")
		children = append(children, c...)
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	var mine int
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, temporary+"/") {
			mine++
		}
	}
	return fmt.Sprintf("descriptors %v, children %q, mounts %d", names, children, mine)
}

// image makes a root filesystem with busybox.
func image(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "orlop-exec-test-lower")
	for _, d := range []string{"bin", "etc", "proc", "sys", "dev", "tmp", "root"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatal("busybox-static is needed: ", err)
	}
	if err := os.WriteFile(dir+"/bin/busybox", data, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, a := range []string{"sh", "true", "cat", "ls", "sleep", "id", "ps", "hostname", "pwd", "stat", "env", "tty", "stty", "mount", "readlink", "head", "mkdir", "touch", "grep", "kill", "test", "echo", "ip", "dd", "wc", "sort"} {
		if err := os.Symlink("busybox", dir+"/bin/"+a); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// layers returns an overlay on lower with a writable layer of its own.
func layers(t testing.TB, lower ...string) Rootfs {
	t.Helper()
	dir := t.TempDir()
	r := Rootfs{Lower: lower, Upper: dir + "/upper", Work: dir + "/work"}
	for _, d := range []string{r.Upper, r.Work} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

// defaultCaps are what containers of the field have by default.
var defaultCaps = []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE"}

// spec is what a pod's container looks like.
func spec(args ...string) *specs.Spec {
	return &specs.Spec{
		Version: specs.Version,
		Process: &specs.Process{
			Args: args, Cwd: "/", Env: []string{"PATH=/bin", "HOME=/root"}, NoNewPrivileges: true,
			Capabilities: &specs.LinuxCapabilities{Bounding: defaultCaps, Effective: defaultCaps, Permitted: defaultCaps},
		},
		Hostname: "box",
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
			{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		},
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.MountNamespace}, {Type: specs.PIDNamespace}, {Type: specs.IPCNamespace},
				{Type: specs.UTSNamespace}, {Type: specs.NetworkNamespace}, {Type: specs.CgroupNamespace},
			},
			MaskedPaths: []string{"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
				"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}
}

func contextT(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// result is how a process ended and what it said.
type result struct {
	out    string
	code   int
	signal int
}

// wait reaps a started process, which has a minute to end.
func wait(t testing.TB, p *Process) (code, signal int) {
	t.Helper()
	ends := []unix.PollFd{{Fd: int32(p.PIDFD().Fd()), Events: unix.POLLIN}}
	for end := time.Now().Add(time.Minute); ; {
		n, err := unix.Poll(ends, max(0, int(time.Until(end).Milliseconds())))
		if err != nil && err != unix.EINTR {
			t.Fatalf("wait: %v", err)
		}
		if n == 1 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("process %d does not end", p.PID())
		}
	}
	var ws unix.WaitStatus
	for {
		_, err := unix.Wait4(p.PID(), &ws, 0, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			t.Fatalf("wait: %v", err)
		}
		break
	}
	p.Close()
	if ws.Signaled() {
		return -1, int(ws.Signal())
	}
	return ws.ExitStatus(), 0
}

// run creates and starts a container, and returns what it wrote and how it ended.
func run(t testing.TB, c Config) result {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if c.ID == "" {
		c.ID = strings.ToLower(t.Name())
	}
	c.Stdout, c.Stderr = w, w
	p, err := shared.Create(contextT(t), c)
	if err != nil {
		w.Close()
		t.Fatal(err)
	}
	if err := p.Start(contextT(t)); err != nil {
		w.Close()
		p.Close()
		t.Fatal(err)
	}
	w.Close()
	var out bytes.Buffer
	io.Copy(&out, r)
	code, signal := wait(t, p)
	return result{out.String(), code, signal}
}

// report is what testdata/probe tells of its process.
type report struct {
	Keyring     string
	Scheduler   *unix.SchedAttr
	IOPriority  int
	Personality uintptr
	Machine     string
	Policy      int
	Nodes       uint64
	CPUs        []int
	Dumpable    int
}

// probe runs testdata/probe in a container that change has had its way with.
func probe(t *testing.T, change func(s *specs.Spec, c *Config)) report {
	t.Helper()
	out := sh(t, "exec /probe", func(s *specs.Spec, c *Config) {
		s.Mounts = append(s.Mounts, specs.Mount{Source: probePath, Destination: "/probe", Type: "bind", Options: []string{"bind", "ro"}})
		change(s, c)
	})
	return probed(t, out)
}

func probed(t *testing.T, out string) (r report) {
	t.Helper()
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		t.Fatalf("the probe said %q: %v", out, err)
	}
	return r
}
