package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/test/checkpoints"
)

// counterRig is a rig with testdata/counter as its program.
func counterRig(t *testing.T, args ...string) *rig {
	t.Helper()
	r := newRig(t, append([]string{"/bin/counter"}, args...)...)
	data, err := os.ReadFile(built + "/counter")
	if err == nil {
		err = os.WriteFile(r.bundle+"/rootfs/bin/counter", data, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	r.spec.Mounts = append(r.spec.Mounts, specs.Mount{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs"})
	limit := int64(200 << 20)
	r.spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &limit}
	r.save()
	return r
}

// lines are those that the counter has written.
func (r *rig) lines() int {
	r.t.Helper()
	return checkpoints.Counted(r.t, r.bundle+"/rootfs/log")
}

// counts waits until some more has been counted, and returns how far it is.
func (r *rig) counts() (n int) {
	r.t.Helper()
	was := r.lines()
	eventually(r.t, "it does not count", func() (bool, string) {
		n = r.lines()
		return n > was+3, fmt.Sprint(n)
	})
	return n
}

// gone tells that nothing is left of the container, as after a delete.
func (r *rig) gone() {
	r.t.Helper()
	r.fails("container does not exist", "state", r.id)
	reapOrphans(false)
	r.check()
}

// Whatever is wrong with CRIU, the message says what, and what to do; the container goes on, and nothing
// is left of what could not be restored.
func TestCheckpointWithoutCRIU(t *testing.T) {
	r := newRig(t, "/bin/sleep", "100")
	r.ok("create", r.id)
	r.fails("cannot be checkpointed: it is created", "checkpoint", r.id)
	r.ok("start", r.id)
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/descriptors.json", []byte(`["","",""]`), 0o644); err != nil {
		t.Fatal(err)
	}
	// What it says to a question for its version and to `criu check`.
	fake := func(name, version, check string) string {
		p := filepath.Join(t.TempDir(), name)
		script := "#!/bin/sh\ncase $1 in swrk) dd bs=4k count=1 <&3 >/dev/null 2>&1; printf '" + version + "' >&3 ;; check) " + check + " ;; esac\n"
		if err := os.WriteFile(p, []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
		return p
	}
	const current, old = `\010\012\020\001\122\006\010\003\020\021\040\001`, `\010\012\020\001\122\004\010\003\020\013`
	failing := "echo '(00.01) Error (criu/x.c:1): the kernel lacks it' >&2; echo 'Error (criu/y.c:2): so nothing works'; exit 1"
	for _, tt := range []struct{ criu, words string }{
		{"/nowhere/criu", "install the package criu"},
		{"no-such-criu", "install the package criu"},
		{fake("old", old, "true"), "CRIU 3.11, which is too old: 3.15 or newer"},
		{fake("bad", current, failing), "CRIU 3.17.1 cannot work on this kernel: the kernel lacks it; so nothing works"},
		{fake("worse", current, "exit 3"), "cannot work on this kernel: exit status 3"},
		{fake("mute", "", "true"), "does not answer as CRIU does"},
		{fake("other", `\001\002\003`, "true"), "does not answer as CRIU does"},
		{"/bin/true", "does not answer as CRIU does"},
	} {
		r.fails(tt.words, "--criu", tt.criu, "checkpoint", "--image-path", t.TempDir(), r.id)
		if st := r.state(); st.Status != "running" {
			t.Fatalf("%s: status %s", tt.criu, st.Status)
		}
		again := r.id + "-again"
		r.fails(tt.words, "--criu", tt.criu, "restore", "-d", "--image-path", dir, again)
		r.fails("container does not exist", "state", again)
	}
	good := fake("good", current, "true") // but it does nothing
	for _, tt := range []struct {
		words string
		args  []string
	}{
		{"has no checkpoint", []string{"restore", "--image-path", t.TempDir(), "x"}},
		{"has no checkpoint", []string{"restore", "x"}},
		{"pivot_root", []string{"restore", "--no-pivot", "--image-path", dir, "x"}},
		{"use soft, full, strict or ignore", []string{"restore", "--manage-cgroups-mode", "hard", "--image-path", dir, "x"}},
		{"for network alone", []string{"restore", "--empty-ns", "mount", "--image-path", dir, "x"}},
		{"container does not exist", []string{"checkpoint", "x"}},
		{"use soft, full, strict or ignore", []string{"checkpoint", "--manage-cgroups-mode", "hard", r.id}},
		{"for network alone", []string{"checkpoint", "--empty-ns", "mount", r.id}},
		{"use ADDRESS:PORT", []string{"checkpoint", "--page-server", "here", r.id}},
		{"give --page-server", []string{"checkpoint", "--lazy-pages", r.id}},
		{"not open for writing", []string{"checkpoint", "--status-fd", "77", r.id}},
		{"it answered the dump with a question for its version", []string{"checkpoint", "--image-path", t.TempDir(), r.id}},
	} {
		r.fails(tt.words, append([]string{"--criu", good}, tt.args...)...)
	}
	r.kill()
	for _, tt := range []struct {
		words  string
		change func()
	}{
		{"id-mapped", func() { r.spec.Mounts[0].Options = []string{"bind", "idmap"} }},
		{"SCMP_ACT_NOTIFY", func() { r.spec.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActNotify} }},
		{"linux.netDevices", func() { r.spec.Linux.NetDevices = map[string]specs.LinuxNetDevice{"eth9": {}} }},
		{"linux.intelRdt", func() { r.spec.Linux.IntelRdt = &specs.LinuxIntelRdt{} }},
		{"mount namespace", func() {
			r.spec.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.MountNamespace, Path: "/proc/self/ns/mnt"}}
		}},
	} {
		was, mounts, l := *r.spec, r.spec.Mounts, *r.spec.Linux
		linux := l
		r.spec.Mounts, r.spec.Linux = append([]specs.Mount{{Destination: "/x", Source: "/", Type: "bind"}}, mounts...), &linux
		tt.change()
		r.save()
		r.fails(tt.words, "--criu", good, "restore", "-d", "--image-path", dir, r.id)
		*r.spec = was
	}
	r.save()
	r.fails("it answered the restore with a question for its version", "--criu", good, "restore", "-d", "--image-path", dir, r.id)
	r.gone()
}

