// Package vm runs a program on a machine that is not this one: a pure cgroup-v2 host
// with Debian's kernel, emulated by QEMU, whose root is this host's, read-only, with
// everything that is written going to memory.
//
//	code, err := vm.Run(ctx, vm.Options{Stdout: os.Stdout}, "/tmp/x/cgroup.test", "-test.run", "V2")
//
// It is for tests that need another kernel. There is no KVM to count on, so all is
// emulated: the trip takes about ten seconds, and what runs in the machine is 5 to 30
// times slower than outside. It needs root, or at least read access to all that the
// program in the machine reads, and the packages qemu-system-x86 and qemu-system-common
// (virtiofsd from Debian 13 on); the kernel's package is downloaded once (see cacheDir).
package vm

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/orlop-io/orlop/test/vm/boot"
)

// Options describe the machine. The zero value is a useful one.
type Options struct {
	MemoryMiB int // 0 is 1024
	CPUs      int // 0 is 2
	// Stdout and Stderr receive the program's output as it comes; nil drops it.
	Stdout, Stderr io.Writer
	// Console receives what the kernel writes; nil keeps it for errors only.
	Console io.Writer
	// Env is the program's whole environment; nil is a small one with the PATH of this
	// process. TMPDIR is always set to a tmpfs of the machine.
	Env []string
	Dir string // the program's working directory; "" is /
	// Systemd boots systemd as process 1, and runs the program in a unit under it.
	Systemd bool
	// Modules are kernel modules to load besides the usual ones. What the kernel asks
	// for by itself, such as an nftables expression, it gets without that.
	Modules []string
	// KernelArgs are added to the kernel's command line.
	KernelArgs []string
	// Timeout ends the machine; 0 is ten minutes. It counts besides ctx.
	Timeout time.Duration
}

// usualModules are what no code asks the kernel for in a way that loads them.
var usualModules = []string{"fuse", "loop", "xfs", "veth", "nf_tables", "nft_masq", "nft_nat", "nft_chain_nat", "tun"}

// Run boots a machine, runs argv in it, and returns its exit code: 128 plus the number
// for a program that a signal ended. argv[0] and other paths are those of this host. An
// error says that the program was not run to its end, and why. When Run returns, no
// process and no file of the machine is left.
func Run(ctx context.Context, o Options, argv ...string) (code int, err error) {
	if o.Timeout == 0 {
		o.Timeout = 10 * time.Minute
	}
	ctx, cancel := context.WithTimeoutCause(ctx, o.Timeout, fmt.Errorf("the machine did not end within %s", o.Timeout))
	defer cancel()
	fail := func(err error) (int, error) { return -1, fmt.Errorf("run %s in a machine: %w", argv[0], err) }
	tools, err := findTools()
	if err != nil {
		return fail(err)
	}
	cache, err := cacheDir()
	if err != nil {
		return fail(err)
	}
	k, err := fetchKernel(ctx, cache)
	if err != nil {
		return fail(err)
	}
	sweep()
	dir, err := os.MkdirTemp("", "orlop-vm-"+strconv.Itoa(os.Getpid())+"-")
	if err != nil {
		return fail(err)
	}
	defer os.RemoveAll(dir)
	if o.Env == nil {
		o.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=/root", "LC_ALL=C"}
	}
	c := &boot.Config{Argv: argv, Env: o.Env, Dir: o.Dir, Systemd: o.Systemd, Modules: append(usualModules, o.Modules...)}
	if c.Dir == "" {
		c.Dir = "/"
	}
	initrd, err := initramfs(ctx, k, c, dir)
	if err != nil {
		return fail(err)
	}
	m := &machine{Options: o, tools: tools, kernel: k, initrd: initrd, dir: dir}
	s, err := m.run(ctx)
	if err != nil {
		return fail(err)
	}
	if s.Error != "" {
		return fail(errors.New(s.Error))
	}
	return s.Code, nil
}

