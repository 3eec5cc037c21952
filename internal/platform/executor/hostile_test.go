package executor

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// TestHostileImages: what an image does to lead mounts, devices or files out of the
// container either has its effect inside or is refused.
func TestHostileImages(t *testing.T) {
	outside := t.TempDir()
	for name, tt := range map[string]struct {
		image  func(root string)
		change func(s *specs.Spec)
		kind   *errs.Kind // of the error; nil: it starts
		text   string     // in the error, or in what it writes
		script string
	}{
		"proc is a link": {
			image: func(r string) { os.Remove(r + "/proc"); os.Symlink("/tmp", r+"/proc") },
			kind:  errs.Invalid, text: "mount /proc",
		},
		"sys is below a link": {
			image: func(r string) { os.Remove(r + "/sys"); os.Symlink("../../../sys", r+"/sys") },
			kind:  errs.Invalid, text: "mount /sys",
		},
		"dev leads out": {
			image: func(r string) {
				os.Remove(r + "/dev")
				os.Symlink("../../../../../../.."+outside, r+"/dev")
			},
			script: "test -c " + outside + "/null && echo inside", text: "inside",
		},
		"mount point leads out": {
			image: func(r string) { os.RemoveAll(r + "/etc"); os.Symlink(outside, r+"/etc") },
			change: func(s *specs.Spec) {
				s.Mounts = append(s.Mounts, specs.Mount{Destination: "/etc/resolv.conf", Type: "bind", Source: "/etc/hostname", Options: []string{"bind", "ro"}})
			},
			script: "test -e " + outside + "/resolv.conf && echo inside", text: "inside",
		},
		"mount point leads out relatively": {
			image: func(r string) {
				os.RemoveAll(r + "/etc")
				os.Symlink("../../../../../../../../.."+outside, r+"/etc")
			},
			change: func(s *specs.Spec) {
				s.Mounts = append(s.Mounts, specs.Mount{Destination: "/etc/new/dir/x", Type: "tmpfs", Source: "tmpfs"})
			},
			script: "test -d " + outside + "/new/dir/x && echo inside", text: "inside",
		},
		"mount point is a magic link": {
			image: func(r string) { os.RemoveAll(r + "/etc"); os.Symlink("/proc/self/fd/3", r+"/etc") },
			change: func(s *specs.Spec) {
				s.Mounts = append(s.Mounts, specs.Mount{Destination: "/etc", Type: "tmpfs", Source: "tmpfs"})
			},
			kind: errs.Invalid, text: "/etc",
		},
		"mount point is the root of a process": {
			image: func(r string) { os.Symlink("/proc/1/root", r+"/escape") },
			change: func(s *specs.Spec) {
				s.Mounts = append(s.Mounts, specs.Mount{Destination: "/escape/tmp/made", Type: "tmpfs", Source: "tmpfs"})
			},
			kind: errs.Invalid, text: "/escape",
		},
		"mount point is a loop": {
			image: func(r string) { os.Symlink("b", r+"/a"); os.Symlink("a", r+"/b") },
			change: func(s *specs.Spec) {
				s.Mounts = append(s.Mounts, specs.Mount{Destination: "/a/x", Type: "tmpfs", Source: "tmpfs"})
			},
			kind: errs.Invalid, text: "/a/x",
		},
		"mount point is a file": {
			image: func(r string) { os.WriteFile(r+"/afile", nil, 0o644) },
			change: func(s *specs.Spec) {
				s.Mounts = append(s.Mounts, specs.Mount{Destination: "/afile", Type: "tmpfs", Source: "tmpfs"})
			},
			kind: errs.Invalid, text: "is a file",
		},
		"file on a directory": {
			change: func(s *specs.Spec) {
				s.Mounts = append(s.Mounts, specs.Mount{Destination: "/tmp", Type: "bind", Source: "/etc/hostname", Options: []string{"bind"}})
			},
			kind: errs.Invalid, text: "is a directory",
		},
		"working directory is a descriptor": { // CVE-2024-21626
			change: func(s *specs.Spec) { s.Process.Cwd = "/proc/self/fd/3" },
			kind:   errs.Invalid, text: "working directory",
		},
		"working directory is a link to a descriptor": {
			image:  func(r string) { os.Symlink("/proc/self/fd/3/", r+"/wd") },
			change: func(s *specs.Spec) { s.Process.Cwd = "/wd" },
			kind:   errs.Invalid, text: "working directory",
		},
		"working directory leads out": {
			image:  func(r string) { os.Symlink("../../../../.."+outside, r+"/wd") },
			change: func(s *specs.Spec) { s.Process.Cwd = "/wd" },
			script: "touch here; test -e " + outside + "/here && echo inside", text: "inside",
		},
		"null is something else": { // CVE-2025-31133
			image: func(r string) { os.Symlink("/etc/passwd", r+"/dev/null") },
			change: func(s *specs.Spec) {
				s.Mounts = append(s.Mounts[:1:1], s.Mounts[5:]...) // nothing is mounted on /dev
			},
			kind: errs.Invalid, text: "/dev/null",
		},
		"console is a link": {
			image: func(r string) { os.Symlink(outside+"/console", r+"/dev/console") },
			change: func(s *specs.Spec) {
				s.Mounts = append(s.Mounts[:1:1], append(s.Mounts[2:3:3], s.Mounts[5:]...)...)
				s.Process.Terminal = true
			},
			script: "true",
		},
		"masked path is a link": {
			image: func(r string) { os.Symlink(outside, r+"/secret") },
			change: func(s *specs.Spec) {
				s.Linux.MaskedPaths = append(s.Linux.MaskedPaths, "/secret", "/bin/nothing", "/bin/sh/below")
			},
			script: "echo fine", text: "fine",
		},
		"program is init": { // CVE-2019-5736: at most a sealed copy runs, without a socket
			change: func(s *specs.Spec) { s.Process.Args = []string{"/proc/self/exe"} },
		},
	} {
		t.Run(name, func(t *testing.T) {
			before := leftovers()
			root := layers(t, image(t))
			if tt.image != nil {
				tt.image(root.Lower[0])
			}
			s := spec("sh", "-c", tt.script)
			if tt.change != nil {
				tt.change(s)
			}
			outR, out, _ := os.Pipe()
			defer outR.Close()
			p, err := shared.Create(contextT(t), Config{ID: "hostile", Spec: s, Rootfs: root, Stdout: out, Stderr: out})
			out.Close()
			var wrote string
			if err == nil {
				if err = p.Start(contextT(t)); err == nil {
					wait(t, p)
				}
				if p.Console() != nil {
					p.Console().Close()
				} else {
					buf := make([]byte, 4096)
					n, _ := outR.Read(buf)
					wrote = string(buf[:n])
				}
				p.Close()
			}
			outR.Close()
			switch {
			case tt.kind == nil && err != nil:
				t.Errorf("it does not start: %v", err)
			case tt.kind != nil && !errors.Is(err, tt.kind):
				t.Errorf("got %v, want an error of the kind %v", err, tt.kind)
			case tt.kind != nil && !strings.Contains(err.Error(), tt.text):
				t.Errorf("%q does not say %q", err, tt.text)
			case tt.kind == nil && !strings.Contains(wrote, tt.text):
				t.Errorf("it wrote %q, want %q", wrote, tt.text)
			}
			if list, _ := os.ReadDir(outside); len(list) > 0 {
				t.Fatalf("%v was made outside of the container", list)
			}
			if after := leftovers(); after != before {
				t.Errorf("left behind:\nbefore %s\nafter  %s", before, after)
			}
		})
	}
}