// A container that was saved is gone, and goes on where it was when it is restored: memory, files,
// pipes, children, and its limits; and it is a container as any other. Twice, as what was
// restored is saved by other means than what was created.
func TestCheckpoint(t *testing.T) {
	checkpoints.NeedCRIU(t, "criu")
	r := counterRig(t)
	r.spec.Linux.Namespaces = append(r.spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace})
	r.save()
	limit := func() string { return r.file("memory", "memory.limit_in_bytes", "memory.max") }
	options := hostCgroupOptions(t)
	r.ok("run", "-d", r.id)
	before := limit()
	for i := range 2 {
		dir := filepath.Join(t.TempDir(), "images")
		n := r.counts()
		r.ok("checkpoint", "--image-path", dir, r.id)
		r.gone()
		pid := filepath.Join(t.TempDir(), "pid")
		if res := r.run("restore", "-d", "--image-path", dir, "--pid-file", pid, r.id); res.code != 0 {
			t.Fatalf("%d: %+v\n%s", i, res, lastLines(dir+"/restore.log"))
		}
		st := r.state()
		if st.Status != "running" {
			t.Errorf("%d: status %s", i, st.Status)
		}
		if data, _ := os.ReadFile(pid); string(data) != fmt.Sprint(st.Pid) {
			t.Errorf("%d: the pid file has %q, and the process is %d", i, data, st.Pid)
		}
		if now := r.counts(); now <= n {
			t.Errorf("%d: it was at %d, and is at %d", i, n, now)
		}
		if now := limit(); now != before || before == "max" {
			t.Errorf("%d: the memory limit was %s, and is %s", i, before, now)
		}
	}
	if out := r.ok("exec", r.id, "cat", "/tmp/file"); out != "kept" {
		t.Errorf("exec: %q", out)
	}
	r.ok("pause", r.id)
	if st := r.state(); st.Status != "paused" {
		t.Errorf("status %s", st.Status)
	}
	r.ok("resume", r.id)
	if out := r.ok("events", "--stats", r.id); !strings.Contains(out, `"usage"`) {
		t.Errorf("events: %s", out)
	}
	if out := r.ok("ps", r.id); strings.Count(out, "counter") < 2 {
		t.Errorf("ps: %s", out)
	}
	if now := hostCgroupOptions(t); now != options {
		t.Errorf("the host's cgroup filesystem had the options %s, and has %s", options, now)
	}
	r.kill()
}

// hostCgroupOptions are those of the host's cgroup filesystem.
func hostCgroupOptions(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if strings.Contains(line, " - cgroup2 ") {
			return line[strings.Index(line, " - "):]
		}
	}
	return ""
}

