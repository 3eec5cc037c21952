package executor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// mapped gives the container a user namespace of its own, and its files to it.
func mapped(s *specs.Spec, c *Config) {
	s.Linux.Namespaces = append(slices.Clone(s.Linux.Namespaces), specs.LinuxNamespace{Type: specs.UserNamespace})
	s.Linux.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 100000, Size: 65536}}
	s.Linux.GIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 200000, Size: 65536}}
	c.Rootfs.IDMap = true
}

// without returns the specification's namespaces without one.
func without(s *specs.Spec, kind specs.LinuxNamespaceType) []specs.LinuxNamespace {
	return slices.DeleteFunc(slices.Clone(s.Linux.Namespaces), func(n specs.LinuxNamespace) bool { return n.Type == kind })
}

// owner is who a file belongs to on the disk.
func owner(t *testing.T, path string) string {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d:%d", st.Uid, st.Gid)
}

// lines makes sure that each is a line of out.
func lines(t *testing.T, out string, want ...string) {
	t.Helper()
	have := strings.Split(strings.TrimSpace(out), "\n")
	for i := range have {
		have[i] = strings.Join(strings.Fields(have[i]), " ")
	}
	for _, w := range want {
		if !slices.Contains(have, w) {
			t.Errorf("%q is not a line of\n%s", w, out)
		}
	}
}

func TestUserNamespace(t *testing.T) {
	out := sh(t, `cat /proc/self/uid_map /proc/self/gid_map; grep -E "^(Uid|Groups|NoNewPrivs|Seccomp|CapPrm|CapBnd|NSpid)" /proc/self/status; hostname; cat /proc/self/oom_score_adj
		echo null >/dev/null && echo null works; head -c 4 /dev/urandom | wc -c; stat -c 'busybox %u:%g' /bin/busybox
		touch /sys/x 2>/dev/null || echo sys is read-only; ls /sys/class/net; cat /proc/sys/net/ipv4/ip_unprivileged_port_start; cat /proc/self/limits
		echo x >/dev/stderr && echo stderr opens; for n in user pid net ipc uts mnt cgroup; do test -e /proc/self/ns/$n && echo has $n; done
		ls /proc/self/fd | wc -l; stat -c 'null %t:%T' /dev/null; sh -c 'echo 9 >/proc/sys/vm/swappiness' 2>/dev/null || echo sysctl is protected; wc -c </proc/keys`,
		func(s *specs.Spec, c *Config) {
			mapped(s, c)
			s.Process.OOMScoreAdj = ptr(300)
			s.Linux.Sysctl = map[string]string{"net.ipv4.ip_unprivileged_port_start": "7", "kernel.shm_rmid_forced": "1"}
			s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 100, Hard: 200}}
			s.Process.Capabilities.Bounding = append(slices.Clone(defaultCaps), "CAP_SYS_ADMIN")
			s.Linux.Seccomp = defaultSeccomp(t)
		})
	lines(t, out, "0 100000 65536", "0 200000 65536", "Uid: 0 0 0 0", "Groups:", "NoNewPrivs: 1", "Seccomp: 2", "box", "300", "null works", "4", "busybox 0:0",
		"CapPrm: 00000000a80425fb", "CapBnd: 00000000a82425fb", "sys is read-only", "lo", "7", "Max open files 100 200 files", "stderr opens", "null 1:3", "sysctl is protected", "0")
}

