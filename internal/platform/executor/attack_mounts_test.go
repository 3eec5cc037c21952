package executor

import (
	"errors"
	"os"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Attacks on what is mounted: masks, devices, control groups, the host's own mounts.

var mountAttacks = []attack{
	{"null device exchanged for a link while it masks (CVE-2025-31133)", [][]string{{"mounts.null-checked"}}, func(t *testing.T) string {
		dev, root := deviceVolume(t), layers(t, hostile(t))
		os.WriteFile(root.Lower[0]+"/decoy", []byte("shown in its place"), 0o644)
		if err := os.Symlink("/decoy", dev+"/evil"); err != nil {
			t.Fatal(err)
		}
		defer flip(t, dev+"/null", dev+"/evil")()
		return races(func() string {
			out, _ := attempt(t, []string{"file", "/proc/timer_list"}, func(s *specs.Spec, c *Config) {
				c.Rootfs = root
				ownDev(s, dev)
			})
			if strings.Contains(out, "shown") {
				return out
			}
			return ""
		})
	}},
	{"null device taken away, so that nothing masks", nil, func(t *testing.T) string {
		out, _ := attempt(t, []string{"masks", "/proc"}, func(s *specs.Spec, c *Config) { ownDev(s, t.TempDir()) })
		return out
	}},
	{"terminal's slave exchanged for a link (CVE-2025-52565)", [][]string{{"terminal.peer"}}, func(t *testing.T) string {
		dev, root := deviceVolume(t), layers(t, hostile(t))
		for _, d := range []string{"pts", "evil"} {
			if err := os.Mkdir(dev+"/"+d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Symlink("/proc/sys/kernel/ostype", dev+"/evil/0"); err != nil {
			t.Fatal(err)
		}
		os.WriteFile(dev+"/console", nil, 0o600)
		defer flip(t, dev+"/pts", dev+"/evil")()
		return races(func() string {
			// Its standard streams are the terminal, so it says by its status what it sees.
			out, _ := attempt(t, nil, func(s *specs.Spec, c *Config) {
				c.Rootfs = root
				ownDev(s, dev)
				s.Mounts = append(s.Mounts, specs.Mount{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"newinstance", "ptmxmode=0666"}},
					specs.Mount{Destination: "/out", Type: "bind", Source: root.Lower[0], Options: []string{"bind"}})
				s.Process.Terminal = true
				s.Process.Args = []string{"sh", "-c", "/bin/attacker console >/out/reached"}
			})
			if reached, _ := os.ReadFile(root.Lower[0] + "/reached"); len(reached) > 0 {
				return string(reached)
			}
			return out
		})
	}},
	{"masked files", [][]string{{"mounts.masked-paths"}}, func(t *testing.T) string {
		out, _ := attempt(t, []string{"masks", "/proc"}, nil)
		return out
	}},
	{"read-only files", [][]string{{"mounts.read-only-paths"}}, func(t *testing.T) string {
		out, _ := attempt(t, []string{"write", "/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/proc/irq/*"}, nil)
		return out
	}},
	{"sysctl written into a file of the image (CVE-2025-52881)", [][]string{{"proc.host"}}, func(t *testing.T) string {
		root := hostile(t)
		const name = "net/ipv4/ip_unprivileged_port_start"
		fake(t, root+"/proc/sys/"+name)
		attempt(t, []string{"say"}, func(s *specs.Spec, c *Config) {
			c.Rootfs = Rootfs{Dir: root}
			s.Mounts = s.Mounts[1:] // the image's own /proc
			s.Linux.Sysctl = map[string]string{strings.ReplaceAll(name, "/", "."): "80"}
			s.Linux.ReadonlyPaths = nil
		})
		return written(root + "/proc/sys/" + name)
	}},
	{"sysctl whose name leads to one of the host's (CVE-2022-0811)", [][]string{{"proc.sysctl-names"}}, func(t *testing.T) string {
		// To write what it is already changes nothing.
		value, err := os.ReadFile("/proc/sys/fs/lease-break-time")
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{"net/../fs/lease-break-time", "net.//.fs.lease-break-time", "fs/mqueue/../lease-break-time"} {
			_, err := attempt(t, []string{"say"}, func(s *specs.Spec, c *Config) {
				s.Linux.Sysctl = map[string]string{name: strings.TrimSpace(string(value))}
			})
			if err == nil {
				return name + " is written"
			}
		}
		return ""
	}},
	{"attribute of the process written into a file of the image (CVE-2019-16884)", [][]string{{"proc.host"}}, func(t *testing.T) string {
		root := hostile(t)
		fake(t, root+"/proc/self/oom_score_adj")
		attempt(t, []string{"say"}, func(s *specs.Spec, c *Config) {
			c.Rootfs = Rootfs{Dir: root}
			s.Mounts = s.Mounts[1:] // the image's own /proc
			s.Process.OOMScoreAdj = ptr(700)
		})
		return written(root + "/proc/self/oom_score_adj")
	}},
	{"volume in the place of /proc, or of what is in it (CVE-2019-16884, CVE-2019-19921)", [][]string{{"mounts.proc-uncovered"}}, func(t *testing.T) string {
		volume, root := t.TempDir(), hostile(t)
		if err := os.WriteFile(volume+"/status", []byte("shown in its place"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(os.Symlink("proc", root+"/link"), os.Symlink("/link/fs/../fs", root+"/etc/far")); err != nil {
			t.Fatal(err)
		}
		for dest, file := range map[string]string{"/proc": "/proc/status", "/proc/fs": "/proc/fs/status", "/link/fs": "/proc/fs/status", "/etc/far": "/proc/fs/status", "/link/../link": "/proc/status"} {
			out, _ := attempt(t, []string{"file", file}, func(s *specs.Spec, c *Config) {
				c.Rootfs = layers(t, root)
				s.Mounts = append(s.Mounts, specs.Mount{Destination: dest, Type: "bind", Source: volume, Options: []string{"bind"}})
			})
			if strings.Contains(out, "shown") {
				return dest + ": " + out
			}
		}
		return ""
	}},
	{"control groups written, release_agent among them", [][]string{{"mounts.cgroup-read-only"}}, func(t *testing.T) string {
		g := group(t)
		out, _ := attempt(t, []string{"write", "/sys/fs/cgroup/*/*.limit_in_bytes", "/sys/fs/cgroup/*.max", "/sys/fs/cgroup/*/notify_on_release", "/sys/fs/cgroup/*/release_agent", "/sys/fs/cgroup/*/devices.allow"}, func(s *specs.Spec, c *Config) {
			c.Cgroup = g
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"ro"}})
		})
		return out
	}},
	{"device that is not allowed, made and opened", [][]string{{"cgroup.devices"}}, func(t *testing.T) string {
		g := group(t)
		rules := []specs.LinuxDeviceCgroup{{Access: "rwm"}, {Allow: true, Type: "c", Access: "m"}, {Allow: true, Type: "c", Major: ptr(int64(1)), Minor: ptr(int64(3)), Access: "rwm"}}
		if err := g.Update(&specs.LinuxResources{Devices: rules}); err != nil {
			t.Fatal(err)
		}
		out, _ := attempt(t, []string{"device", "1", "5"}, func(s *specs.Spec, c *Config) { c.Cgroup = g })
		return out
	}},
	{"mounts of the container on the host", [][]string{{"mounts.slave"}}, func(t *testing.T) string {
		dir := t.TempDir() + "/orlop-exec-test-shared"
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("orlop-exec-test-shared", dir, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		defer unix.Unmount(dir, unix.MNT_DETACH)
		if err := unix.Mount("", dir, "", unix.MS_SHARED, ""); err != nil {
			t.Fatal(err)
		}
		lower := dir + "/lower"
		if err := os.Mkdir(lower, 0o755); err != nil {
			t.Fatal(err)
		}
		attempt(t, []string{"say"}, func(s *specs.Spec, c *Config) { c.Rootfs = layers(t, lower, hostile(t)) })
		table, _ := os.ReadFile("/proc/self/mountinfo")
		for line := range strings.Lines(string(table)) {
			if strings.Contains(line, " "+lower+" ") {
				return line
			}
		}
		return ""
	}},
	{"copied up from a file that becomes a FIFO", [][]string{{"mounts.copy-up-checked"}}, func(t *testing.T) string {
		root := hostile(t)
		os.Mkdir(root+"/data", 0o755)
		os.WriteFile(root+"/data/file", []byte("x"), 0o644)
		if err := unix.Mkfifo(root+"/fifo", 0o644); err != nil {
			t.Fatal(err)
		}
		defer flip(t, root+"/data/file", root+"/fifo")()
		return races(func() string {
			out, _ := attempt(t, []string{"descriptors"}, func(s *specs.Spec, c *Config) {
				c.Rootfs = Rootfs{Dir: root}
				s.Mounts = append(s.Mounts, specs.Mount{Destination: "/data", Type: "tmpfs", Source: "tmpfs", Options: []string{"tmpcopyup"}})
			})
			return out
		})
	}},
}

// deviceVolume is a volume that is mounted on /dev, with a null device.
func deviceVolume(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mknod(dir+"/null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
		t.Fatal(err)
	}
	return dir
}

// ownDev replaces everything on /dev by a volume.
func ownDev(s *specs.Spec, volume string) {
	s.Mounts = []specs.Mount{s.Mounts[0], {Destination: "/dev", Type: "bind", Source: volume, Options: []string{"bind"}}}
}

// fake makes a file as a volume has it in place of one of /proc.
func fake(t *testing.T, path string) {
	t.Helper()
	err := os.MkdirAll(path[:strings.LastIndexByte(path, '/')], 0o755)
	if err == nil {
		err = os.WriteFile(path, []byte("untouched"), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// written is what was written into a fake file.
func written(path string) string {
	if b, _ := os.ReadFile(path); string(b) != "untouched" {
		return path + " is now " + string(b)
	}
	return ""
}
