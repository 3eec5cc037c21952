// Package vm boots a machine that is not this one: a pure cgroup-v2 host with Debian's
// kernel, emulated by QEMU, whose root is this host's, read-only, with everything that is
// written going to memory. Commands run in it one after another:
//
//	m, err := vm.Boot(ctx, vm.Options{})
//	defer m.Close()
//	code, err := m.Run(vm.Command{Argv: []string{"/tmp/x/cgroup.test", "-test.run", "V2"}, Stdout: os.Stdout})
//
// It is for tests that need another kernel. There is no KVM to count on, so all is
// emulated: the trip takes about ten seconds, and what runs in the machine is 5 to 30
// times slower than outside. It needs root, or at least read access to all that the
// commands read, and the packages qemu-system-x86 and qemu-system-common
// (virtiofsd from Debian 13 on); the kernel's package is downloaded once (see package cache).
//
// To have the tests of another package run there, add a line to the table in
// hosts_test.go.
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

	"github.com/orlop-io/orlop/test/cache"
	"github.com/orlop-io/orlop/test/vm/boot"
)

// Options describe the machine. The zero value is a useful one.
type Options struct {
	MemoryMiB int // 0 is 1024
	CPUs      int // 0 is 2
	// Console receives what the kernel writes; nil keeps it for errors only.
	Console io.Writer
	// Systemd boots systemd as process 1, and runs commands in a unit under it.
	Systemd bool
	// Modules are kernel modules to load besides the usual ones. What the kernel asks
	// for by itself, such as an nftables expression, it gets without that.
	Modules []string
	// Disk is a file that the machine has as /dev/vda. What was written to it stays, also
	// after Kill: what the machine's kernel had still in memory is lost with it.
	Disk string
	// KernelArgs are added to the kernel's command line.
	KernelArgs []string
	// Timeout ends the machine; 0 is ten minutes. It counts besides the context.
	Timeout time.Duration
	// Silence ends a machine whose command has printed nothing for so long; 0 is four minutes.
	Silence time.Duration
}

// Command is what to run in a machine. Paths are those of this host.
type Command struct {
	Argv []string
	// Env is the whole environment; nil is a small one with the PATH of this process.
	// TMPDIR is always set to a tmpfs of the machine.
	Env []string
	Dir string // working directory; "" is /
	// Stdout and Stderr receive the output as it comes; nil drops it. They may be the same.
	Stdout, Stderr io.Writer
}

// usualModules are what no code asks the kernel for in a way that loads them.
var usualModules = []string{"fuse", "loop", "xfs", "veth", "nf_tables", "nft_masq", "nft_nat", "nft_chain_nat", "tun"}

// Machine is a machine that runs. Its methods are for one goroutine at a time.
type Machine struct {
	o      Options
	tools  tools
	kernel *kernel
	initrd string
	dir    string

	ctx            context.Context // ends the machine
	cancel         func()
	port           net.Conn // to the guest
	qemu           *exec.Cmd
	console, fsLog tail
	silence        time.Duration // after which it is ended
	done           chan struct{} // both processes have ended
}

// patience is how long a boot may take, which is eight seconds where nothing else runs.
var patience = 2 * time.Minute

// Boot starts a machine and waits until commands can run in it. It lives until Close or
// Kill, or the end of ctx, and no longer than this process. After Close and Kill no
// process and no file of it is left.
func Boot(ctx context.Context, o Options) (m *Machine, err error) {
	for range 2 { // an emulated kernel hangs in its boot once in some hundred times
		if m, err = start(ctx, o); !errors.Is(err, os.ErrDeadlineExceeded) {
			break
		}
	}
	return m, err
}