// TestIDMappedLayers: ids on the disk are those that the container sees, for what is in a
// layer below, what is copied up, made, and deleted.
func TestIDMappedLayers(t *testing.T) {
	lower := image(t)
	for _, f := range []string{"kept", "changed", "deleted", "dir/a", "dir/b"} {
		p := filepath.Join(lower, f)
		os.MkdirAll(filepath.Dir(p), 0o755)
		if err := os.WriteFile(p, []byte(f), 0o600); err != nil {
			t.Fatal(err)
		}
		os.Chown(p, 5, 6)
	}
	root := layers(t, t.TempDir(), lower)
	root.IDMap = true
	for range 2 { // the second finds what the first has left
		out := sh(t, `echo $(stat -c %u:%g /kept /changed 2>/dev/null); echo x >>/changed; rm -f /deleted; rm -rf /dir; mkdir /dir; touch /dir/x /made; ls -d /deleted 2>/dev/null
			chown 7:8 /made; ls /dir; cat /kept; stat -c '%n %u:%g' /made /changed`, func(s *specs.Spec, c *Config) {
			mapped(s, c)
			c.Rootfs = root
		})
		lines(t, out, "5:6 5:6", "x", "kept/made 7:8", "/changed 5:6")
		if strings.Contains(out, "/deleted") {
			t.Errorf("what was deleted is there:\n%s", out)
		}
	}
	for f, want := range map[string]string{"made": "7:8", "changed": "5:6", "dir": "0:0", "dir/x": "0:0"} {
		if got := owner(t, root.Upper+"/"+f); got != want {
			t.Errorf("on the disk %s belongs to %s, want %s", f, got, want)
		}
	}
	if got := owner(t, lower+"/kept"); got != "5:6" {
		t.Errorf("the layer below has become %s", got)
	}

	// A single layer, and a directory.
	for name, r := range map[string]Rootfs{"layer": {Lower: []string{lower}, IDMap: true}, "directory": {Dir: lower, IDMap: true}} {
		out := sh(t, "stat -c '%n %u:%g' /kept; touch /new-"+name+" 2>/dev/null; true", func(s *specs.Spec, c *Config) {
			mapped(s, c)
			c.Rootfs = r
		})
		lines(t, out, "/kept 5:6")
	}
	if got := owner(t, lower+"/new-directory"); got != "0:0" {
		t.Errorf("on the disk a new file belongs to %s", got)
	}

	// A filesystem that cannot.
	dir := filepath.Join(t.TempDir(), "orlop-exec-test-proc")
	os.Mkdir(dir, 0o755)
	if err := unix.Mount("proc", dir, "proc", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	s, c := spec("true"), Config{ID: "unmappable", Rootfs: Rootfs{Dir: dir}}
	mapped(s, &c)
	c.Spec = s
	_, err := shared.Create(contextT(t), c)
	if errs.KindOf(err) != errs.Unsupported || !strings.Contains(err.Error(), "id-mapped") || !strings.Contains(err.Error(), dir) {
		t.Errorf("got %v", err)
	}
}

// TestSharedUserNamespace: the containers of a pod are in one user namespace and have the
// others of its sandbox, or their own, which then belong to it; an exec is in all of them.
func TestSharedUserNamespace(t *testing.T) {
	g := group(t)
	s := spec("sleep", "1000")
	c := Config{ID: "sandbox", Rootfs: layers(t, image(t)), Cgroup: g}
	mapped(s, &c)
	c.Spec = s
	sandbox, end := start(t, c)
	defer end()
	at := fmt.Sprintf("/proc/%d/ns/", sandbox.PID())
	join := func(s *specs.Spec, kinds ...specs.LinuxNamespaceType) {
		for _, k := range kinds {
			s.Linux.Namespaces = append(without(s, k), specs.LinuxNamespace{Type: k, Path: at + map[specs.LinuxNamespaceType]string{"network": "net", "mount": "mnt"}[k]})
			n := &s.Linux.Namespaces[len(s.Linux.Namespaces)-1]
			if strings.HasSuffix(n.Path, "/") {
				n.Path += string(k)
			}
		}
	}
	pods := []specs.LinuxNamespaceType{specs.UserNamespace, specs.NetworkNamespace, specs.IPCNamespace, specs.UTSNamespace}

	// Two members with PID and mount namespaces of their own, one with the sandbox's.
	for _, kinds := range [][]specs.LinuxNamespaceType{pods, append(slices.Clone(pods), specs.PIDNamespace), {specs.UserNamespace}, append(slices.Clone(pods), specs.CgroupNamespace)} {
		s := spec("sleep", "1000")
		s.Linux.Seccomp = defaultSeccomp(t)
		s.Hostname = ""
		join(s, kinds...)
		root := layers(t, image(t))
		root.IDMap = true
		p, end := start(t, Config{ID: "member", Spec: s, Rootfs: root, Cgroup: g})
		theirs, ours := namespaces(t, sandbox.PID()), namespaces(t, p.PID())
		for pid, m := range map[int]map[string]string{sandbox.PID(): theirs, p.PID(): ours} {
			m["user"], _ = os.Readlink(fmt.Sprintf("/proc/%d/ns/user", pid))
		}
		for _, n := range []string{"user", "net", "ipc", "uts", "pid", "mnt", "cgroup"} {
			kind := specs.LinuxNamespaceType(map[string]string{"net": "network", "mnt": "mount"}[n])
			if kind == "" {
				kind = specs.LinuxNamespaceType(n)
			}
			if joined := slices.Contains(kinds, kind); joined != (theirs[n] == ours[n]) {
				t.Errorf("joined %v: %s is %s, the sandbox's is %s", kinds, n, ours[n], theirs[n])
			}
			// Whatever it is, it belongs to the user namespace of the pod.
			f, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", p.PID(), n))
			if err != nil {
				t.Fatal(err)
			}
			if user, err := os.Open(at + "user"); err != nil {
				t.Fatal(err)
			} else {
				if n != "user" && !(&userNS{file: user}).owns(f) {
					t.Errorf("joined %v: %s does not belong to the user namespace", kinds, n)
				}
				user.Close()
			}
			f.Close()
		}
		out := execute(t, ExecConfig{PID: p.PID(), PIDFD: p.PIDFD(), Cgroup: g, Seccomp: defaultSeccomp(t), Process: &specs.Process{
			Args: []string{"sh", "-c", "id; grep -E '^(CapEff|Seccomp:|NoNewPrivs)' /proc/self/status; cat /proc/self/oom_score_adj; stat -c 'busybox %u' /bin/busybox; cat /proc/self/cgroup; for n in user pid net ipc uts mnt cgroup; do echo $n $(readlink /proc/self/ns/$n); done; echo x >/dev/stdout; ls /proc/self/fd | wc -l"},
			Cwd:  "/tmp", Env: []string{"PATH=/bin"}, User: specs.User{UID: 12, GID: 13, AdditionalGids: []uint32{14}}, OOMScoreAdj: ptr(77), NoNewPrivileges: true,
			Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 50, Hard: 60}}}})
		want := []string{"uid=12 gid=13 groups=14", "CapEff: 0000000000000000", "Seccomp: 2", "77", "busybox 0", "x", "4"}
		for n, id := range ours {
			want = append(want, n+" "+id)
		}
		lines(t, out, want...)
		if strings.Contains(out, g.Path()) {
			t.Errorf("the exec is not in the cgroup namespace:\n%s", out)
		}
		end()
	}

	// A terminal, whose owner is in the namespace.
	onTerminal(t, ExecConfig{PID: sandbox.PID(), Process: &specs.Process{Args: []string{"sh", "-c", "tty; stat -c 'owner %u' $(tty); echo $((6*7))"}, Cwd: "/", Env: []string{"PATH=/bin"}, User: specs.User{UID: 12}}}, "owner 12\r\n42")

	// What is not what it should be.
	for name, tt := range map[string]struct {
		change func(s *specs.Spec)
		kind   *errs.Kind
		text   string
	}{
		"other mappings": {func(s *specs.Spec) {
			join(s, specs.UserNamespace)
			s.Linux.UIDMappings = []specs.LinuxIDMapping{{HostID: 7, Size: 9}}
		}, errs.Invalid, "Mappings"},
		"mappings without": {func(s *specs.Spec) { s.Linux.UIDMappings = []specs.LinuxIDMapping{{HostID: 7, Size: 9}} }, errs.Invalid, "no user namespace"},
		"twice": {func(s *specs.Spec) {
			join(s, "user")
			s.Linux.Namespaces = append(s.Linux.Namespaces, s.Linux.Namespaces[5])
		}, errs.Invalid, "twice"},
		"another kind": {func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace, Path: at + "net"})
		}, errs.Invalid, "not a namespace of that kind"},
		"gone": {func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace, Path: "/proc/4194303/ns/user"})
		}, errs.NotFound, "/proc/4194303"},
		"relative": {func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace, Path: "ns/user"})
		}, errs.Invalid, "absolute"},
		"no root": {func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
			s.Linux.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 1, HostID: 7, Size: 9}}
			s.Linux.GIDMappings = s.Linux.UIDMappings
		}, errs.Invalid, "user or group 0"},
		"overlap": {func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
			s.Linux.UIDMappings = []specs.LinuxIDMapping{{ContainerID: 0, HostID: 7, Size: 9}, {ContainerID: 9, HostID: 15, Size: 1}}
			s.Linux.GIDMappings = s.Linux.UIDMappings
		}, errs.Invalid, "overlap"},
		"unmapped user": {func(s *specs.Spec) { join(s, "user"); s.Process.User.UID = 70000 }, errs.Invalid, "70000"},
	} {
		t.Run(name, func(t *testing.T) {
			before := leftovers()
			s := spec("true")
			tt.change(s)
			_, err := shared.Create(contextT(t), Config{ID: "bad", Spec: s, Rootfs: layers(t, image(t))})
			if errs.KindOf(err) != tt.kind || !strings.Contains(err.Error(), tt.text) {
				t.Errorf("got %v (%v), want %v and %q", err, errs.KindOf(err), tt.kind, tt.text)
			}
			if after := leftovers(); after != before {
				t.Errorf("left behind:\nbefore %s\nafter  %s", before, after)
			}
		})
	}
}