func lastLines(file string) string {
	data, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	lines := strings.SplitAfter(string(data), "\n")
	return strings.Join(lines[max(0, len(lines)-25):], "")
}

// With --leave-running it goes on, and with --pre-dump; memory that has been saved by one is left out
// by the next. A restore is of the time of the checkpoint.
func TestCheckpointLeavesRunning(t *testing.T) {
	checkpoints.NeedCRIU(t, "criu")
	r := counterRig(t)
	dir := t.TempDir()
	r.ok("run", "-d", r.id)
	r.counts()
	r.ok("checkpoint", "--pre-dump", "--image-path", dir+"/first", r.id)
	r.counts()
	r.fails("must be relative", "checkpoint", "--image-path", dir+"/second", "--parent-path", dir+"/first", r.id)
	r.fails("invalid --parent-path", "checkpoint", "--image-path", dir+"/second", "--parent-path", "../none", r.id)
	r.ok("checkpoint", "--leave-running", "--work-path", dir+"/work", "--image-path", dir+"/second", "--parent-path", "../first", r.id)
	if _, err := os.Stat(dir + "/work/dump.log"); err != nil {
		t.Error(err)
	}
	r.counts()
	pages := func(dir string) (n int64) {
		list, _ := filepath.Glob(dir + "/pages-*.img")
		for _, f := range list {
			if st, err := os.Stat(f); err == nil {
				n += st.Size()
			}
		}
		return n
	}
	if first, second := pages(dir+"/first"), pages(dir+"/second"); first == 0 || second >= first {
		t.Errorf("%d bytes of memory before, and %d after it, which should be less", first, second)
	}
	if st := r.state(); st.Status != "running" {
		t.Errorf("status %s", st.Status)
	}
	r.fails("exists already", "restore", "-d", "--image-path", dir+"/second", r.id)
	r.kill()
	// Its log is a file of the root filesystem, which is not saved: it has to be what it was.
	res := r.run("restore", "-d", "--image-path", dir+"/second", r.id)
	size := regexp.MustCompile(`bad size \d+ \(expect (\d+)\)`).FindStringSubmatch(res.err)
	if res.code == 0 || size == nil {
		t.Fatalf("a file that has grown: %+v", res)
	}
	n, _ := strconv.ParseInt(size[1], 10, 64)
	if err := os.Truncate(r.bundle+"/rootfs/log", n); err != nil {
		t.Fatal(err)
	}
	if res := r.run("restore", "-d", "--image-path", dir+"/second", r.id); res.code != 0 {
		t.Fatalf("%+v", res)
	}
	r.counts()
	r.kill()
}

