package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/test/proc"
	"github.com/orlop-io/orlop/test/programs"
)

var built string // the directory of orlop-oci and orlop-init

// cgroupName is the group above those of all tests.
var cgroupName = fmt.Sprintf("orlop-oci-test-%d", os.Getpid())

func TestMain(m *testing.M) {
	if os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests need root: they make containers")
		os.Exit(1)
	}
	if err := proc.HeedSignals(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	dir, remove, err := programs.Build(
		programs.Program{Package: "cmd/orlop-init", LDFlags: "-s -w"}, programs.Program{Package: "cmd/orlop-oci", LDFlags: "-s -w -E main.entry"},
		programs.Program{Package: "cmd/orlop-oci", Name: "orlop-oci-faults", Tags: "faults"},
		programs.Program{Package: "cmd/orlop-oci/testdata/notifier"}, programs.Program{Package: "cmd/orlop-oci/testdata/counter", LDFlags: "-s -w"})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	built = dir
	// As a shim does: what a detached command leaves running comes to us.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		panic(err)
	}
	code := m.Run()
	for _, g := range groups(cgroupName) {
		if err := os.Remove(g); err != nil { // only ours, and empty
			fmt.Fprintln(os.Stderr, "left behind:", err)
			code = 1
		}
	}
	remove()
	os.Exit(code)
}

// groups are the directories of that name below the hierarchies' roots.
func groups(name string) (list []string) {
	for _, pattern := range []string{"/sys/fs/cgroup/", "/sys/fs/cgroup/*/"} {
		found, _ := filepath.Glob(pattern + name)
		list = append(list, found...)
	}
	return list
}

// rig is a state directory and a bundle.
type rig struct {
	t      testing.TB
	root   string // of the state
	bundle string
	id     string
	spec   *specs.Spec
	env    []string
	binary string
}