// TestUserNamespaceAttributes: what takes privileges on the host is done by it, and the rest
// of a container's life is as in any other.
func TestUserNamespaceAttributes(t *testing.T) {
	g := group(t)
	path, gate := fifo(t)
	defer gate.Close()
	outR, out, _ := os.Pipe()
	defer outR.Close()
	s := spec("sh", "-c", "cat /proc/self/cgroup; ls /sys/fs/cgroup >/dev/null && echo cgroups; cat /proc/1/sched | grep policy; cat /hooked")
	s.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedBatch, Nice: 3}
	s.Process.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_IDLE, Priority: 0}
	s.Linux.RootfsPropagation = "rprivate"
	s.Mounts = append(s.Mounts, specs.Mount{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"ro", "nosuid"}})
	c := Config{ID: "attributes", Spec: s, Rootfs: layers(t, image(t)), Cgroup: g, Gate: gate, Stdout: out, Stderr: out}
	mapped(s, &c)
	s.Hooks = &specs.Hooks{
		CreateRuntime:   []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "grep -o '\"pid\":[0-9]*' >&2; test -d /proc/1"}}},
		CreateContainer: []specs.Hook{{Path: "/bin/sh", Args: []string{"sh", "-c", "echo hooked >hooked"}}},
	}
	p, err := shared.Create(contextT(t), c)
	out.Close()
	if err != nil {
		t.Fatal(err)
	}
	at, err := unix.SchedGetAttr(p.PID(), 0)
	if err != nil || at.Policy != unix.SCHED_BATCH || at.Nice != 3 {
		t.Errorf("the scheduling is %+v, %v", at, err)
	}
	if prio, _, e := unix.RawSyscall(unix.SYS_IOPRIO_GET, 1, uintptr(p.PID()), 0); e != 0 || prio>>13 != 3 {
		t.Errorf("the I/O priority is %d, %v", prio, e)
	}
	// Nobody of the container's user namespace may look into init.
	var st unix.Stat_t
	if err := unix.Stat(fmt.Sprintf("/proc/%d/mem", p.PID()), &st); err != nil || st.Uid != 0 {
		t.Errorf("init's memory belongs to %d, %v", st.Uid, err)
	}
	if err := OpenGate(contextT(t), path); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4096)
	var wrote string
	for {
		n, err := outR.Read(buf)
		wrote += string(buf[:n])
		if err != nil {
			break
		}
	}
	if code, _ := wait(t, p); code != 0 {
		t.Errorf("it ended with %d", code)
	}
	lines(t, wrote, "cgroups", "hooked")
	if strings.Contains(wrote, g.Path()) {
		t.Errorf("the host's cgroup is visible:\n%s", wrote)
	}
}

