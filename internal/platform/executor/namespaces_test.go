package executor

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// TestTimeNamespace: a new one with offsets, one that is joined, and an exec into both,
// with and without a user namespace.
func TestTimeNamespace(t *testing.T) {
	for _, users := range []bool{false, true} {
		t.Run(fmt.Sprint("user namespace ", users), func(t *testing.T) {
			first := spec("sleep", "1000")
			first.Linux.Namespaces = append(first.Linux.Namespaces, specs.LinuxNamespace{Type: specs.TimeNamespace})
			first.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"monotonic": {Secs: 5000000, Nanosecs: 7}, "boottime": {Secs: 9000000}}
			c := Config{ID: "time", Spec: first, Rootfs: layers(t, image(t))}
			if users {
				mapped(first, &c)
			}
			p, end := start(t, c)
			defer end()
			const uptime = "read up rest </proc/uptime; test ${up%.*} -gt 9000000 && echo shifted"
			lines(t, execute(t, ExecConfig{PID: p.PID(), Process: &specs.Process{Args: []string{"sh", "-c", uptime}, Cwd: "/", Env: []string{"PATH=/bin"}}}), "shifted")
			out := sh(t, uptime+"; readlink /proc/self/ns/time; cat /proc/self/timens_offsets", func(s *specs.Spec, c *Config) {
				if users {
					mapped(s, c)
					s.Linux.UIDMappings, s.Linux.GIDMappings = nil, nil
					s.Linux.Namespaces[len(s.Linux.Namespaces)-1].Path = fmt.Sprintf("/proc/%d/ns/user", p.PID())
				}
				s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.TimeNamespace, Path: fmt.Sprintf("/proc/%d/ns/time", p.PID())})
			})
			ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/time", p.PID()))
			if err != nil {
				t.Fatal(err)
			}
			lines(t, out, "shifted", ns, "monotonic 5000000 7")
		})
	}
}

// TestJoinMountNamespace: the root filesystem and the mounts are made in the namespace, or
// it is taken as it is.
func TestJoinMountNamespace(t *testing.T) {
	p, end := start(t, Config{ID: "first", Spec: spec("sleep", "1000"), Rootfs: layers(t, image(t))})
	defer end()
	at := fmt.Sprintf("/proc/%d/ns/mnt", p.PID())
	out := sh(t, "readlink /proc/self/ns/mnt; cat /proc/1/comm; touch /tmp/written; mount | grep ' /extra '", func(s *specs.Spec, c *Config) {
		s.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.MountNamespace, Path: at}, {Type: specs.PIDNamespace, Path: fmt.Sprintf("/proc/%d/ns/pid", p.PID())}}
		s.Hostname = ""
		s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = nil, nil
		s.Mounts = []specs.Mount{{Destination: "/extra", Type: "tmpfs", Source: "extra", Options: []string{"size=1m"}}}
		c.Rootfs = Rootfs{}
	})
	ns, _ := os.Readlink(at)
	lines(t, out, ns, "sleep", "extra on /extra type tmpfs (rw,relatime,size=1024k)")
	// What it mounted is the namespace's, and its files are.
	lines(t, execute(t, ExecConfig{PID: p.PID(), Process: &specs.Process{Args: []string{"sh", "-c", "grep -c ' /extra ' /proc/self/mountinfo; ls /tmp"}, Cwd: "/", Env: []string{"PATH=/bin"}}}), "1", "written")

	// A root filesystem of its own, in a namespace that somebody else keeps.
	keeper := exec.Command("/usr/bin/unshare", "--mount", "--propagation", "private", "/bin/busybox", "sh", "-c", "echo ready; read x")
	keeperIn, _ := keeper.StdinPipe()
	keeperOut, _ := keeper.StdoutPipe()
	if err := keeper.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		keeperIn.Close()
		keeper.Wait()
	}()
	buf := make([]byte, 10)
	if n, err := keeperOut.Read(buf); err != nil || string(buf[:n]) != "ready\n" {
		t.Fatal(string(buf), err)
	}
	at = fmt.Sprintf("/proc/%d/ns/mnt", keeper.Process.Pid)
	ns, _ = os.Readlink(at)
	out = sh(t, "readlink /proc/self/ns/mnt; test -e /bin/busybox && ls /; hostname", func(s *specs.Spec, c *Config) {
		s.Linux.Namespaces = append(without(s, specs.MountNamespace), specs.LinuxNamespace{Type: specs.MountNamespace, Path: at})
	})
	lines(t, out, ns, "root", "box")
	if after, _ := os.ReadFile("/proc/self/mountinfo"); strings.Contains(string(after), t.Name()) {
		t.Errorf("the host has mounts of the container:\n%s", after)
	}

	_, err := shared.Create(contextT(t), Config{ID: "own", Spec: func() *specs.Spec {
		s := spec("true")
		s.Linux.Namespaces[0].Path = "/proc/self/ns/mnt"
		return s
	}(), Rootfs: layers(t, image(t))})
	if errs.KindOf(err) != errs.Invalid || !strings.Contains(err.Error(), "caller's own") {
		t.Errorf("the caller's mount namespace: %v", err)
	}
}