func start(ctx context.Context, o Options) (_ *Machine, err error) {
	if o.Timeout == 0 {
		o.Timeout = 10 * time.Minute
	}
	if o.Silence == 0 {
		o.Silence = 4 * time.Minute
	}
	m := &Machine{o: o, silence: patience, done: make(chan struct{})}
	m.ctx, m.cancel = context.WithTimeoutCause(ctx, o.Timeout, fmt.Errorf("the machine did not end within %s", o.Timeout))
	defer func() {
		if err != nil {
			m.cancel()
			err = fmt.Errorf("boot a machine: %w", err)
		}
	}()
	if m.tools, err = findTools(); err != nil {
		return nil, err
	}
	dir, err := cache.Dir()
	if err != nil {
		return nil, err
	}
	if m.kernel, err = fetchKernel(m.ctx, dir); err != nil {
		return nil, err
	}
	sweep()
	if m.dir, err = os.MkdirTemp("", "orlop-vm-"+strconv.Itoa(os.Getpid())+"-"); err != nil {
		return nil, err
	}
	c := &boot.Config{Systemd: o.Systemd, Modules: append(usualModules, o.Modules...)}
	if o.Disk != "" {
		c.Modules = append(c.Modules, "virtio_blk", "ext4")
	}
	if m.initrd, err = initramfs(m.ctx, m.kernel, c, m.dir); err != nil {
		os.RemoveAll(m.dir)
		return nil, err
	}
	started := make(chan error, 1)
	go m.live(started)
	if err := <-started; err != nil {
		return nil, err
	}
	s, err := m.receive(boot.FrameReady, nil, nil)
	if err == nil && s.Error != "" {
		err = errors.New(s.Error)
	}
	if err != nil {
		m.Kill()
		return nil, err
	}
	m.silence = o.Silence
	return m, nil
}

// Run runs a command and returns its exit code: 128 plus the number for one that a signal
// ended. An error says that it was not run to its end, and why.
func (m *Machine) Run(c Command) (code int, err error) {
	if c.Env == nil {
		c.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=/root", "LC_ALL=C"}
	}
	if c.Dir == "" {
		c.Dir = "/"
	}
	s := boot.Status{}
	if err = boot.WriteJSON(m.port, boot.FrameCommand, boot.Command{Argv: c.Argv, Env: c.Env, Dir: c.Dir}); err != nil {
		err = m.why(err)
	} else if s, err = m.receive(boot.FrameEnd, c.Stdout, c.Stderr); err == nil && s.Error != "" {
		err = errors.New(s.Error)
	}
	if err != nil {
		return -1, fmt.Errorf("run %s in a machine: %w", c.Argv[0], err)
	}
	return s.Code, nil
}

// receive takes frames up to one of that kind.
func (m *Machine) receive(kind byte, stdout, stderr io.Writer) (s boot.Status, err error) {
	for {
		m.port.SetReadDeadline(time.Now().Add(m.silence))
		k, content, err := boot.ReadFrame(m.port)
		if err != nil {
			return s, m.why(err)
		}
		switch {
		case k == kind:
			return s, json.Unmarshal(content, &s)
		case k == boot.FrameStdout && stdout != nil:
			stdout.Write(content)
		case k == boot.FrameStderr && stderr != nil:
			stderr.Write(content)
		}
	}
}

// why ends the machine and tells why it does not answer.
func (m *Machine) why(err error) error {
	cause := context.Cause(m.ctx)
	m.Kill()
	switch {
	case cause == nil && errors.Is(err, os.ErrDeadlineExceeded):
		cause = fmt.Errorf("the machine has said nothing for %s, and was ended (%w)", m.silence, err)
	case cause == nil:
		cause = fmt.Errorf("the machine ended without a word (%s: %v, %w); virtiofsd: %s", m.tools.qemu, m.qemu.ProcessState, err, m.fsLog.String())
	}
	return fmt.Errorf("%w; the end of its console:\n%s", cause, m.console.String())
}

// Close ends the machine in order: what is on its disk is written.
func (m *Machine) Close() {
	if boot.WriteFrame(m.port, boot.FrameOff, nil) == nil {
		select {
		case <-m.done:
		case <-time.After(20 * time.Second):
		}
	}
	m.Kill()
}