// TestHostsNamespacesJoined: namespaces that were made by the host's root are joined by a
// container in a user namespace, which sees them and is nobody in them.
func TestHostsNamespacesJoined(t *testing.T) {
	out := sh(t, "hostname; ls /sys/class/net; mount | grep -c ' on /dev/mqueue '; touch /sys/x 2>/dev/null || echo sys is read-only; ip link set lo down 2>/dev/null || echo not the owner; echo $$", func(s *specs.Spec, c *Config) {
		mapped(s, c)
		s.Linux.Namespaces = append(pinned(t), specs.LinuxNamespace{Type: specs.UserNamespace})
		s.Hostname = ""
	})
	lines(t, out, "pod", "lo", "1", "sys is read-only", "not the owner", "1")
}

// TestPauseInUserNamespace: a sandbox's process in a namespace of its own.
func TestPauseInUserNamespace(t *testing.T) {
	s := spec()
	s.Process, s.Hostname, s.Linux.MaskedPaths = nil, "pod", nil
	s.Mounts = s.Mounts[:1]
	c := Config{ID: "pause", Spec: s, Pause: true}
	mapped(s, &c)
	p, end := start(t, c)
	defer end()
	ids, err := readMap(p.PID(), "uid_map")
	if err != nil || len(ids) != 1 || ids[0].HostID != 100000 {
		t.Errorf("its users are %v, %v", ids, err)
	}
}

