package executor

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/platform/mount"
)

// sh runs a script in a container that change has had its way with, and returns what it
// wrote.
func sh(t *testing.T, script string, change func(s *specs.Spec, c *Config)) string {
	t.Helper()
	s := spec("sh", "-c", script)
	c := Config{Spec: s, Rootfs: layers(t, image(t))}
	if change != nil {
		change(s, &c)
	}
	r := run(t, c)
	if r.code != 0 {
		t.Fatalf("it ended with %d (signal %d) and wrote:\n%s", r.code, r.signal, r.out)
	}
	return r.out
}

// fields reads lines of "name: value".
func fields(out string) map[string]string {
	m := map[string]string{}
	for line := range strings.Lines(out) {
		if k, v, ok := strings.Cut(line, ":"); ok {
			m[k] = strings.Join(strings.Fields(v), " ")
		}
	}
	return m
}

func ptr[T any](v T) *T { return &v }

func TestIdentity(t *testing.T) {
	out := sh(t, "cat /proc/self/status; echo umask: $(umask); echo pwd: $(pwd); echo env: $(env); echo host: $(hostname); echo dom: $(cat /proc/sys/kernel/domainname); echo sid: $(cat /proc/self/stat); echo me: $$",
		func(s *specs.Spec, c *Config) {
			s.Process.User = specs.User{UID: 1000, GID: 1001, AdditionalGids: []uint32{7, 2000}, Umask: ptr(uint32(0o027))}
			s.Process.Cwd = "/made/for/it"
			s.Process.Env = []string{"PATH=/bin", "A=b c"}
			s.Domainname = "dom"
			s.Linux.Seccomp = defaultSeccomp(t)
			s.Process.Capabilities = &specs.LinuxCapabilities{
				Bounding: []string{"CAP_CHOWN", "CAP_NET_BIND_SERVICE"}, Permitted: []string{"CAP_NET_BIND_SERVICE"},
				Inheritable: []string{"CAP_NET_BIND_SERVICE"}, Effective: []string{"CAP_NET_BIND_SERVICE"}, Ambient: []string{"CAP_NET_BIND_SERVICE"},
			}
		})
	got := fields(out)
	for k, want := range map[string]string{
		"Uid": "1000 1000 1000 1000", "Gid": "1001 1001 1001 1001", "Groups": "7 2000", "NoNewPrivs": "1", "Seccomp": "2", "Seccomp_filters": "1",
		"CapBnd": "0000000000000401", "CapPrm": "0000000000000400", "CapInh": "0000000000000400", "CapEff": "0000000000000400", "CapAmb": "0000000000000400",
		"SigBlk": "0000000000000000", "SigIgn": "0000000000000000",
		"umask": "0027", "pwd": "/made/for/it", "host": "box", "dom": "dom", "me": "1",
	} {
		if got[k] != want {
			t.Errorf("%s is %q, want %q", k, got[k], want)
		}
	}
	if e := strings.Fields(got["env"]); !slices.Contains(e, "A=b") || !slices.Contains(e, "PATH=/bin") || strings.Contains(got["env"], "GODEBUG") || !slices.Contains(e, "HOME=/") {
		t.Errorf("the environment is %q", got["env"])
	}
	if st := strings.Fields(got["sid"]); len(st) < 6 || st[5] != "1" {
		t.Errorf("the session is not the container's own: %q", got["sid"])
	}
}

func TestWithoutNoNewPrivileges(t *testing.T) {
	out := sh(t, "cat /proc/self/status", func(s *specs.Spec, c *Config) {
		s.Process.NoNewPrivileges = false
		s.Linux.Seccomp = defaultSeccomp(t)
		s.Process.User.UID = 5
	})
	got := fields(out)
	for k, want := range map[string]string{"NoNewPrivs": "0", "Seccomp": "2", "CapEff": "0000000000000000", "CapPrm": "0000000000000000", "CapBnd": "00000000a80425fb", "Uid": "5 5 5 5"} {
		if got[k] != want {
			t.Errorf("%s is %q, want %q", k, got[k], want)
		}
	}
}