// Kill is a loss of power.
func (m *Machine) Kill() {
	m.qemu.Process.Kill()
	<-m.done
	m.cancel()
	m.port.Close()
}

// Run boots a machine for one command.
func Run(ctx context.Context, o Options, c Command) (code int, err error) {
	m, err := Boot(ctx, o)
	if err != nil {
		return -1, err
	}
	defer m.Close()
	return m.Run(c)
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

// live is the machine's life: both processes are started by one thread that outlives
// them, so that they may be tied to its life; should this process be killed, they are too.
func (m *Machine) live(started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer close(m.done)
	defer os.RemoveAll(m.dir)
	fsd, err := m.startVirtiofsd()
	if err != nil {
		started <- err
		return
	}
	defer func() { // ends by itself when QEMU hangs up
		t := time.AfterFunc(3*time.Second, func() { fsd.Process.Kill() })
		fsd.Wait()
		t.Stop()
	}()
	// The port is a socket to which QEMU connects, at once.
	l, err := net.Listen("unix", m.socket(boot.Port))
	if err == nil {
		defer l.Close()
		m.qemu = m.qemuCommand()
		err = m.qemu.Start()
	}
	if err != nil {
		fsd.Process.Kill()
		started <- err
		return
	}
	ended := make(chan struct{})
	go func() {
		m.qemu.Wait()
		l.Close()
		close(ended)
	}()
	if m.port, err = l.Accept(); err != nil {
		<-ended
		started <- fmt.Errorf("%s: %v; %s", m.tools.qemu, m.qemu.ProcessState, m.console.String())
		return
	}
	started <- nil
	<-ended
}

func (m *Machine) socket(name string) string { return filepath.Join(m.dir, name) }

func (m *Machine) startVirtiofsd() (*exec.Cmd, error) {
	help, _ := exec.CommandContext(m.ctx, m.tools.virtiofsd, "--help").CombinedOutput()
	socket := m.socket("fs")
	args := []string{"-f", "--socket-path=" + socket, "-o", "source=/", "-o", "cache=always", "-o", "sandbox=chroot"}
	if bytes.Contains(help, []byte("--shared-dir")) { // the one written in Rust
		args = []string{"--socket-path=" + socket, "--shared-dir=/", "--cache=always", "--sandbox=chroot"}
	}
	cmd := exec.CommandContext(m.ctx, m.tools.virtiofsd, args...)
	cmd.Stdout, cmd.Stderr = &m.fsLog, &m.fsLog
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
	return nil, fmt.Errorf("%s does not answer:\n%s", m.tools.virtiofsd, m.fsLog.String())
}

func (m *Machine) qemuCommand() *exec.Cmd {
	mem, cpus := max(m.o.MemoryMiB, 0), max(m.o.CPUs, 0)
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
		"-kernel", m.kernel.image, "-initrd", m.initrd, "-append", strings.Join(append(line, m.o.KernelArgs...), " "),
		"-chardev", "socket,id=fs,path=" + m.socket("fs"),
		"-device", "vhost-user-fs-device,queue-size=1024,chardev=fs,tag=" + boot.Tag,
		"-device", "virtio-serial-device",
		"-chardev", "socket,id=port,path=" + m.socket(boot.Port), "-device", "virtserialport,chardev=port,name=" + boot.Port,
	}
	if m.o.Disk != "" {
		args = append(args, "-drive", "if=none,id=disk,format=raw,file="+m.o.Disk, "-device", "virtio-blk-device,drive=disk")
	}
	cmd := exec.CommandContext(m.ctx, m.tools.qemu, args...)
	var out io.Writer = &m.console
	if m.o.Console != nil {
		out = io.MultiWriter(out, m.o.Console)
	}
	cmd.Stdout, cmd.Stderr = out, out
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