// TestCrossingFails: wherever a start that enters a user namespace ends, nothing is left.
func TestCrossingFails(t *testing.T) {
	for name, change := range map[string]func(s *specs.Spec, c *Config){
		"on the host": func(s *specs.Spec, c *Config) {
			s.Mounts = append(s.Mounts, specs.Mount{Destination: "/x", Source: "/no/such/source", Type: "bind"})
		},
		"inside":         func(s *specs.Spec, c *Config) { s.Process.Args = []string{"/no/such/program"} },
		"the layers":     func(s *specs.Spec, c *Config) { c.Rootfs.Lower = []string{"/no/such/layer"} },
		"work elsewhere": func(s *specs.Spec, c *Config) { c.Rootfs.Work = t.TempDir() },
	} {
		t.Run(name, func(t *testing.T) {
			before := leftovers()
			c := Config{ID: "fails", Spec: spec("true"), Rootfs: layers(t, image(t))}
			mapped(c.Spec, &c)
			change(c.Spec, &c)
			if _, err := shared.Create(contextT(t), c); errs.KindOf(err) != errs.NotFound && errs.KindOf(err) != errs.Invalid {
				t.Errorf("got %v", err)
			}
			if after := leftovers(); after != before {
				t.Errorf("left behind:\nbefore %s\nafter  %s", before, after)
			}
		})
	}
	// Cancelled at any moment.
	before := leftovers()
	lower := image(t)
	for i := range 60 {
		c := Config{ID: "cancelled", Spec: spec("true"), Rootfs: layers(t, lower)}
		mapped(c.Spec, &c)
		ctx, cancel := context.WithTimeout(context.Background(), time.Duration(i)*200*time.Microsecond)
		p, err := shared.Create(ctx, c)
		cancel()
		switch {
		case err == nil:
			unix.PidfdSendSignal(int(p.PIDFD().Fd()), unix.SIGKILL, nil, 0)
			wait(t, p)
		case !errors.Is(err, context.DeadlineExceeded):
			t.Errorf("after %d00 µs: %v", 2*i, err)
		}
	}
	if after := leftovers(); after != before {
		t.Errorf("left behind:\nbefore %s\nafter  %s", before, after)
	}
}