// Of damaged images nothing is made, and the message says what is wrong.
func TestRestoreDamaged(t *testing.T) {
	checkpoints.NeedCRIU(t, "criu")
	r := counterRig(t)
	dir := t.TempDir()
	r.ok("run", "-d", r.id)
	r.counts()
	r.ok("checkpoint", "--image-path", dir, r.id)
	half := func(b []byte) []byte { return b[:len(b)/2] }
	other := func(b []byte) []byte {
		b = slices.Clone(b)
		b[len(b)/2] ^= 1
		return b
	}
	for _, tt := range []struct {
		file   string
		damage func([]byte) []byte
		words  string
	}{
		{"pages-1.img", half, "pages-1.img has"},
		{"pages-1.img", other, "another checksum"},
		{"descriptors.json", half, "unexpected end of JSON"},
		{"orlop.json", half, "unexpected end of JSON"},
		{"core-1.img", nil, "not whole"},
		// Nobody knows of it but CRIU.
		{"core-1.img", half, "CRIU: restore failed"},
	} {
		if strings.HasPrefix(tt.words, "CRIU") {
			os.Remove(dir + "/orlop.json")
		}
		file := dir + "/" + tt.file
		whole, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		os.Remove(file)
		if tt.damage != nil {
			if err := os.WriteFile(file, tt.damage(whole), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		r.fails(tt.words, "restore", "-d", "--image-path", dir, r.id)
		r.gone()
		if err := os.WriteFile(file, whole, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// A terminal's master is outside: whoever restores gets one, and the program has its terminal as before.
func TestCheckpointTerminal(t *testing.T) {
	checkpoints.NeedCRIU(t, "criu")
	r := counterRig(t, "tty")
	r.spec.Process.Terminal = true
	r.save()
	dir := t.TempDir()
	master := func(args ...string) *os.File {
		t.Helper()
		socket, err := net.ListenUnix("unix", &net.UnixAddr{Name: dir + "/s"})
		if err != nil {
			t.Fatal(err)
		}
		defer socket.Close()
		if res := r.run(append(args, r.id)...); res.code != 0 {
			t.Fatalf("%v: %+v", args, res)
		}
		_, f := receive(t, socket)
		return f
	}
	asks := func(m *os.File, what string) {
		t.Helper()
		m.WriteString(what + "\n")
		m.SetReadDeadline(time.Now().Add(20 * time.Second))
		var got []byte
		for buf := make([]byte, 100); !strings.Contains(string(got), "answer to "+what); {
			n, err := m.Read(buf)
			if got = append(got, buf[:n]...); err != nil {
				t.Fatalf("%q, %v", got, err)
			}
		}
	}
	first := master("run", "-d", "--console-socket", dir+"/s")
	asks(first, "one")
	r.ok("checkpoint", "--image-path", dir+"/images", r.id)
	first.Close()
	r.fails("without setting console socket", "restore", "-d", "--image-path", dir+"/images", r.id)
	second := master("restore", "-d", "--console-socket", dir+"/s", "--image-path", dir+"/images")
	defer second.Close()
	asks(second, "two")
	r.counts()
	r.kill()
}

// What is outside of a container is not saved, and is what it is then: bind mounts, with what is
// mounted in them, where a link of the image leads to; a namespace that is joined; standard streams.
func TestCheckpointOutside(t *testing.T) {
	checkpoints.NeedCRIU(t, "criu")
	r := counterRig(t)
	outside := t.TempDir()
	if err := os.MkdirAll(outside+"/below", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", outside+"/below", "tmpfs", 0, "size=64k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(outside+"/below", unix.MNT_DETACH) })
	for file, text := range map[string]string{"a": "first", "below/b": "below"} {
		if err := os.WriteFile(outside+"/"+file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("/real/place", r.bundle+"/rootfs/link"); err != nil {
		t.Fatal(err)
	}
	os.MkdirAll(r.bundle+"/rootfs/real/place", 0o755)
	r.spec.Mounts = append(r.spec.Mounts,
		specs.Mount{Destination: "/link/data", Source: outside, Type: "bind", Options: []string{"rbind", "ro"}},
		specs.Mount{Destination: "/tmp/inner/file", Source: outside + "/a", Type: "bind", Options: []string{"bind"}})
	ns := netns(t)
	r.spec.Linux.Namespaces = append(r.spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.NetworkNamespace, Path: ns})
	r.save()
	files := t.TempDir()
	start := func(args ...string) {
		t.Helper()
		out, err := os.OpenFile(files+"/out", os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		said, err := os.Create(files + "/err")
		if err != nil {
			t.Fatal(err)
		}
		defer said.Close()
		cmd := r.command(args...)
		cmd.Stdout, cmd.Stderr = out, said
		if err := cmd.Run(); err != nil {
			data, _ := os.ReadFile(said.Name())
			t.Fatalf("%v: %v: %s", args, err, data)
		}
	}
	start("run", "-d", r.id)
	r.counts()
	r.ok("checkpoint", "--image-path", files+"/images", r.id)
	unlocked(t, ns)
	// An image that comes from elsewhere may lack the mount points.
	os.RemoveAll(r.bundle + "/rootfs/real/place")
	os.MkdirAll(r.bundle+"/rootfs/real/place", 0o755)
	if err := os.WriteFile(outside+"/a", []byte("second"), 0o644); err != nil {
		t.Fatal(err)
	}
	start("restore", "-d", "--image-path", files+"/images", r.id)
	r.counts()
	if out := r.ok("exec", r.id, "sh", "-c", "cat /link/data/a /tmp/inner/file /real/place/data/below/b; echo x >/link/data/c || echo read-only"); out != "secondsecondbelowread-only\n" {
		t.Errorf("it sees %q", out)
	}
	here, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", r.state().Pid))
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(ns, &st); err != nil || here != fmt.Sprintf("net:[%d]", st.Ino) {
		t.Errorf("it is in %s, and should be in %d (%v)", here, st.Ino, err)
	}
	unlocked(t, ns)
	r.kill()
}

// netns makes a network namespace that has a name.
func netns(t *testing.T) string {
	t.Helper()
	name := fmt.Sprintf("orlop-oci-test-%d", os.Getpid())
	if out, err := exec.Command("ip", "netns", "add", name).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("ip", "netns", "delete", name).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	return "/run/netns/" + name
}
