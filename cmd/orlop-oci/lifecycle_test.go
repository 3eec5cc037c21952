package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/platform/cgroup"
)

func TestLifecycle(t *testing.T) {
	r := newRig(t, "/bin/sh", "-c", "echo started >/tmp/began; exec sleep 100")
	pidFile := filepath.Join(t.TempDir(), "pid")
	r.ok("create", "--pid-file", pidFile, r.id)
	st := r.state()
	if st.Status != "created" || st.Pid == 0 || st.Bundle != r.bundle || st.Rootfs != r.bundle+"/rootfs" || st.Owner != "root" {
		t.Errorf("state %+v", st)
	}
	if pid, _ := os.ReadFile(pidFile); string(pid) != strconv.Itoa(st.Pid) {
		t.Errorf("pid file %q, state %d", pid, st.Pid)
	}
	began := r.bundle + "/rootfs/tmp/began"
	if _, err := os.Stat(began); err == nil {
		t.Error("the program ran before it was started")
	}
	r.fails("exists already", "create", r.id)
	r.ok("start", r.id)
	eventually(t, "the program did not begin", func() (bool, string) { _, err := os.Stat(began); return err == nil, "" })
	if st := r.state(); st.Status != "running" {
		t.Errorf("status %s after start", st.Status)
	}
	r.fails("already running", "start", r.id)
	r.fails("not stopped: running", "delete", r.id)
	r.ok("kill", r.id) // SIGTERM: process 1 of a PID namespace ignores it
	if got := r.state().Status; got != "running" {
		t.Errorf("status %s after SIGTERM", got)
	}
	r.ok("kill", r.id, "9")
	r.reaches("stopped")
	if st := r.state(); st.Pid != 0 {
		t.Errorf("pid %d of a stopped container", st.Pid)
	}
	r.fails("container not running", "kill", r.id, "KILL")
	r.ok("kill", "--all", r.id, "KILL")
	r.fails("has stopped", "start", r.id)
	r.ok("delete", r.id)
	r.fails("container does not exist", "state", r.id)
	r.fails("container does not exist", "delete", r.id)
	r.ok("delete", "--force", r.id)
}

