package differential

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Case is a configuration to try with both runtimes.
type Case struct {
	Name string
	// Make changes the bundle, which has the configuration of base, before it is run. It
	// is called once for either runtime and has to do the same both times.
	Make func(t testing.TB, b *Bundle)
}

// Bundle is a case on its way through one runtime.
type Bundle struct {
	Dir     string // the bundle; the root filesystem is Dir/rootfs
	ID      string
	Spec    *specs.Spec
	Config  []byte     // of config.json, instead of Spec
	Flags   []string   // of the command run
	Extra   []*os.File // descriptors 3 and on of the runtime
	NoStdin bool       // the runtime's standard input is /dev/null
	Updates []Update   // done while the container runs, before it is looked at
	closers []func()
}

// Update is a command update, and its standard input.
type Update struct {
	Args  []string
	Stdin string
}

// base is the configuration that cases change: what an engine asks for, more or less.
func base(id string) *specs.Spec {
	caps := []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE"}
	return &specs.Spec{
		Version:  "1.0.2",
		Hostname: "inside",
		Root:     &specs.Root{Path: "rootfs"},
		Process: &specs.Process{
			Args: []string{"/inside"}, Cwd: "/",
			Env:             []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"},
			NoNewPrivileges: true,
			Capabilities:    &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps},
			Rlimits:         []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 1024, Soft: 512}},
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
			{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		},
		Linux: &specs.Linux{
			CgroupsPath: filepath.Join("/", suite.cgroup, id),
			Resources:   &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}},
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.NetworkNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}, {Type: specs.MountNamespace},
			},
			MaskedPaths: []string{
				"/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/timer_stats",
				"/proc/sched_debug", "/sys/firmware", "/proc/scsi",
			},
			ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
		},
	}
}

// newBundle makes the directory of a bundle with a root filesystem.
func newBundle(t testing.TB, dir, id string) *Bundle {
	t.Helper()
	b := &Bundle{Dir: dir, ID: id, Spec: base(id)}
	for _, d := range []string{"rootfs/tmp", "rootfs/etc", "rootfs/home", "state"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	b.check(t, os.Chmod(filepath.Join(dir, "rootfs/tmp"), 0o1777))
	b.check(t, os.Link(filepath.Join(suite.work, "inside"), filepath.Join(dir, "rootfs/inside")))
	b.File(t, "rootfs/etc/passwd", "root:x:0:0:root:/root:/bin/sh\nsomeone:x:1000:1000::/home:/bin/sh\n")
	b.File(t, "rootfs/etc/group", "root:x:0:\ntty:x:5:\nsomeone:x:1000:\nmore:x:2000:someone\n")
	return b
}

func (b *Bundle) check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Path returns a path below the bundle.
func (b *Bundle) Path(name string) string { return filepath.Join(b.Dir, name) }

// File makes a file below the bundle.
func (b *Bundle) File(t testing.TB, name, content string) string {
	t.Helper()
	path := b.Path(name)
	b.check(t, os.MkdirAll(filepath.Dir(path), 0o755))
	b.check(t, os.WriteFile(path, []byte(content), 0o644))
	return path
}

// Mkdir makes a directory below the bundle.
func (b *Bundle) Mkdir(t testing.TB, name string) string {
	t.Helper()
	b.check(t, os.MkdirAll(b.Path(name), 0o755))
	return b.Path(name)
}

// Env sets a variable for the program inside.
func (b *Bundle) Env(name, value string) {
	b.Spec.Process.Env = append(b.Spec.Process.Env, name+"="+value)
}

// Mount adds a mount, and has the report list it.
func (b *Bundle) Mount(destination, kind, source string, options ...string) *specs.Mount {
	b.Spec.Mounts = append(b.Spec.Mounts, specs.Mount{Destination: destination, Type: kind, Source: source, Options: options})
	return &b.Spec.Mounts[len(b.Spec.Mounts)-1]
}

// WithoutNamespace takes a namespace out.
func (b *Bundle) WithoutNamespace(kind specs.LinuxNamespaceType) {
	var rest []specs.LinuxNamespace
	for _, n := range b.Spec.Linux.Namespaces {
		if n.Type != kind {
			rest = append(rest, n)
		}
	}
	b.Spec.Linux.Namespaces = rest
}

// Namespace replaces or adds a namespace.
func (b *Bundle) Namespace(kind specs.LinuxNamespaceType, path string) {
	b.WithoutNamespace(kind)
	b.Spec.Linux.Namespaces = append(b.Spec.Linux.Namespaces, specs.LinuxNamespace{Type: kind, Path: path})
}

// UserNamespace maps root of the container to uid, and gives it the root filesystem.
func (b *Bundle) UserNamespace(t testing.TB, uid, size uint32) {
	t.Helper()
	b.Namespace(specs.UserNamespace, "")
	m := []specs.LinuxIDMapping{{ContainerID: 0, HostID: uid, Size: size}}
	b.Spec.Linux.UIDMappings, b.Spec.Linux.GIDMappings = m, m
	b.check(t, filepath.WalkDir(b.Path("rootfs"), func(path string, d os.DirEntry, err error) error {
		if err != nil || d.Name() == "inside" {
			return err
		}
		return os.Lchown(path, int(uid), int(uid))
	}))
}

// Hold starts a process with namespaces of its own, and returns the directory of its
// namespaces. It ends with the case.
func (b *Bundle) Hold(t testing.TB, flags uintptr) string {
	t.Helper()
	cmd := exec.Command(filepath.Join(suite.work, "inside"))
	cmd.Env = []string{"INSIDE_HOLD=1"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags}
	if flags&syscall.CLONE_NEWUSER != 0 {
		m := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 100000, Size: 65536}}
		cmd.SysProcAttr.UidMappings, cmd.SysProcAttr.GidMappings = m, m
	}
	in, err := cmd.StdinPipe()
	b.check(t, err)
	b.check(t, cmd.Start())
	b.closers = append(b.closers, func() {
		in.Close()
		cmd.Process.Kill()
		cmd.Wait()
	})
	return fmt.Sprintf("/proc/%d/ns", cmd.Process.Pid)
}

// Hook returns a hook that notes in hooks.NAME what it was told and what it could see. It
// is a host's shell script: createContainer's and startContainer's paths are the
// container's, where there is only the program inside.
func (b *Bundle) Hook(t testing.TB, name string, script string) specs.Hook {
	t.Helper()
	out := b.Path("hooks." + name)
	return specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", "{ cat; echo; env | sort | grep -v ^_=; pwd; " + script + "; } >" + out + " 2>&1"}}
}

// write writes config.json.
func (b *Bundle) write(t testing.TB) {
	t.Helper()
	config := b.Config
	if config == nil {
		var err error
		config, err = json.MarshalIndent(b.Spec, "", "\t")
		b.check(t, err)
	}
	if string(config) != "absent" {
		b.check(t, os.WriteFile(b.Path("config.json"), config, 0o644))
	}
}

func (b *Bundle) close() {
	for _, c := range b.closers {
		c()
	}
}

// ptr is for fields that may be left out.
func ptr[T any](v T) *T { return &v }