// TestFailures: a start that fails says at what and with which operand, and leaves
// nothing.
func TestFailures(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(s *specs.Spec, c *Config)
		kind   *errs.Kind
		text   string
		start  bool // it is Start that fails
	}{
		"no such program": {func(s *specs.Spec, c *Config) { s.Process.Args = []string{"nope"} }, errs.NotFound, "find executable nope", false},
		"no such file":    {func(s *specs.Spec, c *Config) { s.Process.Args = []string{"/bin/nope"} }, errs.NotFound, "/bin/nope", false},
		"not executable":  {func(s *specs.Spec, c *Config) { s.Process.Args = []string{"/plain"} }, errs.PermissionDenied, "/plain", false},
		"a directory":     {func(s *specs.Spec, c *Config) { s.Process.Args = []string{"/bin"} }, errs.PermissionDenied, "directory", false},
		"empty command":   {func(s *specs.Spec, c *Config) { s.Process.Args = []string{""} }, errs.NotFound, "empty", false},
		"no command":      {func(s *specs.Spec, c *Config) { s.Process.Args = nil }, errs.Invalid, "process.args", false},
		"no interpreter":  {func(s *specs.Spec, c *Config) { s.Process.Args = []string{"/script"} }, errs.NotFound, "interpreter", true},
		"not a binary":    {func(s *specs.Spec, c *Config) { s.Process.Args = []string{"/text"} }, errs.Invalid, "another architecture", true},
		"not for this user": {func(s *specs.Spec, c *Config) {
			s.Process.Args = []string{"/private"}
			s.Process.User.UID = 9
			s.Process.Capabilities = nil
		}, errs.PermissionDenied, "/private", false},
		"null byte":     {func(s *specs.Spec, c *Config) { s.Process.Env = []string{"A=\x00"} }, errs.Invalid, "null byte", false},
		"relative cwd":  {func(s *specs.Spec, c *Config) { s.Process.Cwd = "x" }, errs.Invalid, "cwd", false},
		"cwd is a file": {func(s *specs.Spec, c *Config) { s.Process.Cwd = "/plain" }, errs.Invalid, "/plain", false},
		"source is missing": {func(s *specs.Spec, c *Config) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/x", Type: "bind", Source: "/no/such/source", Options: []string{"rbind"}})
		}, errs.NotFound, "/no/such/source", false},
		"unknown filesystem": {func(s *specs.Spec, c *Config) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/x", Type: "nofs"})
		}, errs.Unsupported, "nofs", false},
		"unknown option": {func(s *specs.Spec, c *Config) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/x", Type: "tmpfs", Options: []string{"sizzle=3"}})
		}, errs.Invalid, "sizzle", false},
		"user namespace": {func(s *specs.Spec, c *Config) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
		}, errs.Invalid, "uidMappings", false},
		"no such namespace": {func(s *specs.Spec, c *Config) { s.Linux.Namespaces[4].Path = "/no/such/ns" }, errs.NotFound, "/no/such/ns", false},
		"another namespace": {func(s *specs.Spec, c *Config) { s.Linux.Namespaces[4].Path = "/proc/self/ns/ipc" }, errs.Invalid, "not a namespace of that kind", false},
		"not a namespace":   {func(s *specs.Spec, c *Config) { s.Linux.Namespaces[4].Path = "/etc/hostname" }, errs.Invalid, "not a namespace", false},
		"host's sysctl":     {func(s *specs.Spec, c *Config) { s.Linux.Sysctl = map[string]string{"kernel.pid_max": "1000"} }, errs.Invalid, "kernel.pid_max", false},
		"no such sysctl":    {func(s *specs.Spec, c *Config) { s.Linux.Sysctl = map[string]string{"net.ipv4.nope": "1000"} }, errs.NotFound, "net/ipv4/nope", false},
		"host's name": {func(s *specs.Spec, c *Config) {
			s.Linux.Namespaces = append(s.Linux.Namespaces[:3:3], s.Linux.Namespaces[4:]...)
		}, errs.Invalid, "hostname", false},
		"rlimit":      {func(s *specs.Spec, c *Config) { s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_FUN"}} }, errs.Invalid, "RLIMIT_FUN", false},
		"no layer":    {func(s *specs.Spec, c *Config) { c.Rootfs.Lower = []string{"/no/such/layer", "/no/other"} }, errs.NotFound, "/no/such/layer", false},
		"no root":     {func(s *specs.Spec, c *Config) { c.Rootfs = Rootfs{} }, errs.Invalid, "root filesystem", false},
		"no seccomp":  {func(s *specs.Spec, c *Config) { s.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: "x"} }, errs.Invalid, "seccomp", false},
		"no terminal": {func(s *specs.Spec, c *Config) { s.Process.Terminal = true; s.Mounts = s.Mounts[:2] }, errs.NotFound, "devpts", false},
		"device":      {func(s *specs.Spec, c *Config) { s.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/x", Type: "q"}} }, errs.Invalid, "/dev/x", false},
		"occupied device": {func(s *specs.Spec, c *Config) {
			s.Linux.Devices = []specs.LinuxDevice{{Path: "/plain", Type: "c", Major: 1, Minor: 3}}
		}, errs.Invalid, "/plain", false},
	} {
		t.Run(name, func(t *testing.T) {
			before := leftovers()
			c := Config{ID: "failing", Spec: spec("true"), Rootfs: layers(t, image(t))}
			for f, content := range map[string]string{"plain": "", "script": "#!/no/interpreter\n", "text": "\x00\x01hello", "private": "#!/bin/sh\n"} {
				p := filepath.Join(c.Rootfs.Lower[0], f)
				if err := os.WriteFile(p, []byte(content), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			os.Chmod(c.Rootfs.Lower[0]+"/plain", 0o644)
			os.Chmod(c.Rootfs.Lower[0]+"/private", 0o700)
			tt.change(c.Spec, &c)
			p, err := shared.Create(contextT(t), c)
			if err == nil {
				if !tt.start {
					t.Error("Create should have failed")
				}
				err = p.Start(contextT(t))
				if err == nil {
					wait(t, p)
				}
				p.Close()
			} else if tt.start {
				t.Error("Create failed already")
			}
			if !errors.Is(err, tt.kind) || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got %v (kind %v), want kind %v and %q", err, errs.KindOf(err), tt.kind, tt.text)
			}
			if after := leftovers(); after != before {
				t.Errorf("left behind:\nbefore %s\nafter  %s", before, after)
			}
		})
	}
}

// TestMountOutside makes sure that no mount of a container reaches the host, whatever
// the propagation of the host's own root is.
func TestMountOutside(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "orlop-exec-test-host")
	os.Mkdir(dir, 0o755)
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	if err := unix.Mount("", dir, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	lower := dir + "/lower"
	if err := os.Rename(image(t), lower); err != nil {
		if err := os.Mkdir(lower, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	mine := func() (list []string) {
		table, _ := os.ReadFile("/proc/self/mountinfo")
		for line := range strings.Lines(string(table)) {
			if strings.Contains(line, t.Name()) { // others mount as well
				list = append(list, line)
			}
		}
		return list
	}
	before := mine()
	p, err := shared.Create(contextT(t), Config{ID: "out", Spec: spec("/bin/busybox", "true"), Rootfs: layers(t, lower, image(t))})
	if err != nil {
		t.Fatal(err)
	}
	if after := mine(); !slices.Equal(before, after) {
		t.Errorf("the host's mounts changed from\n%s\nto\n%s", before, after)
	}
	if err := p.Start(contextT(t)); err != nil {
		t.Fatal(err)
	}
	wait(t, p)
}