// TestOwnNamespaces: a path that leads to the caller's namespace is as if the namespace had
// not been given.
func TestOwnNamespaces(t *testing.T) {
	host, _ := os.Readlink("/proc/self/ns/net")
	out := sh(t, "readlink /proc/self/ns/net", func(s *specs.Spec, c *Config) {
		for i, n := range s.Linux.Namespaces {
			if n.Type != specs.MountNamespace && n.Type != specs.PIDNamespace {
				s.Linux.Namespaces[i].Path = "/proc/self/ns/" + nsFiles[n.Type]
			}
		}
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace, Path: "/proc/self/ns/user"})
		s.Hostname = ""
	})
	lines(t, out, host)
	_, err := shared.Create(contextT(t), Config{ID: "host", Spec: func() *specs.Spec {
		s := spec("true")
		s.Linux.Namespaces[3].Path = "/proc/self/ns/uts"
		return s
	}(), Rootfs: layers(t, image(t))})
	if errs.KindOf(err) != errs.Invalid || !strings.Contains(err.Error(), "hostname") {
		t.Errorf("the caller's host name: %v", err)
	}
}

// TestHostNamespacesInUserNamespace: what the kernel does not let a container mount is bound
// from the host, and changes nothing there.
func TestHostNamespacesInUserNamespace(t *testing.T) {
	out := sh(t, `grep -E ' (/proc|/sys|/dev/mqueue) ' /proc/self/mountinfo | cut -d' ' -f5,6; ls /sys/class/net | sort; test -d /proc/1/task && echo host processes
		touch /sys/kernel/x 2>/dev/null || echo sys is read-only; test -d /sys/fs/cgroup && echo cgroups below`, func(s *specs.Spec, c *Config) {
		mapped(s, c)
		s.Linux.Namespaces = slices.DeleteFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool {
			return n.Type == specs.NetworkNamespace || n.Type == specs.PIDNamespace || n.Type == specs.IPCNamespace
		})
		s.Linux.MaskedPaths = []string{"/proc/kcore"}
		os.Symlink("busybox", c.Rootfs.Lower[0]+"/bin/cut")
		if _, err := os.Stat("/dev/mqueue"); err != nil {
			s.Mounts = slices.DeleteFunc(s.Mounts, func(m specs.Mount) bool { return m.Type == "mqueue" })
		}
	})
	lines(t, out, "/proc rw,nosuid,nodev,noexec,relatime", "/sys ro,nosuid,nodev,noexec,relatime", "lo", "host processes", "sys is read-only", "cgroups below")
	if _, err := os.Stat("/sys/kernel/mm"); err != nil {
		t.Error(err)
	}
}

func TestDevicesInUserNamespace(t *testing.T) {
	out := sh(t, "stat -c '%n %F %t:%T' /dev/null /dev/fuse /dev/other /dev/pipe; echo x >/dev/full || echo full; head -c 3 /dev/zero | wc -c; mount | grep -c '/dev/tty '", func(s *specs.Spec, c *Config) {
		mapped(s, c)
		s.Linux.Devices = []specs.LinuxDevice{
			{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229}, {Path: "/dev/other", Type: "c", Major: 1, Minor: 5},
			{Path: "/dev/pipe", Type: "p", FileMode: ptr(os.FileMode(0o640))}, {Path: "/dev/null", Type: "c", Major: 1, Minor: 3},
		}
	})
	lines(t, out, "/dev/null character special file 1:3", "/dev/fuse character special file a:e5", "/dev/other character special file 1:5", "/dev/pipe fifo 0:0", "full", "3", "1")

	c := Config{ID: "nodevice", Spec: spec("true"), Rootfs: layers(t, image(t))}
	mapped(c.Spec, &c)
	c.Spec.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/nothing", Type: "c", Major: 240, Minor: 99}}
	if _, err := shared.Create(contextT(t), c); errs.KindOf(err) != errs.NotFound || !strings.Contains(err.Error(), "/dev/nothing") {
		t.Errorf("a device that the host does not have: %v", err)
	}
}

// TestDeviceModes: all bits of a mode, also those that only numbers have.
func TestDeviceModes(t *testing.T) {
	out := sh(t, "stat -c '%n %a' /dev/a /dev/b /dev/c", func(s *specs.Spec, c *Config) {
		for name, mode := range map[string]os.FileMode{"a": 0o4755, "b": 0o660 | os.ModeSetgid | os.ModeSticky, "c": 0} {
			s.Linux.Devices = append(s.Linux.Devices, specs.LinuxDevice{Path: "/dev/" + name, Type: "u", Major: 1, Minor: 3, FileMode: &mode})
		}
	})
	lines(t, out, "/dev/a 4755", "/dev/b 3660", "/dev/c 0")
}

