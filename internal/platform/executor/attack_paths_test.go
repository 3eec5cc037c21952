package executor

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Attacks by paths: links of an image or a volume, and their exchange while a container starts.

var pathAttacks = []attack{
	{"working directory through a descriptor (CVE-2024-21626)", [][]string{{"paths.in-root", "paths.cwd-checked"}}, func(t *testing.T) string {
		dir := outside(t)
		for fd := 3; fd < 10; fd++ {
			for _, cwd := range []string{fmt.Sprintf("/proc/self/fd/%d/%d/root%s", fd, os.Getpid(), dir), "/link"} {
				out, _ := attempt(t, []string{"file", "secret"}, func(s *specs.Spec, c *Config) {
					s.Process.Cwd = cwd
					c.Rootfs = layers(t, hostile(t))
					os.Symlink(fmt.Sprintf("/proc/self/fd/%d/%d/root%s", fd, os.Getpid(), dir), c.Rootfs.Lower[0]+"/link")
				})
				if out != "" {
					return out
				}
			}
		}
		return ""
	}},
	{"program through a descriptor (CVE-2024-21626)", [][]string{{"init.lets-go"}}, func(t *testing.T) string {
		return hostBinary(t, func(path string, s *specs.Spec, c *Config) {
			s.Process.Args = []string{path, "say", "ran a binary of the host"}
		})
	}},
	{"interpreter through a descriptor", [][]string{{"init.lets-go"}}, func(t *testing.T) string {
		return hostBinary(t, func(path string, s *specs.Spec, c *Config) {
			s.Process.Args = []string{"/script"}
			os.WriteFile(c.Rootfs.Lower[0]+"/script", []byte("#!"+path+" say\n"), 0o755)
		})
	}},
	{"mount point made on the host (CVE-2024-45310)", [][]string{{"paths.walk"}}, func(t *testing.T) string {
		dir, volume := outside(t), t.TempDir()
		// What the volume leads to is init's descriptor of the host's /proc, whose number
		// is no secret.
		if err := os.Mkdir(volume+"/a", 0o755); err != nil {
			t.Fatal(err)
		}
		var links []string
		for fd := 4; fd < 10; fd++ {
			links = append(links, fmt.Sprintf("%s/b%d", volume, fd))
			if err := os.Symlink(fmt.Sprintf("/proc/self/fd/%d/%d/root%s", fd, os.Getpid(), dir), links[fd-4]); err != nil {
				t.Fatal(err)
			}
		}
		root := layers(t, hostile(t))
		defer flip(t, volume+"/a", links...)()
		n := 0
		return races(func() string {
			n++
			attempt(t, []string{"say"}, func(s *specs.Spec, c *Config) {
				c.Rootfs = root
				s.Mounts = append(s.Mounts,
					specs.Mount{Destination: "/volume", Type: "bind", Source: volume, Options: []string{"rbind"}},
					specs.Mount{Destination: fmt.Sprintf("/volume/a/made%d/here", n), Type: "tmpfs", Source: "tmpfs", Options: []string{"mode=755"}},
					specs.Mount{Destination: fmt.Sprintf("/volume/a/file%d", n), Type: "bind", Source: "/etc/hostname", Options: []string{"bind"}})
			})
			return strings.Join(foreign(t, dir), " ")
		})
	}},
	{"devices made where a link leads (CVE-2026-41579)", [][]string{{"paths.in-root"}, {"paths.walk"}}, func(t *testing.T) string {
		dir := outside(t)
		for _, target := range []string{dir, "../../../../../../../.." + dir, dir + "/deeper/still"} {
			attempt(t, []string{"say"}, func(s *specs.Spec, c *Config) {
				c.Rootfs = layers(t, hostile(t))
				os.RemoveAll(c.Rootfs.Lower[0] + "/dev")
				os.Symlink(target, c.Rootfs.Lower[0]+"/dev")
				s.Mounts = s.Mounts[:1] // nothing is mounted on /dev
			})
		}
		return strings.Join(foreign(t, dir), " ")
	}},
	{"proc mounted where a link leads (CVE-2019-16884, CVE-2023-27561, CVE-2023-28642)", [][]string{{"mounts.real-proc"}}, func(t *testing.T) string {
		out, _ := attempt(t, []string{"file", "/decoy/sys/kernel/ostype"}, func(s *specs.Spec, c *Config) {
			c.Rootfs = layers(t, hostile(t))
			lower := c.Rootfs.Lower[0]
			os.Remove(lower + "/proc")
			os.Mkdir(lower+"/decoy", 0o755)
			os.Symlink("decoy", lower+"/proc")
		})
		return out
	}},
	{"proc exchanged for a link between check and mount (CVE-2019-19921, CVE-2021-30465)", [][]string{{"paths.by-descriptor", "mounts.masks-by-mount"}}, func(t *testing.T) string {
		return sharedRoot(t, func(root string) { os.Symlink("decoy", root+"/link") }, "link")
	}},
	{"proc renamed between mount and mask", [][]string{{"mounts.masks-by-mount"}}, func(t *testing.T) string {
		return sharedRoot(t, func(root string) {}, "decoy")
	}},
}

// hostBinary tries to have a binary of the host executed, through whatever descriptor init
// may have of the host's /proc and a process there that has the container's user.
func hostBinary(t *testing.T, change func(path string, s *specs.Spec, c *Config)) string {
	dir := outside(t)
	victim := exec.Command("/bin/sleep", "60")
	victim.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1000, Gid: 1000}}
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { victim.Process.Kill(); victim.Wait() }()
	for fd := 3; fd < 12; fd++ {
		out, _ := attempt(t, nil, func(s *specs.Spec, c *Config) {
			s.Process.User = specs.User{UID: 1000, GID: 1000}
			c.Rootfs = layers(t, hostile(t))
			change(fmt.Sprintf("/proc/self/fd/%d/%d/root%s/attacker", fd, victim.Process.Pid, dir), s, c)
		})
		if out != "" {
			return out
		}
	}
	return ""
}

// foreign are the files in dir, which outside made, that are not from there.
func foreign(t *testing.T, dir string) (list []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != "attacker" && e.Name() != "secret" {
			list = append(list, "made on the host: "+filepath.Join(dir, e.Name()))
		}
	}
	return list
}

// sharedRoot starts containers in a root filesystem in which somebody exchanges proc for
// something else, and looks for files of a proc filesystem that are not masked.
func sharedRoot(t *testing.T, prepare func(root string), other string) string {
	root := hostile(t)
	if err := os.Mkdir(root+"/decoy", 0o755); err != nil {
		t.Fatal(err)
	}
	prepare(root)
	defer flip(t, root+"/proc", root+"/"+other)()
	return races(func() string {
		out, _ := attempt(t, []string{"masks", "/proc", "/decoy", "/link"}, func(s *specs.Spec, c *Config) { c.Rootfs = Rootfs{Dir: root} })
		return out
	})
}