// sweep removes the directories of runs that were killed before they could.
func sweep() {
	dirs, _ := filepath.Glob(filepath.Join(os.TempDir(), "orlop-vm-*-*"))
	for _, d := range dirs {
		pid := strings.Split(filepath.Base(d), "-")[2]
		if _, err := os.Stat("/proc/" + pid); os.IsNotExist(err) {
			os.RemoveAll(d)
		}
	}
}

type tools struct {
	qemu, virtiofsd string
}

// findTools names the package of what is missing.
func findTools() (t tools, err error) {
	if runtime.GOARCH != "amd64" {
		return t, fmt.Errorf("test machines are x86-64 only, this host is %s", runtime.GOARCH)
	}
	if t.qemu, err = exec.LookPath("qemu-system-x86_64"); err != nil {
		return t, errors.New("qemu-system-x86_64 is missing; run: apt-get install qemu-system-x86")
	}
	// Debian 12 has it in qemu-system-common, 13 in a package of its own.
	for _, p := range []string{"/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd", "/usr/lib/virtiofsd"} {
		if _, err := os.Stat(p); err == nil {
			t.virtiofsd = p
			return t, nil
		}
	}
	return t, errors.New("virtiofsd is missing; run: apt-get install virtiofsd, or, where there is no such package: apt-get install qemu-system-common")
}

type machine struct {
	Options
	tools
	kernel *kernel
	initrd string
	dir    string
}

func (m *machine) run(ctx context.Context) (s boot.Status, err error) {
	// Both processes are started by one thread that outlives them, so that they may be
	// tied to its life: should this process be killed, they are too.
	done := make(chan struct{})
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(done)
		s, err = m.runLocked(ctx)
	}()
	<-done
	return s, err
}

func (m *machine) runLocked(ctx context.Context) (boot.Status, error) {
	var s boot.Status
	var fsLog, console tail
	fsd, err := m.startVirtiofsd(ctx, &fsLog)
	if err != nil {
		return s, err
	}
	defer func() { // ends by itself when QEMU hangs up
		t := time.AfterFunc(3*time.Second, func() { fsd.Process.Kill() })
		fsd.Wait()
		t.Stop()
	}()

	// The machine's ports are sockets to which QEMU connects.
	var ports sync.WaitGroup
	status := &bytes.Buffer{}
	var listeners []net.Listener
	var one sync.Mutex // Stdout and Stderr may be the same writer
	for name, w := range map[string]io.Writer{boot.PortStdout: m.Stdout, boot.PortStderr: m.Stderr, boot.PortStatus: status} {
		if w == nil {
			w = io.Discard
		}
		l, err := net.Listen("unix", filepath.Join(m.dir, name))
		if err != nil {
			fsd.Process.Kill()
			return s, err
		}
		listeners = append(listeners, l)
		ports.Go(func() {
			c, err := l.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			io.Copy(lockedWriter{&one, w}, c)
		})
	}
	out := io.Writer(&console)
	if m.Console != nil {
		out = io.MultiWriter(&console, m.Console)
	}
	qemu := m.qemuCommand(ctx)
	qemu.Stdout, qemu.Stderr = out, out
	qemuErr := qemu.Run()
	for _, l := range listeners {
		l.Close()
	}
	ports.Wait()
	if ctx.Err() != nil {
		return s, fmt.Errorf("%w; the end of its console:\n%s", context.Cause(ctx), console.String())
	}
	if err := json.Unmarshal(status.Bytes(), &s); err != nil {
		fsd.Process.Kill()
		return s, fmt.Errorf("the machine ended without a word (%s: %v); the end of its console:\n%s\nvirtiofsd:\n%s", m.qemu, qemuErr, console.String(), fsLog.String())
	}
	return s, nil
}

func (m *machine) socket(name string) string { return filepath.Join(m.dir, name) }