// TestRootless: a user without privileges, as whom this test runs once more.
func TestRootless(t *testing.T) {
	if os.Getenv("EXECUTOR_TEST_ROOTLESS") != "" {
		rootless(t)
		return
	}
	dir, err := os.MkdirTemp("", "orlop-rootless")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	img := image(t)
	if err := os.CopyFS(dir+"/lower", os.DirFS(img)); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"upper", "work", "tmp", "empty"} {
		os.Mkdir(dir+"/"+f, 0o755)
	}
	copyFile(t, "/proc/self/exe", dir+"/test", 0o755)
	copyFile(t, initPath, dir+"/init", 0o755)
	if err := filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error { return errors.Join(err, os.Lchown(p, 54321, 54321)) }); err != nil {
		t.Fatal(err)
	}
	// Who he is, and what he was granted, in a mount namespace where nobody else sees it.
	passwd, err := os.ReadFile("/etc/passwd")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"passwd": string(passwd) + "rootless:x:54321:54321::/:/bin/sh\n", "none": "", "granted": "rootless:3000000:1000\n"} {
		if err := os.WriteFile(dir+"/"+name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, grant := range []string{"no helpers", "none", "granted"} {
		path := os.Getenv("PATH")
		cmd := exec.Command("/usr/bin/unshare", "--mount", "/bin/sh", "-ec", `mount --bind passwd /etc/passwd; test -e "$0" && for f in subuid subgid; do mount --bind "$0" /etc/$f; done
			PATH="$1" exec /usr/bin/setpriv --reuid 54321 --regid 54321 --clear-groups ./test -test.run '^TestRootless$' -test.v`, grant, path)
		if grant == "no helpers" {
			cmd.Args[len(cmd.Args)-1] = "/nonexistent"
			cmd.Args[4] = strings.Replace(cmd.Args[4], `test -e "$0" &&`, "false ||", 1)
			cmd.Args[4] = strings.Replace(cmd.Args[4], "for f in subuid subgid; do", "for f in; do", 1)
		}
		cmd.Env = append(os.Environ(), "EXECUTOR_TEST_ROOTLESS="+dir, "EXECUTOR_TEST_GRANT="+grant, "TMPDIR="+dir+"/tmp")
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "--- PASS") {
			t.Errorf("%s: %v\n%s", grant, err, out)
		}
	}
}