// With --systemd-cgroup the container is in a scope that systemd has made, and which goes
// with it.
func TestSystemd(t *testing.T) {
	if _, err := cgroup.Open(cgroup.Options{Driver: cgroup.Systemd}); err != nil {
		if os.Getenv("ORLOP_TEST_SYSTEMD") != "" {
			t.Fatal(err)
		}
		t.Skip("run by test/vm (TestHosts/systemd/orlop-oci): ", err)
	}
	r := newRig(t, "/bin/sleep", "100")
	unit := fmt.Sprintf("ocitest-%d.scope", os.Getpid())
	r.spec.Linux.CgroupsPath = fmt.Sprintf("ocitest.slice:ocitest:%d", os.Getpid())
	r.spec.Annotations = map[string]string{
		"org.systemd.property.TimeoutStopSec": "12",
		"org.systemd.property.CollectMode":    "'inactive'", // in the place of ours
		"org.systemd.property.After":          "['ocitest-other.service']",
		"org.systemd.property.MemoryHigh":     "uint64 33554432",
	}
	r.spec.Linux.Resources.CPU = &specs.LinuxCPU{Cpus: "0", Mems: "0"}
	r.spec.Linux.Resources.HugepageLimits = []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 4 << 20}}
	r.save()
	property := func(name string) string {
		out, err := exec.Command("systemctl", "show", "-P", name, unit).Output()
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(out))
	}
	r.ok("--systemd-cgroup", "run", "-d", r.id)
	if got, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", r.state().Pid)); string(got) != "0::/ocitest.slice/"+unit+"\n" {
		t.Errorf("the container is in %q", got)
	}
	// Inside it sees its limits, and every controller that the host has.
	if got := r.ok("exec", r.id, "sh", "-c", "cd /sys/fs/cgroup && cat cpuset.cpus cpuset.mems hugetlb.2MB.max"); got != "0\n0\n4194304\n" {
		t.Errorf("it sees the limits %q", got)
	}
	host, err := os.ReadFile("/sys/fs/cgroup/cgroup.controllers")
	if got := r.ok("exec", r.id, "cat", "/sys/fs/cgroup/cgroup.controllers"); err != nil || got != string(host) {
		t.Errorf("it has the controllers %q, the host %q (%v)", got, host, err)
	}
	r.ok("update", "--memory", "64m", "--pids-limit", "55", r.id)
	for name, want := range map[string]string{"ActiveState": "active", "MemoryMax": "67108864", "TasksMax": "55",
		"TimeoutStopUSec": "12s", "CollectMode": "inactive", "After": "ocitest-other.service", "MemoryHigh": "33554432"} {
		if got := property(name); got != want && !(name == "After" && slices.Contains(strings.Fields(got), want)) {
			t.Errorf("%s %q, want %q", name, got, want)
		}
	}
	if res := r.run("exec", r.id, "cat", "/proc/self/cgroup"); !strings.HasSuffix(strings.TrimSpace(res.out), unit) && strings.TrimSpace(res.out) != "0::/" {
		t.Errorf("a command is elsewhere: %+v", res)
	}
	r.kill()
	eventually(t, "the unit is still there", func() (bool, string) {
		s := property("LoadState")
		return s == "not-found", s
	})
	// What systemd does not know leaves nothing; what cannot be read is refused before.
	for annotation, says := range map[string]string{"NoSuchProperty": "annotations org.systemd.property.", "CPUWeight": "annotations org.systemd.property.", "x": "three letters", "Slice": "cgroupsPath"} {
		r.spec.Annotations = map[string]string{"org.systemd.property." + annotation: "'a text'"}
		r.save()
		r.fails(says, "--systemd-cgroup", "run", "-d", r.id)
		if s := property("LoadState"); s != "not-found" {
			t.Errorf("%s: a unit is left: %s", annotation, s)
		}
	}
}

func TestRun(t *testing.T) {
	for _, tt := range []struct {
		name, script, stdin, out string
		code                     int
	}{
		{"true", "true", "", "", 0},
		{"code", "echo out; exit 7", "", "out\n", 7},
		{"stdin", "cat", "from outside", "from outside", 0},
		{"home", "echo $HOME", "", "/root\n", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t, "/bin/sh", "-c", "sh -c '"+strings.ReplaceAll(tt.script, "'", `'\''`)+"'")
			got := r.feed(tt.stdin, "run", r.id)
			if got.out != tt.out || got.code != tt.code || got.err != "" {
				t.Errorf("%+v, want %q and %d", got, tt.out, tt.code)
			}
		})
	}
}

func TestRunDetachedAndKept(t *testing.T) {
	r := newRig(t, "/bin/sleep", "100")
	r.ok("run", "-d", r.id)
	if st := r.state(); st.Status != "running" {
		t.Errorf("status %s", st.Status)
	}
	r.ok("delete", "--force", r.id)
	r.spec.Process.Args = []string{"/bin/true"}
	r.save()
	r.ok("run", "--keep", r.id)
	if st := r.state(); st.Status != "stopped" {
		t.Errorf("status %s", st.Status)
	}
	r.ok("delete", r.id)
}

