// Package oci has engines that know nothing of Orlop do their everyday work with
// orlop-oci as their runtime: podman, and containerd by its client and by CRI. Each has
// roots of its own below one directory, and what it leaves there or in the kernel fails
// the tests.
package oci

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"golang.org/x/sys/unix"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/orlop-io/orlop/test/programs"
)

var (
	work     string // everything of the engines
	orlopOCI string // orlop-oci, with orlop-init beside it
	archive  string // the image, in Docker's format
)

// groups is the control group above those of all engines' containers.
var groups = fmt.Sprintf("/orlop-engines-%d", os.Getpid())

// image is its name.
const image = "localhost/orlop-test:latest"

func TestMain(m *testing.M) {
	if os.Getuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests need root: they make containers")
		os.Exit(1)
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, remove, err := programs.Build(programs.Program{Package: "cmd/orlop-init", LDFlags: "-s -w"}, programs.Program{Package: "cmd/orlop-oci", LDFlags: "-s -w -E main.entry"})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer remove()
	orlopOCI = dir + "/orlop-oci"
	if work, err = os.MkdirTemp("", "orlop-oci-engines-"); err != nil {
		panic(err)
	}
	defer os.RemoveAll(work)
	os.Chmod(work, 0o755) // for those who are root of a user namespace only
	archive = work + "/image.tar"
	if err := makeImage(archive); err != nil {
		fmt.Fprintln(os.Stderr, "make the image: ", err)
		return 1
	}
	before := leftovers()
	code := m.Run()
	var left []string
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		// What engines keep for the next container, or leave to the kubelet. Others are left behind.
		removeEmpty(groups+"/podman/conmon", groups+"/podman", groups+"/cri", groups)
		left = slices.DeleteFunc(leftovers(), func(s string) bool { return slices.Contains(before, s) })
		if len(left) == 0 || time.Now().After(end) {
			break
		}
	}
	if len(left) > 0 {
		fmt.Fprintf(os.Stderr, "left behind:\n%s\n", strings.Join(left, "\n"))
		code = 1
	}
	return code
}

// leftovers are mounts and processes of the engines, and control groups of their containers.
func leftovers() (list []string) {
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for l := range strings.Lines(string(mounts)) {
		if strings.Contains(l, work) {
			list = append(list, "mount "+strings.Fields(l)[4])
		}
	}
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		if cmd, _ := os.ReadFile(p); bytes.Contains(cmd, []byte(work)) {
			list = append(list, "process "+strings.ReplaceAll(string(cmd), "\x00", " "))
		}
	}
	for _, d := range groupDirs(groups) {
		list = append(list, "cgroup "+d)
	}
	return list
}

// groupDirs are the directories of a control group and of those below it in all
// hierarchies, what is below first.
func groupDirs(group string) (list []string) {
	for _, h := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		tops, _ := filepath.Glob(h + group)
		for _, top := range tops {
			filepath.WalkDir(top, func(p string, e os.DirEntry, err error) error {
				if err == nil && e.IsDir() {
					list = append(list, p)
				}
				return nil
			})
		}
	}
	slices.Reverse(list)
	return list
}

// removeGroups removes control groups with all that are below them, and have no processes.
func removeGroups(list ...string) {
	for _, g := range list {
		for _, d := range groupDirs("/" + g) {
			os.Remove(d)
		}
	}
}

// removeEmpty removes control groups that have no others below them.
func removeEmpty(list ...string) {
	for _, g := range list {
		for _, h := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
			dirs, _ := filepath.Glob(h + g)
			for _, d := range dirs {
				os.Remove(d)
			}
		}
	}
}

// makeImage writes an image that is busybox.
func makeImage(file string) error {
	busybox, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return fmt.Errorf("busybox-static is needed: %w", err)
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, d := range []string{"bin", "etc", "proc", "sys", "dev", "tmp", "root", "run", "home", "home/some"} {
		w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: d + "/", Mode: 0o755})
	}
	w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "bin/busybox", Mode: 0o755, Size: int64(len(busybox))})
	w.Write(busybox)
	for _, a := range []string{"sh", "true", "cat", "sleep", "id", "pwd", "tty", "stty", "kill", "echo", "dd", "env", "ls", "test", "grep", "touch", "stat", "hostname"} {
		w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + a, Linkname: "busybox"})
	}
	passwd := "root:x:0:0:root:/root:/bin/sh\nsome:x:1000:1000::/home/some:/bin/sh\n"
	w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "etc/passwd", Mode: 0o644, Size: int64(len(passwd))})
	io.WriteString(w, passwd)
	if err := w.Close(); err != nil {
		return err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(b.Bytes())), nil })
	if err != nil {
		return err
	}
	img, err := mutate.AppendLayers(empty.Image, layer)
	if err != nil {
		return err
	}
	cfg, err := img.ConfigFile()
	if err != nil {
		return err
	}
	cfg.OS, cfg.Architecture = "linux", runtime.GOARCH
	cfg.Config = v1.Config{Env: []string{"PATH=/bin"}, Cmd: []string{"/bin/sleep", "1000"}}
	if img, err = mutate.ConfigFile(img, cfg); err != nil {
		return err
	}
	ref, err := name.NewTag(image)
	if err != nil {
		return err
	}
	return tarball.WriteToFile(file, ref, img)
}

type result struct {
	out, err string
	code     int
}

// command runs a program to its end.
func command(t testing.TB, stdin string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir, cmd.WaitDelay = work, time.Second // conmon leaves files where it is started
	var out, errs bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errs
	err := cmd.Run()
	var e *exec.ExitError
	code := 0
	if errors.As(err, &e) {
		code = e.ExitCode()
	} else if err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		t.Fatalf("%v: %v %s", args, err, errs.String())
	}
	return result{out.String(), errs.String(), code}
}

// terminal runs a program on a terminal, and types keys.
func terminal(t testing.TB, keys string, args ...string) (out string, code int) {
	t.Helper()
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	master := os.NewFile(uintptr(fd), "ptmx")
	defer master.Close()
	unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 31, Col: 71})
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	slave.Close()
	io.WriteString(master, keys)
	data, _ := io.ReadAll(master) // EIO at its end
	err = cmd.Wait()
	var e *exec.ExitError
	if errors.As(err, &e) {
		code = e.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	return string(data), code
}

// eventually asks until the answer is yes.
func eventually(t testing.TB, what string, ask func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if ask() {
			return
		}
	}
	t.Fatal(what)
}
