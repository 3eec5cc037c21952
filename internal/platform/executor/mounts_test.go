package executor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/mount"
)

// tree makes a directory with a filesystem mounted on it and another below, and returns it.
func tree(t *testing.T, flags uintptr, propagation uintptr) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "orlop-exec-test-tree")
	for _, d := range []string{dir, dir + "/below"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", d, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("", d, "", propagation, ""); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{dir, dir + "/below"} {
		if err := unix.Mount("", d, "", unix.MS_REMOUNT|unix.MS_BIND|flags, ""); flags != 0 && err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		unix.Unmount(dir+"/below", unix.MNT_DETACH)
		unix.Unmount(dir, unix.MNT_DETACH)
	})
	return dir
}

// TestMountOptions: every option of mount(8) that the OCI specification names, as the kernel
// shows its effect.
func TestMountOptions(t *testing.T) {
	plainDir, strictDir := tree(t, 0, unix.MS_PRIVATE), tree(t, unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC|unix.MS_NOATIME|unix.MS_RDONLY, unix.MS_PRIVATE)
	type want struct{ top, below string } // options of the mount, and of the one below
	bind := func(dir string, opts ...string) specs.Mount {
		return specs.Mount{Source: dir, Options: append([]string{"rbind"}, opts...)}
	}
	tmpfs := func(opts ...string) specs.Mount { return specs.Mount{Type: "tmpfs", Source: "tmpfs", Options: opts} }
	cases := map[string]struct {
		m    specs.Mount
		want want
	}{
		"nothing":            {tmpfs(), want{"rw,relatime", ""}},
		"ro":                 {tmpfs("ro"), want{"ro,relatime", ""}},
		"ro rw":              {tmpfs("ro", "rw"), want{"rw,relatime", ""}},
		"nosuid":             {tmpfs("nosuid"), want{"rw,nosuid,relatime", ""}},
		"nosuid suid":        {tmpfs("nosuid", "suid"), want{"rw,relatime", ""}},
		"nodev":              {tmpfs("nodev"), want{"rw,nodev,relatime", ""}},
		"noexec":             {tmpfs("noexec"), want{"rw,noexec,relatime", ""}},
		"noatime":            {tmpfs("noatime"), want{"rw,noatime", ""}},
		"strictatime":        {tmpfs("strictatime"), want{"rw", ""}},
		"noatime relatime":   {tmpfs("noatime", "relatime"), want{"rw,relatime", ""}},
		"noatime atime":      {tmpfs("noatime", "atime"), want{"rw,relatime", ""}},
		"nodiratime":         {tmpfs("nodiratime"), want{"rw,nodiratime,relatime", ""}},
		"nodiratime, not":    {tmpfs("nodiratime", "diratime"), want{"rw,relatime", ""}},
		"nosymfollow":        {tmpfs("nosymfollow"), want{"rw,relatime,nosymfollow", ""}},
		"all":                {tmpfs("ro", "nosuid", "nodev", "noexec", "noatime", "nodiratime", "nosymfollow"), want{"ro,nosuid,nodev,noexec,noatime,nodiratime,nosymfollow", ""}},
		"recursive on a new": {tmpfs("rro", "rnosuid"), want{"ro,nosuid,relatime", ""}},
		"defaults":           {tmpfs("defaults", "async", "nomand", "silent"), want{"rw,relatime", ""}},
		"data":               {tmpfs("size=1m", "mode=700"), want{"rw,relatime", ""}},
		"bind":               {bind(plainDir), want{"rw,relatime", "rw,relatime"}},
		"bind ro":            {bind(plainDir, "ro", "nosuid"), want{"ro,nosuid,relatime", "rw,relatime"}},
		"bind rro":           {bind(plainDir, "rro", "rnosuid", "rnodev", "rnoexec", "rnoatime", "rnodiratime", "rnosymfollow"), want{"ro,nosuid,nodev,noexec,noatime,nodiratime,nosymfollow", "ro,nosuid,nodev,noexec,noatime,nodiratime,nosymfollow"}},
		"bind rro, top rw":   {bind(plainDir, "rw", "rro"), want{"ro,relatime", "ro,relatime"}},
		"bind rstrictatime":  {bind(plainDir, "rstrictatime"), want{"rw", "rw"}},
		"bind keeps":         {bind(strictDir), want{"ro,nosuid,nodev,noexec,noatime", "ro,nosuid,nodev,noexec,noatime"}},
		"bind gives back":    {bind(strictDir, "rw", "suid", "dev", "exec", "relatime"), want{"rw,relatime", "ro,nosuid,nodev,noexec,noatime"}},
		"bind rgives back":   {bind(strictDir, "rrw", "rsuid", "rdev", "rexec", "rrelatime"), want{"rw,relatime", "rw,relatime"}},
		"bind flat":          {specs.Mount{Source: plainDir, Options: []string{"bind"}}, want{"rw,relatime", ""}},
		"bind by type":       {specs.Mount{Source: plainDir, Type: "bind"}, want{"rw,relatime", ""}},
		"bind none":          {specs.Mount{Source: plainDir, Type: "none", Options: []string{"rbind", "remount", "ro", "sync", "dirsync", "lazytime", "iversion"}}, want{"ro,relatime", "rw,relatime"}},
	}
	names := make([]string, 0, len(cases))
	for name := range cases {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, users := range []bool{false, true} {
		out := sh(t, "cat /proc/self/mountinfo", func(s *specs.Spec, c *Config) {
			if users {
				mapped(s, c)
			}
			for i, name := range names {
				m := cases[name].m
				m.Destination = fmt.Sprintf("/m/%d", i)
				s.Mounts = append(s.Mounts, m)
			}
		})
		list, err := mount.Parse(strings.NewReader(out))
		if err != nil {
			t.Fatal(err)
		}
		have := map[string]string{}
		for _, m := range list {
			have[m.Point] = m.Options
		}
		for i, name := range names {
			at := fmt.Sprintf("/m/%d", i)
			if got := (want{have[at], have[at+"/below"]}); got != cases[name].want {
				t.Errorf("user namespace %v, %s: %+v, want %+v", users, name, got, cases[name].want)
			}
		}
	}
}

// TestMountForms: what configurations of others have.
func TestMountForms(t *testing.T) {
	dir := t.TempDir()
	os.WriteFile(dir+"/file", []byte("content\n"), 0o644)
	out := sh(t, `cat /relative /etc/deep/file /from/bundle; grep -c ' /proc ' /proc/self/mountinfo; grep -E ' (/|/tmp) ' /proc/self/mountinfo | cut -d' ' -f5,6; ls -d /up/../up; cat /over`, func(s *specs.Spec, c *Config) {
		os.Symlink("busybox", c.Rootfs.Lower[0]+"/bin/cut")
		os.WriteFile(c.Rootfs.Lower[0]+"/over", []byte("hidden\n"), 0o644)
		c.Bundle = dir
		s.Mounts = append(s.Mounts,
			specs.Mount{Destination: "relative", Source: dir + "/file", Type: "bind"},
			specs.Mount{Destination: "/etc/deep/../deep/file", Source: dir + "/file", Options: []string{"bind"}},
			specs.Mount{Destination: "/from/bundle", Source: "file", Options: []string{"bind"}},
			specs.Mount{Destination: "/over", Source: dir + "/file", Options: []string{"bind", "ro"}},
			specs.Mount{Destination: "/proc", Type: "proc", Source: "proc"},
			specs.Mount{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue"},
			specs.Mount{Destination: "/tmp", Type: "tmpfs"},
			specs.Mount{Destination: "/tmp", Type: "none", Options: []string{"remount", "ro", "nosuid"}},
			specs.Mount{Destination: "../../up", Type: "tmpfs"})
	})
	lines(t, out, "content", "2", "/tmp ro,nosuid,relatime", "/ rw,relatime", "/up/../up")
	if strings.Contains(out, "hidden") || strings.Count(out, "content") != 4 {
		t.Errorf("it wrote\n%s", out)
	}
}

// TestMountErrors: what is wrong is said before there is a process.
func TestMountErrors(t *testing.T) {
	users := []specs.LinuxIDMapping{{HostID: 7, Size: 9}}
	for name, tt := range map[string]struct {
		m    specs.Mount
		kind *errs.Kind
		text string
	}{
		"unknown option of a bind": {specs.Mount{Destination: "/x", Source: "/etc", Options: []string{"bind", "sizzle"}}, errs.Invalid, `/x: unknown option "sizzle"`},
		"no type":                  {specs.Mount{Destination: "/x", Source: "/etc"}, errs.Invalid, "/x: it has no type"},
		"type none":                {specs.Mount{Destination: "/x", Source: "/etc", Type: "none"}, errs.Invalid, "/x: it has no type"},
		"no destination":           {specs.Mount{Source: "/etc", Type: "bind"}, errs.Invalid, "no destination"},
		"relative source":          {specs.Mount{Destination: "/x", Source: "etc", Type: "bind"}, errs.Invalid, "absolute"},
		"null byte":                {specs.Mount{Destination: "/x", Type: "tmpfs", Options: []string{"size=1\x00"}}, errs.Invalid, "null byte"},
		"copied up":                {specs.Mount{Destination: "/x", Type: "proc", Options: []string{"tmpcopyup"}}, errs.Invalid, "tmpcopyup"},
		"mapped tmpfs":             {specs.Mount{Destination: "/x", Type: "tmpfs", Options: []string{"idmap"}}, errs.Invalid, "bind mounts"},
		"mapped by nothing":        {specs.Mount{Destination: "/x", Source: "/etc", Options: []string{"bind", "idmap"}}, errs.Invalid, "user namespace"},
		"half mapped":              {specs.Mount{Destination: "/x", Source: "/etc", Options: []string{"bind"}, UIDMappings: users}, errs.Invalid, "both"},
		"remounted with data":      {specs.Mount{Destination: "/tmp", Type: "tmpfs", Options: []string{"remount", "size=5"}}, errs.Unsupported, "size=5"},
		"on the root":              {specs.Mount{Destination: "/", Type: "tmpfs"}, errs.Invalid, "root filesystem"},
		"on a link to the root":    {specs.Mount{Destination: "/up", Source: "/etc", Options: []string{"bind"}}, errs.Invalid, "/up: invalid argument (it is the root filesystem"},
		"on proc":                  {specs.Mount{Destination: "/proc", Type: "tmpfs"}, errs.Invalid, "/proc: invalid argument (only a proc filesystem"},
		"in proc":                  {specs.Mount{Destination: "/proc/fs", Source: "/etc", Options: []string{"bind"}}, errs.Invalid, "/proc/fs: invalid argument (it is in /proc"},
		"in proc, by a link":       {specs.Mount{Destination: "/link/sys/kernel", Type: "tmpfs"}, errs.Invalid, "/link/sys/kernel: invalid argument (it is in /proc"},
		"proc in proc":             {specs.Mount{Destination: "/proc/fs", Type: "proc"}, errs.Invalid, "it is in /proc"},
	} {
		t.Run(name, func(t *testing.T) {
			s := spec("true")
			s.Mounts = append(s.Mounts, tt.m)
			img := image(t)
			if err := errors.Join(os.Symlink("..", img+"/up"), os.Symlink("/proc", img+"/link")); err != nil {
				t.Fatal(err)
			}
			_, err := shared.Create(contextT(t), Config{ID: "bad", Spec: s, Rootfs: layers(t, img)})
			if errs.KindOf(err) != tt.kind || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got %v (%v), want %v and %q", err, errs.KindOf(err), tt.kind, tt.text)
			}
		})
	}
}

// TestMountsInProc: what shows the container's resources in place of the machine's may be
// mounted over, and /proc itself with one, also in a user namespace, where it is bound.
func TestMountsInProc(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, []byte("covered\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(s *specs.Spec, c *Config){
		"plain": func(*specs.Spec, *Config) {},
		"user":  mapped,
		"bound": func(s *specs.Spec, _ *Config) {
			s.Mounts[0] = specs.Mount{Destination: "/proc", Type: "bind", Source: "/proc", Options: []string{"rbind"}}
			s.Linux.Namespaces = without(s, specs.PIDNamespace)
		},
		"bound, user": func(s *specs.Spec, c *Config) {
			mapped(s, c)
			s.Linux.Namespaces = without(s, specs.PIDNamespace)
		},
		"twice":       func(s *specs.Spec, _ *Config) { s.Mounts = append(s.Mounts, s.Mounts[0]) },
		"not pivoted": func(_ *specs.Spec, c *Config) { c.NoPivot = true },
	} {
		t.Run(name, func(t *testing.T) {
			out := sh(t, "cat /proc/uptime /proc/meminfo /proc/sys/kernel/ns_last_pid /proc-file", func(s *specs.Spec, c *Config) {
				change(s, c)
				for _, at := range []string{"/proc/uptime", "/proc/uptime", "/link/meminfo", "/proc/sys/kernel/ns_last_pid", "/proc-file"} {
					s.Mounts = append(s.Mounts, specs.Mount{Destination: at, Source: file, Options: []string{"bind", "ro"}})
				}
				for _, img := range c.Rootfs.Lower {
					os.Symlink("proc", img+"/link")
				}
			})
			if out != strings.Repeat("covered\n", 4) {
				t.Errorf("it wrote %q", out)
			}
		})
	}
}

// TestReadOnlyRoot: as the specification's root and as one of its read-only paths. A
// working directory that is missing is made before.
func TestReadOnlyRoot(t *testing.T) {
	for name, change := range map[string]func(s *specs.Spec){
		"root":  func(s *specs.Spec) { s.Root = &specs.Root{Readonly: true} },
		"paths": func(s *specs.Spec) { s.Linux.ReadonlyPaths = append(s.Linux.ReadonlyPaths, "/../.") },
	} {
		out := sh(t, "pwd; touch /x 2>/dev/null || echo read-only; touch /dev/shm/x && echo the rest is not", func(s *specs.Spec, c *Config) {
			change(s)
			s.Process.Cwd = "/not/there"
		})
		if out != "/not/there\nread-only\nthe rest is not\n" {
			t.Errorf("%s: it wrote %q", name, out)
		}
	}
}

// TestUnbindable: a mount gets its propagation where it is, also on one that is shared.
func TestUnbindable(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"shared", "shared/x", "shared/y", "shared/z", "other"} {
		if err := os.Mkdir(dir+"/"+d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, users := range []bool{false, true} {
		out := sh(t, "cat /proc/self/mountinfo", func(s *specs.Spec, c *Config) {
			if users {
				mapped(s, c)
			}
			for at, propagation := range map[string]string{"x": "unbindable", "y": "rprivate", "z": "runbindable"} {
				s.Mounts = append(s.Mounts,
					specs.Mount{Destination: "/" + at, Source: dir + "/shared", Options: []string{"bind", "shared"}},
					specs.Mount{Destination: "/" + at + "/" + at, Source: dir + "/other", Options: []string{"bind", propagation}})
			}
		})
		found := map[string]string{}
		for line := range strings.Lines(out) {
			if f := strings.Fields(line); len(f) > 6 {
				found[f[4]] = f[6]
			}
		}
		for at, want := range map[string]string{"/x/x": "unbindable", "/y/y": "-", "/z/z": "unbindable"} {
			if found[at] != want {
				t.Errorf("user namespace %v: %s is %q, want %q, in\n%s", users, at, found[at], want, out)
			}
		}
	}
}

// TestIDMappedMounts: by mappings of the mount, and by those of the container.
func TestIDMappedMounts(t *testing.T) {
	dir := tree(t, 0, unix.MS_PRIVATE)
	for _, f := range []string{"/file", "/below/file"} {
		os.WriteFile(dir+f, nil, 0o644)
		os.Chown(dir+f, 1000, 1001)
	}
	own := func(opts ...string) specs.Mount {
		return specs.Mount{Source: dir, Options: append([]string{"rbind"}, opts...),
			UIDMappings: []specs.LinuxIDMapping{{ContainerID: 1000, HostID: 55, Size: 1}, {ContainerID: 0, HostID: 0, Size: 1}}, GIDMappings: []specs.LinuxIDMapping{{ContainerID: 1001, HostID: 66, Size: 1}, {ContainerID: 0, HostID: 0, Size: 1}}}
	}
	at := func(m specs.Mount, dest string) specs.Mount {
		m.Destination = dest
		return m
	}
	const script = "stat -c '%n %u:%g' /a/file /a/below/file /b/file /b/below/file; touch /a/new"
	lines(t, sh(t, script, func(s *specs.Spec, c *Config) {
		s.Mounts = append(s.Mounts, at(own("idmap"), "/a"), at(own("ridmap"), "/b"))
	}), "/a/file 55:66", "/a/below/file 1000:1001", "/b/file 55:66", "/b/below/file 55:66")
	if got := owner(t, dir+"/new"); got != "0:0" {
		t.Errorf("a new file belongs to %s", got)
	}
	// Without an option, mappings are for the mount itself.
	lines(t, sh(t, "stat -c '%n %u:%g' /a/file /a/below/file", func(s *specs.Spec, c *Config) { s.Mounts = append(s.Mounts, at(own(), "/a")) }), "/a/file 55:66", "/a/below/file 1000:1001")
	os.Remove(dir + "/new")
	lines(t, sh(t, script, func(s *specs.Spec, c *Config) {
		mapped(s, c)
		plain := specs.Mount{Source: dir, Options: []string{"rbind", "idmap"}}
		deep := specs.Mount{Source: dir, Options: []string{"rbind", "ridmap"}}
		s.Mounts = append(s.Mounts, at(plain, "/a"), at(deep, "/b"))
	}), "/a/file 1000:1001", "/a/below/file 65534:65534", "/b/file 1000:1001", "/b/below/file 1000:1001")
	if got := owner(t, dir+"/new"); got != "0:0" {
		t.Errorf("a new file of the container's root belongs to %s", got)
	}
}

// TestRootPropagation: in all its values, on a directory of a mount that is shared, on one
// that is not a mount point, and where somebody has mounted it already.
func TestRootPropagation(t *testing.T) {
	for value, tt := range map[string]struct {
		field  string // of the root's propagation
		later  bool   // what is mounted on the host appears
		inside string // another directory of the container's, bound
	}{
		"":            {"master", true, "rslave"},
		"slave":       {"master", true, ""},
		"rslave":      {"master", true, ""},
		"private":     {"", false, ""},
		"rprivate":    {"", false, ""},
		"shared":      {"shared", true, ""},
		"rshared":     {"shared", true, ""},
		"unbindable":  {"unbindable", false, ""},
		"runbindable": {"unbindable", false, ""},
	} {
		t.Run("value "+value, func(t *testing.T) {
			base := tree(t, 0, unix.MS_SHARED)
			root := base + "/root"
			img := image(t)
			if err := os.Mkdir(root, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.CopyFS(root, os.DirFS(img)); err != nil {
				t.Fatal(err)
			}
			s := spec("sh", "-c", "grep ' / / \\| /root / ' /proc/self/mountinfo; echo ready >&2; read x; grep -q ' /tmp/later ' /proc/self/mountinfo && echo later; true")
			s.Linux.RootfsPropagation = value
			os.Mkdir(root+"/tmp/later", 0o755)
			in, inW, _ := os.Pipe()
			outR, out, _ := os.Pipe()
			errR, errW, _ := os.Pipe()
			defer outR.Close()
			defer errR.Close()
			p, err := shared.Create(contextT(t), Config{ID: "root", Spec: s, Rootfs: Rootfs{Dir: root}, Stdin: in, Stdout: out, Stderr: errW})
			if err == nil {
				err = p.Start(contextT(t))
			}
			in.Close()
			out.Close()
			errW.Close()
			if err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 4096)
			if n, err := errR.Read(buf); err != nil || string(buf[:n]) != "ready\n" {
				t.Errorf("the container said %q, %v", buf[:n], err)
			}
			table, _ := os.ReadFile("/proc/self/mountinfo")
			if strings.Contains(string(table), root+"/") {
				t.Errorf("mounts of the container are on the host")
			}
			if err := unix.Mount("tmpfs", root+"/tmp/later", "tmpfs", 0, ""); err != nil {
				t.Fatal(err)
			}
			n, _ := outR.Read(buf) // all that was written before it was ready
			first := string(buf[:n])
			inW.Write([]byte("go\n"))
			inW.Close()
			n, _ = outR.Read(buf)
			wait(t, p)
			unix.Unmount(root+"/tmp/later", unix.MNT_DETACH)
			list, err := mount.Parse(strings.NewReader(first))
			if err != nil || len(list) == 0 {
				t.Fatal(first, err)
			}
			if got := list[0].Optional; tt.field == "" && got != "" || !strings.Contains(got, tt.field) {
				t.Errorf("the root is %q, want %s", got, tt.field)
			}
			if later := strings.Contains(string(buf[:n]), "later"); later != tt.later {
				t.Errorf("what is mounted later appears: %v, want %v", later, tt.later)
			}
		})
	}
}

// TestMountedRoot: a root that somebody has mounted, with mounts below it, is taken as it
// is, and left so.
func TestMountedRoot(t *testing.T) {
	for _, users := range []bool{false, true} {
		dir := filepath.Join(t.TempDir(), "orlop-exec-test-mounted")
		os.MkdirAll(dir, 0o755)
		if err := unix.Mount(image(t), dir, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
		defer unix.Unmount(dir, unix.MNT_DETACH)
		if err := unix.Mount("tmpfs", dir+"/root", "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		defer unix.Unmount(dir+"/root", unix.MNT_DETACH)
		os.WriteFile(dir+"/root/mounted", []byte("mounted\n"), 0o644)
		before, _ := mount.Below(dir)
		out := sh(t, "cat /root/mounted; touch /tmp/x && echo written", func(s *specs.Spec, c *Config) {
			c.Rootfs = Rootfs{Dir: dir}
			if users {
				// Somebody has shifted the owners.
				mapped(s, c)
				c.Rootfs.IDMap = false
				os.Chown(dir+"/tmp", 100000, 200000)
			}
		})
		lines(t, out, "mounted", "written")
		if after, _ := mount.Below(dir); !slices.Equal(before, after) {
			t.Errorf("the host's mounts were\n%v, are\n%v", before, after)
		}
		if users {
			if got := owner(t, dir+"/tmp/x"); got != "100000:200000" {
				t.Errorf("a new file belongs to %s", got)
			}
		}
	}
}
