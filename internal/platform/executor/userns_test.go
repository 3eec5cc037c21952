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
