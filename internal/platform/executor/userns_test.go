package executor

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

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
	q, err := shared.Exec(contextT(t), ExecConfig{PID: sandbox.PID(), Process: &specs.Process{Args: []string{"sh", "-c", "tty; stat -c 'owner %u' $(tty); echo $((6*7))"}, Cwd: "/", Env: []string{"PATH=/bin"}, Terminal: true, User: specs.User{UID: 12}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := q.Start(contextT(t)); err != nil {
		t.Fatal(err)
	}
	talk(t, q.Console(), "owner 12")
	talk(t, q.Console(), "42")
	q.Console().Close()
	wait(t, q)

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