// Errors: what a caller gets to read, and that nothing is left (the rig's check).
func TestErrors(t *testing.T) {
	r := newRig(t, "/bin/true")
	for _, tt := range []struct {
		words string
		args  []string
	}{
		{"no such command", []string{"fly"}},
		{"flag --nonsense is not known", []string{"run", "--nonsense", "x"}},
		{"run takes ID", []string{"run"}},
		{"run takes ID", []string{"run", "a", "b"}},
		{"needs a value", []string{"run", "x", "--bundle"}},
		{"use letters, digits", []string{"run", "../x"}},
		{"use letters, digits", []string{"state", "a/b"}},
		{"config.json is not there", []string{"run", "--bundle", t.TempDir(), "x"}},
		{"container does not exist", []string{"start", "x"}},
		{"container does not exist", []string{"exec", "x", "true"}},
		{"container does not exist", []string{"kill", "x"}},
		{"container does not exist", []string{"update", "--memory", "1m", "x"}},
		{"BAD", []string{"kill", "x", "BAD"}},
		{"use table or json", []string{"list", "-f", "xml"}},
		{"cannot use console socket if no terminal", []string{"create", "--console-socket", "/nowhere", "x"}},
		{" is to be passed on, but it is not open", []string{"run", "--preserve-fds", "9", "x"}},
		{"--rootless maybe", []string{"--rootless", "maybe", "list"}},
	} {
		r.fails(tt.words, tt.args...)
	}
	for _, tt := range []struct {
		words  string
		change func()
	}{
		{"process is missing", func() { r.spec.Process = nil }},
		{"there is no command to run", func() { r.spec.Process.Args = nil }},
		{"no such file or directory", func() { r.spec.Process.Args = []string{"/bin/none"} }},
		{"without setting console socket", func() { r.spec.Process.Terminal = true }},
		{"root.path is missing", func() { r.spec.Root = nil }},
		{"no such file or directory", func() { r.spec.Root.Path = "none" }},
		{"is not a directory", func() { r.spec.Root.Path = "config.json" }},
	} {
		was := *r.spec
		p, root := *r.spec.Process, *r.spec.Root
		tt.change()
		r.save()
		r.fails(tt.words, "create", r.id)
		*r.spec, *was.Process, *was.Root = was, p, root
		r.spec.Process, r.spec.Root = &p, &root
	}
	if err := os.WriteFile(r.bundle+"/config.json", []byte(`{"process": 5}`), 0o644); err != nil {
		t.Fatal(err)
	}
	r.fails("specification", "run", r.id)
}

// Callers take the reason of a failure out of the log.
func TestLog(t *testing.T) {
	r := newRig(t, "/bin/none")
	file := filepath.Join(t.TempDir(), "log")
	res := r.run("--log", file, "--log-format", "json", "run", r.id)
	if res.code != 1 || !strings.Contains(res.err, "/bin/none: no such file or directory") {
		t.Errorf("%+v", res)
	}
	data, _ := os.ReadFile(file)
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	var l struct{ Level, Msg, Time string }
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &l); err != nil || l.Level != "error" || l.Time == "" || l.Msg+"\n" != res.err {
		t.Errorf("%v: %q", err, data)
	}
	res = r.run("--log", file, "--log-format", "xml", "list")
	if res.code == 0 {
		t.Error("log format xml is taken")
	}
	if out := r.ok("--version"); !strings.HasPrefix(out, "orlop-oci version ") || !strings.Contains(out, "spec: ") {
		t.Errorf("version %q", out)
	}
}

func TestList(t *testing.T) {
	r := newRig(t, "/bin/sleep", "100")
	if out := r.ok("list", "-q"); out != "" {
		t.Errorf("%q", out)
	}
	r.ok("create", r.id)
	if out := r.ok("list", "-q"); out != r.id+"\n" {
		t.Errorf("%q", out)
	}
	if out := r.ok("list"); !strings.Contains(out, "created") || !strings.Contains(out, r.bundle) {
		t.Errorf("%q", out)
	}
	var all []struct{ ID, Status string }
	if err := json.Unmarshal([]byte(r.ok("list", "-f", "json")), &all); err != nil || len(all) != 1 || all[0].ID != r.id || all[0].Status != "created" {
		t.Errorf("%v %v", all, err)
	}
	r.ok("delete", r.id) // a created container needs no force
}