// The soft limit of open files is the caller's where the specification has none: Go's
// runtime raises its own.
func TestFileLimit(t *testing.T) {
	var now syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &now); err != nil {
		t.Fatal(err)
	}
	lower := syscall.Rlimit{Cur: now.Max - 7, Max: now.Max}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &lower); err != nil { // for all that this process starts
		t.Fatal(err)
	}
	defer syscall.Setrlimit(syscall.RLIMIT_NOFILE, &now)
	r := run(t, Config{Spec: spec("sh", "-c", "ulimit -Sn; ulimit -Hn"), Rootfs: layers(t, image(t))})
	if want := fmt.Sprintf("%d\n%d\n", lower.Cur, lower.Max); r.out != want {
		t.Errorf("the limits are %q, want %q", r.out, want)
	}
}

func TestLimits(t *testing.T) {
	s := spec("sh", "-c", "cat /proc/self/limits; echo oom: $(cat /proc/self/oom_score_adj)")
	s.Process.Rlimits = []specs.POSIXRlimit{
		{Type: "RLIMIT_NOFILE", Soft: 100, Hard: 200}, {Type: "RLIMIT_CORE", Soft: 0, Hard: 0},
		{Type: "RLIMIT_MEMLOCK", Soft: unix.RLIM_INFINITY, Hard: unix.RLIM_INFINITY},
	}
	s.Process.OOMScoreAdj = ptr(500)
	r := run(t, Config{Spec: s, Rootfs: layers(t, image(t))})
	for _, want := range []string{"Max open files            100                  200", "Max core file size        0                    0", "oom: 500"} {
		if !strings.Contains(r.out, want) {
			t.Errorf("%q is not in\n%s", want, r.out)
		}
	}

	// What this process may not give is clamped, with a warning that says so.
	s = spec("sh", "-c", "exit 0")
	s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1 << 29, Hard: 1 << 29}}
	s.Process.OOMScoreAdj = ptr(-999)
	s.Process.Capabilities.Bounding = append(slices.Clone(defaultCaps), "CAP_SYS_RESOURCE", "CAP_FROM_THE_FUTURE")
	p, err := shared.Create(contextT(t), Config{ID: "clamped", Spec: s, Rootfs: layers(t, image(t))})
	if err != nil {
		t.Fatal(err)
	}
	var lim unix.Rlimit
	if err := unix.Prlimit(p.PID(), unix.RLIMIT_NOFILE, nil, &lim); err != nil {
		t.Fatal(err)
	}
	if err := p.Start(contextT(t)); err != nil {
		t.Fatal(err)
	}
	wait(t, p)
	warnings := strings.Join(p.Warnings(), "\n")
	if !strings.Contains(warnings, "CAP_FROM_THE_FUTURE") {
		t.Errorf("no warning of an unknown capability: %q", warnings)
	}
	if ownCaps()&(1<<unix.CAP_SYS_RESOURCE) == 0 {
		for _, w := range []string{"RLIMIT_NOFILE", "oom_score_adj"} {
			if !strings.Contains(warnings, w) {
				t.Errorf("no warning of %s: %q", w, warnings)
			}
		}
		if lim.Max == 1<<29 || lim.Cur != lim.Max {
			t.Errorf("the limit is %v", lim)
		}
	}
}

// TestDescriptors: nothing of the host's is open but the three standard streams.
func TestDescriptors(t *testing.T) {
	// The shell opens none by itself; the directory that ls reads is the fourth.
	out := sh(t, "ls /proc/self/fd; ls -l /proc/self/fd/0", nil)
	if f := strings.Fields(out); !slices.Equal(f[:4], []string{"0", "1", "2", "3"}) || len(f) < 5 || f[4] == "4" {
		t.Errorf("open are %q", out)
	}
	if !strings.Contains(out, "/dev/null") {
		t.Errorf("standard input is not /dev/null: %s", out)
	}
}