func (m *machine) startVirtiofsd(ctx context.Context, log io.Writer) (*exec.Cmd, error) {
	help, _ := exec.CommandContext(ctx, m.virtiofsd, "--help").CombinedOutput()
	socket := m.socket("fs")
	args := []string{"-f", "--socket-path=" + socket, "-o", "source=/", "-o", "cache=always", "-o", "sandbox=chroot"}
	if bytes.Contains(help, []byte("--shared-dir")) { // the one written in Rust
		args = []string{"--socket-path=" + socket, "--shared-dir=/", "--cache=always", "--sandbox=chroot"}
	}
	cmd := exec.CommandContext(ctx, m.virtiofsd, args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = 2 * time.Second
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	for range 500 {
		if _, err := os.Stat(socket); err == nil {
			return cmd, nil
		}
		// A process that has ended is still there to be signalled until it is reaped.
		if b, err := os.ReadFile("/proc/" + strconv.Itoa(cmd.Process.Pid) + "/stat"); err != nil || strings.Contains(string(b), ") Z ") {
			break
		}
		time.Sleep(10 * time.Millisecond) // it says nothing when it is ready
	}
	cmd.Process.Kill()
	cmd.Wait()
	return nil, fmt.Errorf("%s does not answer:\n%s", m.virtiofsd, log)
}

func (m *machine) qemuCommand(ctx context.Context) *exec.Cmd {
	mem, cpus := max(m.MemoryMiB, 0), max(m.CPUs, 0)
	if mem == 0 {
		mem = 1024
	}
	if cpus == 0 {
		cpus = 2
	}
	line := []string{
		"console=ttyS0", "loglevel=4", "panic=-1", "reboot=t", "cgroup_no_v1=all", "random.trust_cpu=on", "mitigations=off",
		// With more than one emulated CPU on a busy host the clock's watchdog errs.
		"clocksource=tsc", "tsc=reliable", "no_timer_check", "rcupdate.rcu_cpu_stall_suppress=1",
	}
	if khz := hostKHz(); khz > 0 { // measured in emulation, it is sometimes so wrong that the boot hangs
		line = append(line, "tsc_early_khz="+strconv.Itoa(khz))
	}
	args := []string{
		"-M", "microvm,acpi=on,rtc=on,isa-serial=on,x-option-roms=off,memory-backend=mem",
		"-accel", "tcg,thread=multi", "-cpu", "max", "-smp", strconv.Itoa(cpus), "-m", strconv.Itoa(mem) + "M",
		"-object", "memory-backend-memfd,id=mem,share=on,size=" + strconv.Itoa(mem) + "M", // virtiofsd reads and writes in it
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio",
		"-global", "virtio-mmio.force-legacy=false",
		"-kernel", m.kernel.image, "-initrd", m.initrd, "-append", strings.Join(append(line, m.KernelArgs...), " "),
		"-chardev", "socket,id=fs,path=" + m.socket("fs"),
		"-device", "vhost-user-fs-device,queue-size=1024,chardev=fs,tag=" + boot.Tag,
		"-device", "virtio-serial-device",
	}
	for _, p := range []string{boot.PortStdout, boot.PortStderr, boot.PortStatus} {
		args = append(args, "-chardev", "socket,id="+p+",path="+m.socket(p), "-device", "virtserialport,chardev="+p+",name="+p)
	}
	cmd := exec.CommandContext(ctx, m.qemu, args...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = 2 * time.Second
	return cmd
}

// hostKHz is the frequency of the host's time stamp counter, 0 if it cannot be told.
func hostKHz() int {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return 0
	}
	for line := range strings.SplitSeq(string(b), "\n") {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "cpu MHz" {
			mhz, _ := strconv.ParseFloat(strings.TrimSpace(v), 64)
			return int(mhz * 1000)
		}
	}
	return 0
}

type lockedWriter struct {
	mu *sync.Mutex
	w  io.Writer
}

func (l lockedWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// tail keeps the end of what is written to it.
type tail struct {
	mu sync.Mutex
	b  []byte
}

const tailBytes = 16 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if len(t.b) > 2*tailBytes {
		t.b = append(t.b[:0], t.b[len(t.b)-tailBytes:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.b[max(0, len(t.b)-tailBytes):])
}