func newRig(t testing.TB, args ...string) *rig {
	t.Helper()
	r := &rig{t: t, root: t.TempDir(), bundle: t.TempDir(), id: "c" + strconv.Itoa(os.Getpid()), binary: built + "/orlop-oci"}
	rootfs := r.bundle + "/rootfs"
	for _, d := range []string{"bin", "etc", "proc", "sys", "dev", "tmp", "root"} {
		if err := os.MkdirAll(rootfs+"/"+d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link("/bin/busybox", rootfs+"/bin/busybox"); err != nil {
		data, err := os.ReadFile("/bin/busybox")
		if err != nil {
			t.Fatal("busybox-static is needed: ", err)
		}
		if err := os.WriteFile(rootfs+"/bin/busybox", data, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, a := range []string{"sh", "true", "cat", "sleep", "id", "pwd", "tty", "stty", "kill", "echo", "dd", "env", "ls", "test", "grep"} {
		if err := os.Symlink("busybox", rootfs+"/bin/"+a); err != nil {
			t.Fatal(err)
		}
	}
	os.WriteFile(rootfs+"/etc/passwd", []byte("root:x:0:0:root:/root:/bin/sh\nsome:x:1000:1000::/home/some:/bin/sh\n"), 0o644)
	s := exampleSpec()
	s.Process.Terminal, s.Process.Args, s.Root.Readonly = false, args, false
	s.Process.Rlimits = nil
	s.Linux.Namespaces = slices.DeleteFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.NetworkNamespace })
	s.Linux.CgroupsPath = "/" + cgroupName + "/" + filepath.Base(filepath.Dir(r.root))
	r.spec = s
	r.save()
	t.Cleanup(r.check)
	return r
}

func (r *rig) save() {
	r.t.Helper()
	data, err := json.Marshal(r.spec)
	if err == nil {
		err = os.WriteFile(r.bundle+"/config.json", data, 0o644)
	}
	if err != nil {
		r.t.Fatal(err)
	}
}

// check finds what the test left: containers, processes, groups, mounts.
func (r *rig) check() {
	r.t.Helper()
	if left, _ := os.ReadDir(r.root); len(left) > 0 {
		r.t.Errorf("left in the state directory: %v", left)
		r.run("delete", "--force", r.id)
	}
	eventually(r.t, "processes left behind", func() (bool, string) {
		left := reapOrphans(true)
		return len(left) == 0, fmt.Sprint(left)
	})
	if g := groups(strings.TrimPrefix(r.spec.Linux.CgroupsPath, "/")); r.spec.Linux.CgroupsPath != "" && len(g) > 0 {
		r.t.Errorf("groups left behind: %v", g)
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	if strings.Contains(string(mounts), r.bundle) {
		r.t.Errorf("mounts left behind:\n%s", mounts)
	}
}

// reapOrphans reaps the ended children that came to us, and returns those that run;
// commands, which are reaped by who started them, only with all.
func reapOrphans(all bool) (running []string) {
	tasks, _ := filepath.Glob("/proc/self/task/*/children")
	for _, t := range tasks {
		list, _ := os.ReadFile(t)
		for _, w := range strings.Fields(string(list)) {
			pid, _ := strconv.Atoi(w)
			if name, _ := os.ReadFile("/proc/" + w + "/comm"); !all && strings.HasPrefix(string(name), "orlop-oci") {
				continue
			}
			if got, err := unix.Wait4(pid, nil, unix.WNOHANG, nil); err == nil && got == 0 {
				cmd, _ := os.ReadFile("/proc/" + w + "/cmdline")
				running = append(running, w+" "+strings.ReplaceAll(string(cmd), "\x00", " "))
			}
		}
	}
	return running
}

// eventually asks until the answer is yes; the kernel and other processes need their time, in an
// emulated machine much of it.
func eventually(t testing.TB, what string, ask func() (bool, string)) {
	t.Helper()
	var last string
	for end := time.Now().Add(40 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		var ok bool
		if ok, last = ask(); ok {
			return
		}
	}
	t.Errorf("%s: %s", what, last)
}

type result struct {
	out, err string
	code     int
}

func (r *rig) command(args ...string) *exec.Cmd {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	r.t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, r.binary, append([]string{"--root", r.root}, args...)...)
	cmd.Dir = r.bundle
	cmd.Env = append(append(os.Environ(), "ORLOP_INIT="+built+"/orlop-init"), r.env...)
	return cmd
}

// run runs a command to its end. A container that it leaves behind has /dev/null.
func (r *rig) run(args ...string) result { return r.feed("", args...) }

func (r *rig) feed(stdin string, args ...string) result {
	r.t.Helper()
	cmd := r.command(args...)
	var out, errs bytes.Buffer
	if detaches(args) {
		// Pipes would stay open as long as the container runs.
		f, err := os.Create(filepath.Join(r.t.TempDir(), "err"))
		if err != nil {
			r.t.Fatal(err)
		}
		defer f.Close()
		cmd.Stderr = f
		defer func() {}()
		err = cmd.Run()
		data, _ := os.ReadFile(f.Name())
		return result{err: string(data), code: code(r.t, err)}
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	err := cmd.Run()
	return result{out.String(), errs.String(), code(r.t, err)}
}

func detaches(args []string) bool {
	return slices.Contains(args, "create") || slices.Contains(args, "-d") || slices.Contains(args, "--detach")
}

func code(t testing.TB, err error) int {
	t.Helper()
	var e *exec.ExitError
	if err == nil {
		return 0
	}
	if !errors.As(err, &e) || e.ExitCode() < 0 {
		t.Fatal(err)
	}
	return e.ExitCode()
}

// ok runs a command that must succeed and returns what it wrote.
func (r *rig) ok(args ...string) string {
	r.t.Helper()
	res := r.run(args...)
	if res.code != 0 {
		r.t.Fatalf("%v: code %d: %s", args, res.code, res.err)
	}
	return res.out
}

// fails runs a command that must not, and whose message has words in it.
func (r *rig) fails(words string, args ...string) {
	r.t.Helper()
	res := r.run(args...)
	if res.code == 0 || !strings.Contains(res.err, words) {
		r.t.Errorf("%v: code %d, message %q; want one with %q", args, res.code, res.err, words)
	}
}

// state decodes what the state command says.
func (r *rig) state() (st struct {
	Status, Bundle, Rootfs, Owner, OCIVersion string
	Pid                                       int
}) {
	r.t.Helper()
	if err := json.Unmarshal([]byte(r.ok("state", r.id)), &st); err != nil {
		r.t.Fatal(err)
	}
	return st
}

func (r *rig) reaches(status string) {
	r.t.Helper()
	eventually(r.t, "status is not "+status, func() (bool, string) {
		reapOrphans(false) // a PID namespace ends when all that was in it is reaped
		s := r.state().Status
		return s == status, s
	})
}

// kill ends the container and deletes it.
func (r *rig) kill() {
	r.t.Helper()
	r.ok("kill", r.id, "KILL")
	r.reaches("stopped")
	r.ok("delete", r.id)
}

// group is the container's directory for a controller.
func (r *rig) file(controller, v1, v2 string) string {
	r.t.Helper()
	for _, f := range []string{"/sys/fs/cgroup/" + controller + r.spec.Linux.CgroupsPath + "/" + v1, "/sys/fs/cgroup" + r.spec.Linux.CgroupsPath + "/" + v2} {
		if data, err := os.ReadFile(f); err == nil {
			return strings.TrimSpace(string(data))
		}
	}
	r.t.Fatalf("neither %s nor %s is there", v1, v2)
	return ""
}

// pty returns a terminal's master and its other side.
func pty(t testing.TB) (master, slave *os.File) {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	master = os.NewFile(uintptr(fd), "ptmx")
	t.Cleanup(func() { master.Close() })
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { slave.Close() })
	return master, slave
}

// all reads until the other side closes; a terminal's end is EIO.
func all(f *os.File) string {
	f.SetReadDeadline(time.Now().Add(20 * time.Second))
	data, _ := io.ReadAll(f)
	return string(data)
}

// notifier puts testdata/notifier there.
func notifier(t testing.TB, to string) {
	t.Helper()
	data, err := os.ReadFile(built + "/notifier")
	if err == nil {
		err = os.WriteFile(to, data, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
}