// TestNetDevices: devices come with their addresses and new names, and are the host's again
// if the start fails.
func TestNetDevices(t *testing.T) {
	ip := func(args ...string) string {
		t.Helper()
		out, err := exec.Command("ip", args...).CombinedOutput()
		if err != nil {
			t.Fatalf("ip %v: %v: %s", args, err, out)
		}
		return string(out)
	}
	ip("link", "add", "orlx0", "type", "veth", "peer", "name", "orlx1")
	defer exec.Command("ip", "link", "del", "orlx0").Run()
	defer exec.Command("ip", "link", "del", "orlx1").Run()
	ip("addr", "add", "192.0.2.9/24", "dev", "orlx0")
	ip("addr", "add", "2001:db8::9/64", "dev", "orlx0", "nodad")
	ip("link", "set", "orlx0", "mtu", "1400", "up")

	move := func(s *specs.Spec, c *Config) {
		s.Linux.NetDevices = map[string]specs.LinuxNetDevice{"orlx0": {Name: "eth0"}, "orlx1": {}}
	}
	// A start that fails at its end.
	c := Config{ID: "fails", Spec: spec("/no/such/program"), Rootfs: layers(t, image(t))}
	move(c.Spec, &c)
	if _, err := shared.Create(contextT(t), c); errs.KindOf(err) != errs.NotFound {
		t.Errorf("got %v", err)
	}
	if out := ip("-o", "addr", "show", "dev", "orlx0"); !strings.Contains(out, "192.0.2.9/24") || !strings.Contains(out, "2001:db8::9/64") {
		t.Errorf("after a start that failed the host has\n%s", out)
	}
	for _, users := range []bool{false, true} {
		out := sh(t, "ip -o addr; ip -o link", func(s *specs.Spec, c *Config) {
			move(s, c)
			s.Linux.NetDevices = map[string]specs.LinuxNetDevice{"orlx0": {Name: "eth0"}}
			if users {
				mapped(s, c)
			}
		})
		for _, want := range []string{"192.0.2.9/24", "2001:db8::9/64", "eth0", "mtu 1400", "UP"} {
			if !strings.Contains(out, want) {
				t.Errorf("%q is not in\n%s", want, out)
			}
		}
		if !users { // a veth ends with the namespace
			waitGone(t, "/sys/class/net/orlx1")
			ip("link", "add", "orlx0", "type", "veth", "peer", "name", "orlx1")
			ip("addr", "add", "192.0.2.9/24", "dev", "orlx0")
			ip("addr", "add", "2001:db8::9/64", "dev", "orlx0", "nodad")
			ip("link", "set", "orlx0", "mtu", "1400", "up")
		}
	}
	waitGone(t, "/sys/class/net/orlx1")
	for name, tt := range map[string]struct {
		devices map[string]specs.LinuxNetDevice
		kind    *errs.Kind
		text    string
	}{
		"missing":   {map[string]specs.LinuxNetDevice{"orlx7": {}}, errs.NotFound, "orlx7"},
		"too long":  {map[string]specs.LinuxNetDevice{"lo": {Name: "abcdefghijklmnop"}}, errs.Invalid, "abcdefghijklmnop"},
		"same name": {map[string]specs.LinuxNetDevice{"a": {Name: "x"}, "b": {Name: "x"}}, errs.Invalid, "both"},
		"loopback":  {map[string]specs.LinuxNetDevice{"lo": {Name: "lo7"}}, errs.Invalid, "lo"},
	} {
		s := spec("true")
		s.Linux.NetDevices = tt.devices
		if _, err := shared.Create(contextT(t), Config{ID: "bad", Spec: s, Rootfs: layers(t, image(t))}); errs.KindOf(err) != tt.kind || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: %v (%v)", name, err, errs.KindOf(err))
		}
	}
	s := spec("true")
	s.Linux.NetDevices = map[string]specs.LinuxNetDevice{"orlx0": {}}
	s.Linux.Namespaces = without(s, specs.NetworkNamespace)
	if _, err := shared.Create(contextT(t), Config{ID: "bad", Spec: s, Rootfs: layers(t, image(t))}); errs.KindOf(err) != errs.Invalid {
		t.Errorf("without a network namespace: %v", err)
	}
}

// waitGone waits until the kernel has ended a namespace, and a device with it.
func waitGone(t *testing.T, path string) {
	t.Helper()
	ctx := contextT(t)
	for {
		if err := unix.Access(path, unix.F_OK); err == unix.ENOENT {
			return
		}
		if ctx.Err() != nil {
			t.Fatalf("%s is still there", path)
		}
	}
}