func TestFilesystems(t *testing.T) {
	out := sh(t, `cat /proc/self/mountinfo; echo ---
		for d in null zero full random urandom tty; do test -c /dev/$d && echo device $d; done
		for l in fd stdin stdout stderr ptmx; do readlink /dev/$l; done
		echo x >/dev/null && echo null works
		wc -c </proc/keys; ls -A /sys/firmware | wc -l
		echo 1 >/proc/sys/kernel/hostname || echo proc-sys is read-only
		touch /sys/x || echo sys is read-only
		touch /x && echo root is writable; ls -la /dev/shm /dev/mqueue; ps`, nil)
	for _, want := range []string{"device null", "device tty", "/proc/self/fd/2", "pts/ptmx", "null works", "\n0\n0\n", "proc-sys is read-only", "sys is read-only", "root is writable"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in\n%s", want, out)
		}
	}
	list, err := mount.Parse(strings.NewReader(out[:strings.Index(out, "---")]))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range list {
		if strings.Contains(m.Optional, "shared") || strings.Contains(m.Optional, "master") {
			t.Errorf("%s is a peer of the host's: %s", m.Point, m.Optional)
		}
		if m.Root != "/" && !strings.HasPrefix(m.Point, "/proc/") && !strings.HasPrefix(m.Point, "/sys/") {
			t.Errorf("%s shows %s of %s", m.Point, m.Root, m.Source)
		}
	}
	if list[0].Point != "/" || list[0].Type != "overlay" {
		t.Errorf("the first mount is %v", list[0])
	}
}

func TestRoots(t *testing.T) {
	lower := image(t)
	for name, tt := range map[string]struct {
		root     Rootfs
		readonly bool
		want     string
	}{
		"overlay":              {layers(t, lower), false, "written"},
		"overlay read-only":    {layers(t, lower), true, "refused"},
		"no upper":             {Rootfs{Lower: []string{lower}}, false, "refused"},
		"two layers, no upper": {Rootfs{Lower: []string{t.TempDir(), lower}}, false, "refused"},
		"directory":            {Rootfs{Dir: image(t)}, false, "written"},
		"directory read-only":  {Rootfs{Dir: image(t)}, true, "refused"},
	} {
		t.Run(name, func(t *testing.T) {
			out := sh(t, "touch /file 2>/dev/null && echo written || echo refused", func(s *specs.Spec, c *Config) {
				c.Rootfs = tt.root
				s.Root = &specs.Root{Readonly: tt.readonly}
			})
			if strings.TrimSpace(out) != tt.want {
				t.Errorf("%s, want %s", out, tt.want)
			}
		})
	}
	if _, err := os.Stat(lower + "/file"); err == nil {
		t.Error("a lower layer was written")
	}
}