func rootless(t *testing.T) {
	dir := os.Getenv("EXECUTOR_TEST_ROOTLESS")
	own := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 54321, Size: 1}}
	make := func(args ...string) Config {
		s := spec(args...)
		s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
		s.Linux.UIDMappings, s.Linux.GIDMappings = own, own
		s.Process.OOMScoreAdj = ptr(100)
		return Config{ID: "rootless", Spec: s, Rootfs: Rootfs{Lower: []string{dir + "/lower"}, Upper: dir + "/upper", Work: dir + "/work"}}
	}
	c := make("sh", "-c", "id -u; cat /proc/self/setgroups /proc/self/oom_score_adj; touch /written; rm -r /root; mkdir /root; ls -A /root | wc -l; hostname; head -c 2 /dev/zero | wc -c; ls /proc/self/fd | wc -l; mount | grep -c '^proc on /proc '")
	c.Rootfs.Lower = append(c.Rootfs.Lower, dir+"/empty")
	r := run(t, c)
	lines(t, r.out, "0", "deny", "100", "box", "2", "4", "1")
	if got := owner(t, dir+"/upper/written"); got != "54321:54321" {
		t.Errorf("a file of the container belongs to %s", got)
	}

	// Exec, and a second container in its namespaces.
	c = make("sleep", "1000")
	c.Rootfs = Rootfs{Dir: dir + "/lower"}
	p, end := start(t, c)
	defer end()
	lines(t, execute(t, ExecConfig{PID: p.PID(), Process: &specs.Process{Args: []string{"sh", "-c", "id -u; cat /proc/1/comm; hostname"}, Cwd: "/", Env: []string{"PATH=/bin"}}}), "0", "sleep", "box")
	c = make("sh", "-c", "cat /proc/1/comm; hostname")
	c.Rootfs = Rootfs{Dir: dir + "/lower"}
	c.Spec.Hostname = ""
	for i, n := range c.Spec.Linux.Namespaces {
		if name := nsFiles[n.Type]; name != "mnt" {
			if n.Type == specs.UserNamespace {
				name = "user"
			}
			c.Spec.Linux.Namespaces[i].Path = fmt.Sprintf("/proc/%d/ns/%s", p.PID(), name)
		}
	}
	c.Spec.Linux.UIDMappings, c.Spec.Linux.GIDMappings = nil, nil
	c.Spec.Mounts = c.Spec.Mounts[:1]
	lines(t, run(t, c).out, "sleep", "box")

	// More than himself takes what he was granted, and somebody to ask.
	c = make("true")
	c.Spec.Linux.UIDMappings = []specs.LinuxIDMapping{{HostID: 54321, Size: 1}, {ContainerID: 1, HostID: 3000000, Size: 9}}
	if os.Getenv("EXECUTOR_TEST_GRANT") == "granted" {
		c.Spec.Process.Args = []string{"sh", "-c", "cat /proc/self/uid_map /proc/self/gid_map; touch /two; chown 1:2 /two; id -G"}
		c.Spec.Process.User.AdditionalGids = []uint32{5}
		c.Spec.Linux.GIDMappings = c.Spec.Linux.UIDMappings
		out := run(t, c).out
		lines(t, out, "0 54321 1", "1 3000000 9", "0 5")
		if got := owner(t, dir+"/upper/two"); got != "3000000:3000001" {
			t.Errorf("a file of the container's user belongs to %s:\n%s", got, out)
		}
		return
	}
	_, err := shared.Create(contextT(t), c)
	want := map[string]string{"no helpers": "needs newuidmap", "none": "/etc/subuid"}[os.Getenv("EXECUTOR_TEST_GRANT")]
	if errs.KindOf(err) != errs.PermissionDenied || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %q", err, want)
	}
	// What takes the host's root is said to.
	c = make("true")
	c.Rootfs.IDMap = true
	if _, err := shared.Create(contextT(t), c); errs.KindOf(err) != errs.PermissionDenied || !strings.Contains(err.Error(), "id-mapped") {
		t.Errorf("got %v", err)
	}
}

func copyFile(t *testing.T, from, to string, mode os.FileMode) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, mode)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// FuzzIDMap: whatever is read as a mapping is the same when it is written.
func FuzzIDMap(f *testing.F) {
	f.Add("0 100000 65536\n")
	f.Add("         0       1000          1\n         1     100000      65536\n")
	f.Fuzz(func(t *testing.T, text string) {
		m, err := parseIDMap(text)
		if err != nil {
			return
		}
		again, err := parseIDMap(m.text())
		if err != nil || !slices.Equal(m, again) {
			t.Errorf("%q became %v, then %v (%v)", text, m, again, err)
		}
		if m.check("uidMappings") == nil && !m.equal(again) {
			t.Errorf("%v is not equal to itself", m)
		}
	})
}