// One of many creates of an id wins, and the others leave what it made alone.
func TestCreateAtOnce(t *testing.T) {
	r := newRig(t, "/bin/sleep", "100")
	var wg sync.WaitGroup
	results := make([]result, 6)
	for i := range results {
		wg.Go(func() { results[i] = r.run("create", r.id) })
	}
	wg.Wait()
	won := 0
	for _, res := range results {
		if res.code == 0 {
			won++
		} else if !strings.Contains(res.err, "exists already") && !strings.Contains(res.err, "at work") && !strings.Contains(res.err, "has processes already") {
			t.Errorf("%+v", res)
		}
	}
	if won != 1 {
		t.Errorf("%d creates succeeded", won)
	}
	r.ok("start", r.id)
	r.kill()
}

// A number that was given to another process is never signalled.
func TestNumberReused(t *testing.T) {
	r := newRig(t, "/bin/sleep", "100")
	r.ok("run", "-d", r.id)
	file := r.root + "/" + r.id + "/state.json"
	was, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var rec map[string]any
	json.Unmarshal(was, &rec)
	pid := int(rec["pid"].(float64))
	rec["start"] = rec["start"].(float64) - 1
	changed, _ := json.Marshal(rec)
	os.WriteFile(file, changed, 0o600)
	if st := r.state(); st.Status != "stopped" {
		t.Errorf("status %s", st.Status)
	}
	r.fails("container not running", "kill", r.id, "KILL")
	if err := unix.Kill(pid, 0); err != nil {
		t.Errorf("the other process was signalled: %v", err)
	}
	os.WriteFile(file, was, 0o600)
	r.kill()
}

// A group that has processes is somebody else's.
func TestGroupInUse(t *testing.T) {
	a, b := newRig(t, "/bin/sleep", "100"), newRig(t, "/bin/true")
	b.spec.Linux.CgroupsPath = a.spec.Linux.CgroupsPath
	b.save()
	a.ok("run", "-d", a.id)
	b.fails("has processes already", "run", b.id)
	if st := a.state(); st.Status != "running" {
		t.Errorf("the other container is %s", st.Status)
	}
	a.kill()
	b.ok("run", b.id)
}