// TestManyLayers: more layers than a page of mount options could name, whose paths have
// what options separate with; upper ones win.
func TestManyLayers(t *testing.T) {
	dir := t.TempDir()
	var lower []string
	for i := range 200 {
		l := filepath.Join(dir, fmt.Sprintf("layer,%d:with a rather long name to fill a page of options", i))
		if err := os.Mkdir(l, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(l+"/which", []byte(fmt.Sprint(i)), 0o644); err != nil {
			t.Fatal(err)
		}
		lower = append(lower, l)
	}
	out := sh(t, "cat /which", func(s *specs.Spec, c *Config) { c.Rootfs = layers(t, append(lower, image(t))...) })
	if out != "0" {
		t.Errorf("the topmost layer is not %q", out)
	}
}

// TestNoPivot: without pivot_root the container sees its own mounts and none of the host's,
// and beneath its root there is nothing of them either.
func TestNoPivot(t *testing.T) {
	out := sh(t, `cat /proc/self/mountinfo; ls /; test -e /etc/passwd && echo the host is here; chroot .. ls / >/dev/null; pwd; touch /x && echo writable`, func(s *specs.Spec, c *Config) {
		c.NoPivot = true
	})
	if strings.Contains(out, "the host is here") || !strings.Contains(out, "writable") {
		t.Errorf("it wrote\n%s", out)
	}
	list, err := mount.Parse(strings.NewReader(out[:strings.Index(out, "bin\n")]))
	if err != nil {
		t.Fatal(err)
	}
	plain := sh(t, "cat /proc/self/mountinfo", nil)
	if want := strings.Count(plain, "\n"); len(list) != want {
		t.Errorf("there are %d mounts, want the %d that there are with pivot_root:\n%s", len(list), want, out)
	}
}

func TestAgainWithTheSameLayer(t *testing.T) {
	root := layers(t, image(t))
	for range 2 { // a volatile overlay leaves a mark that forbids the second
		sh(t, "touch /x", func(s *specs.Spec, c *Config) { c.Rootfs = root })
	}
}

func TestMounts(t *testing.T) {
	dir := t.TempDir()
	for _, f := range []string{"file", "dir/inner", "dir/below/deep"} {
		p := filepath.Join(dir, f)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(f), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mount("orlop-exec-test-below", dir+"/dir/below", "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir+"/dir/below", unix.MNT_DETACH)
	bind := func(source, dest string, opts ...string) specs.Mount {
		return specs.Mount{Source: dir + "/" + source, Destination: dest, Type: "bind", Options: opts}
	}
	out := sh(t, `w() { touch $1/w 2>/dev/null && echo $1 written || echo $1 refused; }
		cat /etc/app/file; w /rw; w /ro; w /ro/below; w /rro; w /rro/below; ls /flat/below | wc -l # the file that the mount hides
		cat /copy/a /copy/d/b; stat -c %a,%u /copy/a; readlink /copy/l; w /copy; w /tmpro; w /var/run/x`,
		func(s *specs.Spec, c *Config) {
			for f, content := range map[string]string{"copy/a": "A", "copy/d/b": "B"} {
				p := filepath.Join(c.Rootfs.Lower[0], f)
				os.MkdirAll(filepath.Dir(p), 0o755)
				os.WriteFile(p, []byte(content), 0o644)
			}
			os.Chown(c.Rootfs.Lower[0]+"/copy/a", 33, 33)
			unix.Chmod(c.Rootfs.Lower[0]+"/copy/a", 0o4751)
			os.Symlink("a", c.Rootfs.Lower[0]+"/copy/l")
			os.Mkdir(c.Rootfs.Lower[0]+"/var", 0o755)
			os.Symlink("/run", c.Rootfs.Lower[0]+"/var/run") // and there is no /run
			s.Mounts = append(s.Mounts,
				bind("file", "/etc/app/file", "rbind", "ro"), bind("dir", "/rw", "rbind"), bind("dir", "/ro", "rbind", "ro"), bind("dir", "/rro", "rbind", "rro"),
				bind("dir", "/flat", "bind"), bind("dir", "/var/run/x", "rbind", "rprivate"),
				specs.Mount{Destination: "/copy", Type: "tmpfs", Source: "tmpfs", Options: []string{"tmpcopyup", "size=1m"}},
				specs.Mount{Destination: "/tmpro", Type: "tmpfs", Source: "tmpfs", Options: []string{"ro"}})
		})
	want := []string{"file/rw written", "/ro refused", "/ro/below written", "/rro refused", "/rro/below refused", "1", "AB4751,33", "a", "/copy written", "/tmpro refused", "/var/run/x written"}
	if got := strings.Split(strings.TrimSpace(out), "\n"); !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

func TestPropagation(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "orlop-exec-test-share")
	os.Mkdir(dir, 0o755)
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	if err := unix.Mount("", dir, "", unix.MS_SHARED, ""); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"up", "down"} {
		os.Mkdir(filepath.Join(dir, d), 0o755)
	}
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for mode, want := range map[string]string{"rshared": "up down", "rslave": "down", "rprivate": ""} {
		t.Run(mode, func(t *testing.T) {
			s := spec("sh", "-c", "mount -t tmpfs tmpfs /share/up; echo ready >&2; read x; grep -q ' /share/down ' /proc/self/mountinfo && echo down || true")
			caps := append(slices.Clone(defaultCaps), "CAP_SYS_ADMIN")
			s.Process.Capabilities.Bounding, s.Process.Capabilities.Permitted, s.Process.Capabilities.Effective = caps, caps, caps
			s.Linux.RootfsPropagation = mode
			s.Mounts = append(s.Mounts, specs.Mount{Source: dir, Destination: "/share", Type: "bind", Options: []string{"rbind", mode}})
			in, inW, _ := os.Pipe()
			outR, out, _ := os.Pipe()
			errR, errW, _ := os.Pipe()
			defer outR.Close()
			defer errR.Close()
			p, err := shared.Create(contextT(t), Config{ID: mode, Spec: s, Rootfs: layers(t, image(t)), Stdin: in, Stdout: out, Stderr: errW})
			if err == nil {
				err = p.Start(contextT(t))
			}
			in.Close()
			out.Close()
			errW.Close()
			if err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 100)
			if n, err := errR.Read(buf); err != nil || string(buf[:n]) != "ready\n" {
				t.Errorf("the container said %q, %v", buf[:n], err)
			}
			var got []string
			table, _ := os.ReadFile("/proc/self/mountinfo")
			if strings.Contains(string(table), " "+dir+"/up ") {
				got = append(got, "up")
				unix.Unmount(dir+"/up", unix.MNT_DETACH)
			}
			if err := unix.Mount("tmpfs", dir+"/down", "tmpfs", 0, ""); err != nil {
				t.Error(err)
			}
			inW.Write([]byte("go\n"))
			inW.Close()
			n, _ := outR.Read(buf)
			got = append(got, strings.Fields(string(buf[:n]))...)
			wait(t, p)
			unix.Unmount(dir+"/down", unix.MNT_DETACH)
			if strings.Join(got, " ") != want {
				t.Errorf("seen on the other side: %v, want %s", got, want)
			}
		})
	}
}

func TestDevicesAndSysctls(t *testing.T) {
	out := sh(t, "stat -c '%F %t:%T %a %u:%g' /dev/fuse /dev/sub/loop; cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced; touch /dev/x || echo dev is read-only", func(s *specs.Spec, c *Config) {
		s.Linux.Devices = []specs.LinuxDevice{
			{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229, FileMode: ptr(os.FileMode(0o640)), UID: ptr(uint32(3)), GID: ptr(uint32(4))},
			{Path: "/dev/sub/loop", Type: "b", Major: 7, Minor: 9},
		}
		s.Linux.Sysctl = map[string]string{"net.ipv4.ip_unprivileged_port_start": "1", "kernel/shm_rmid_forced": "1"}
		s.Mounts[1].Options = append(s.Mounts[1].Options, "ro")
	})
	for _, want := range []string{"character special file a:e5 640 3:4", "block special file 7:9 666 0:0", "\n1\n1\n", "dev is read-only"} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is not in\n%s", want, out)
		}
	}
}

func TestCgroupView(t *testing.T) {
	for _, own := range []bool{true, false} {
		t.Run(fmt.Sprint("namespace ", own), func(t *testing.T) {
			g := group(t)
			out := sh(t, "cat /proc/self/cgroup; echo limit $(cat /sys/fs/cgroup/memory/memory.limit_in_bytes || cat /sys/fs/cgroup/memory.max); mkdir /sys/fs/cgroup/x 2>/dev/null || echo read-only; ls /sys/fs/cgroup", func(s *specs.Spec, c *Config) {
				c.Cgroup = g
				s.Mounts = append(s.Mounts, specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", "ro"}})
				if !own {
					s.Linux.Namespaces = slices.DeleteFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.CgroupNamespace })
				}
			})
			if !strings.Contains(out, "limit 67108864") || !strings.Contains(out, "read-only") {
				t.Errorf("its cgroup is not what the container sees:\n%s", out)
			}
			if own == strings.Contains(out, g.Path()) {
				t.Errorf("the path of the group in the host:\n%s", out)
			}
		})
	}
}