// A container whose path is relative or missing is within the limits of who makes it, also where
// one hierarchy has its maker elsewhere than the others do; whoever execs in it later
// and from elsewhere is too.
func TestWithinOwnLimits(t *testing.T) {
	memory := "/sys/fs/cgroup/memory/" + cgroupName + "/caller"
	if _, err := os.Stat("/sys/fs/cgroup/memory/memory.limit_in_bytes"); err != nil {
		t.Skip("cgroup2 alone: there is but one place")
	}
	if err := os.MkdirAll(memory, 0o755); err != nil {
		t.Fatal(err)
	}
	defer func() {
		os.Remove(memory + "/" + cgroupName) // that of a path stays, as with runc
		if err := os.Remove(memory); err != nil {
			t.Error(err)
		}
	}()
	if err := os.WriteFile(memory+"/memory.limit_in_bytes", []byte("100M"), 0o644); err != nil {
		t.Fatal(err)
	}
	r := newRig(t, "/bin/dd", "if=/dev/zero", "of=/dev/null", "bs=300M", "count=1")
	inside := func(args ...string) result {
		t.Helper()
		cmd := r.command(args...)
		cmd.Args = append([]string{"sh", "-c", `echo 0 >"$0/cgroup.procs"; exec "$@"`, memory, cmd.Path}, cmd.Args[1:]...)
		cmd.Path = "/bin/sh"
		var errs bytes.Buffer
		if cmd.Stderr = &errs; detaches(args) {
			cmd.Stderr = nil
		}
		return result{code: code(t, cmd.Run()), err: errs.String()}
	}
	for _, path := range []string{"", cgroupName + "/x"} {
		r.spec.Linux.CgroupsPath = path
		r.save()
		if got := inside("run", r.id); got.code != 128+9 {
			t.Errorf("%q: more memory than its maker's: %+v", path, got)
		}
	}
	r.spec.Process.Args = []string{"/bin/sleep", "100"}
	r.spec.Linux.CgroupsPath = ""
	r.save()
	if got := inside("run", "-d", r.id); got.code != 0 {
		t.Fatal(got)
	}
	want := "memory:/" + cgroupName + "/caller/" + r.id + "\n"
	for _, pid := range []string{fmt.Sprint(r.state().Pid), "self"} {
		list, err := os.ReadFile("/proc/" + pid + "/cgroup")
		if pid == "self" {
			list, err = []byte(r.ok("exec", r.id, "/bin/cat", "/proc/self/cgroup")), nil
		}
		if err != nil || !strings.Contains(string(list), want) {
			t.Errorf("%s: %v\n%s, want %s", pid, err, list, want)
		}
	}
	r.ok("update", "--memory", "20971520", r.id)
	if data, err := os.ReadFile(memory + "/" + r.id + "/memory.limit_in_bytes"); string(data) != "20971520\n" {
		t.Errorf("%q %v", data, err)
	}
	r.kill()
	if left := groups(r.id); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestHooks(t *testing.T) {
	r := newRig(t, "/bin/true")
	log := filepath.Join(t.TempDir(), "log")
	raw := fmt.Sprintf(`{"poststart": [{"path": "/bin/sh", "args": ["sh", "-c", "(echo poststart; cat; echo) >>%[1]s"]}],
		"poststop": [{"path": "/bin/false"}, {"path": "/bin/sh", "args": ["sh", "-c", "(echo poststop; cat; echo) >>%[1]s"]}]}`, log)
	if err := json.Unmarshal([]byte(raw), &r.spec.Hooks); err != nil {
		t.Fatal(err)
	}
	r.save()
	r.ok("run", r.id)
	data, _ := os.ReadFile(log)
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	var got []string
	for i := 1; i < len(lines); i += 2 {
		var st struct {
			ID, Status string
			Pid        int
		}
		if err := json.Unmarshal([]byte(lines[i]), &st); err != nil {
			t.Fatalf("%v: %q", err, data)
		}
		got = append(got, fmt.Sprint(lines[i-1], " ", st.ID == r.id, " ", st.Status, " ", st.Pid > 0))
	}
	if want := "[poststart true running true poststop true stopped false]"; fmt.Sprint(got) != want {
		t.Errorf("%v, want %s", got, want)
	}
	r.spec.Process.Args = []string{"/bin/sleep", "100"}
	r.spec.Hooks.Poststart[0].Args = []string{"sh", "-c", "exit 3"}
	r.save()
	r.fails("", "run", r.id) // and what it had started is gone
}

// Who is not root has containers too, in a user namespace and, where there may be none, without a
// control group.
func TestRootless(t *testing.T) {
	r := newRig(t, "/bin/sh", "-c", "id -u; exit 3")
	makeRootless(r.spec)
	r.spec.Linux.CgroupsPath = ""
	r.spec.Linux.UIDMappings[0].HostID, r.spec.Linux.GIDMappings[0].HostID = 1000, 1000
	r.save()
	for _, dir := range []string{r.root, r.bundle, built} {
		for d := dir; d != "/"; d = filepath.Dir(d) {
			if st, err := os.Stat(d); err == nil && st.Mode()&1 == 0 {
				os.Chmod(d, 0o755) // of the test's own directories
			}
		}
	}
	filepath.WalkDir(r.bundle, func(p string, _ os.DirEntry, err error) error { return os.Lchown(p, 1000, 1000) })
	os.Chown(r.root, 1000, 1000)
	for _, args := range [][]string{{"run", r.id}, {"--rootless", "true", "run", r.id}} {
		cmd := r.command(args...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1000, Gid: 1000}}
		var errs strings.Builder
		cmd.Stderr = &errs
		out, err := cmd.Output()
		if string(out) != "0\n" || code(t, err) != 3 {
			t.Errorf("%v: %q %v %s", args, out, err, errs.String())
		}
	}
	cmd := r.command("--rootless", "false", "run", r.id)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1000, Gid: 1000}}
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "permission denied") {
		t.Errorf("%s %v", out, err)
	}
}
