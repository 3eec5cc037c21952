package cgroup

import (
	"bufio"
	"context"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestMain is also the program that tests put into groups: named by an environment
// variable, it does one thing and waits.
func TestMain(m *testing.M) {
	if what := os.Getenv("CGROUP_TEST_CHILD"); what != "" {
		child(what)
	}
	code := m.Run()
	left, err := groupsNamed(instance())
	if err != nil || len(left) > 0 {
		fmt.Fprintln(os.Stderr, "FAIL: groups left behind:", left, err)
		code = 1
	}
	os.Exit(code)
}

// instance is the name below which this process's groups are.
func instance() string { return "orlop-cgtest-" + strconv.Itoa(os.Getpid()) }

var serial atomic.Int64

func groupsNamed(prefix string) (list []string, err error) {
	err = filepath.WalkDir("/sys/fs/cgroup", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			if os.IsNotExist(err) {
				return nil // other people's groups come and go
			}
			return err
		}
		if d.IsDir() && (strings.Contains(d.Name(), prefix) || strings.Contains(d.Name(), escape(prefix))) {
			list = append(list, p)
		}
		return nil
	})
	return list, err
}

func child(what string) {
	// On v1 it is in all hierarchies only when Spawn has returned: wait for the word.
	if n, err := os.Stdin.Read(make([]byte, 1)); n != 1 {
		fmt.Fprintln(os.Stderr, "child without a start:", err)
		os.Exit(2)
	}
	verb, arg, _ := strings.Cut(what, " ")
	switch verb {
	case "wait":
	case "hog": // touches arg MiB
		n, _ := strconv.Atoi(arg)
		fmt.Println("ready")
		b, err := unix.Mmap(-1, 0, n<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
		if err != nil {
			fmt.Println(err)
			os.Exit(2)
		}
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
	case "spin": // uses CPU for ever
		fmt.Println("ready")
		for n := 0; ; n++ {
			if n < 0 {
				n = 0
			}
		}
	case "open": // opens arg once for every line on stdin, and tells how it went
		for s := bufio.NewScanner(os.Stdin); s.Scan(); {
			flags := unix.O_RDONLY
			path, mode, _ := strings.Cut(s.Text(), " ")
			if mode == "rw" {
				flags = unix.O_RDWR
			} else if mode == "w" {
				flags = unix.O_WRONLY
			}
			fd, err := unix.Open(path, flags, 0)
			if err == nil {
				unix.Close(fd)
			}
			fmt.Println(err)
		}
		os.Exit(0)
	case "fork": // forks and dies for ever: each parent leaves a child
		fmt.Println("ready")
		for {
			exec.Command("/bin/true").Run()
		}
	}
	fmt.Println("ready")
	for { // not select {}, which the runtime calls a deadlock
		unix.Pause()
	}
}

// on runs test with every layout that this machine can show: its own, and on Hybrid
// also what it would be without the cgroup2 mount.
func on(t *testing.T, test func(t *testing.T, h *Host)) {
	if os.Getuid() != 0 {
		t.Fatal("control groups are made by root: run the tests as root")
	}
	h, err := Open(Options{Driver: Cgroupfs})
	if err != nil {
		t.Fatal(err)
	}
	t.Run(string(h.layout.Mode), func(t *testing.T) { test(t, h) })
	if h.layout.Mode == Hybrid {
		v1 := &Host{layout: Layout{Mode: V1, Driver: Cgroupfs, Controllers: h.layout.Controllers}, v1: h.v1}
		t.Run("v1", func(t *testing.T) { test(t, v1) })
	}
}

// root is a group for one test, removed after it.
func root(t *testing.T, h *Host) string {
	t.Helper()
	p := "/" + instance() + "/" + strconv.FormatInt(serial.Add(1), 10)
	t.Cleanup(func() {
		for _, p := range []string{p, filepath.Dir(p)} {
			g, err := h.group(p)
			if err != nil {
				t.Fatal(err)
			}
			if p != "/"+instance() {
				if err := g.Kill(syscall.SIGKILL); err != nil {
					t.Error(err)
				}
			}
			if err := g.Remove(t.Context()); err != nil && t.Context().Err() == nil {
				t.Error(err)
			} else if err := g.Remove(context.Background()); err != nil {
				t.Error(err)
			}
			if left := g.Dirs(); len(left) > 0 {
				t.Errorf("left: %v", left)
			}
		}
	})
	return p
}

// proc is a process of TestMain's.
type proc struct {
	*exec.Cmd
	out *bufio.Scanner
	in  *os.File
}

// spawn runs a child in g. It kills and reaps it when the test ends.
func spawn(t *testing.T, g *Group, what string) *proc {
	t.Helper()
	p, err := spawnAfter(t, g, what, func() {})
	if err != nil {
		t.Fatalf("spawn in %s: %v", g.Path(), err)
	}
	return p
}

// spawnAfter is spawn, with what happens before each clone into the group.
func spawnAfter(t *testing.T, g *Group, what string, before func()) (*proc, error) {
	t.Helper()
	p := &proc{}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	inR, inW, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	_, err = g.Spawn(func(fd int) (int, error) {
		if fd >= 0 {
			before()
		}
		p.Cmd = exec.Command("/proc/self/exe")
		p.Env = append(os.Environ(), "CGROUP_TEST_CHILD="+what)
		p.Stdout, p.Stderr, p.Stdin = w, os.Stderr, inR
		p.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: fd >= 0, CgroupFD: fd, Pdeathsig: 0}
		if err := p.Start(); err != nil {
			return 0, err
		}
		return p.Process.Pid, nil
	})
	w.Close()
	inR.Close()
	t.Cleanup(func() {
		if p.Process != nil {
			p.Process.Kill()
			p.Wait()
		}
		r.Close()
		inW.Close()
	})
	if err != nil {
		return nil, err
	}
	p.out, p.in = bufio.NewScanner(r), inW
	if _, err := inW.WriteString("\n"); err != nil {
		t.Fatal(err)
	}
	return p, nil
}

// line returns the next line of the child's output.
func (p *proc) line(t *testing.T) string {
	t.Helper()
	if !p.out.Scan() {
		t.Fatalf("the child ended: %v", p.out.Err())
	}
	return p.out.Text()
}

// until asks until the answer is yes, for ten seconds (longer where all is emulated).
func until(t *testing.T, what string, ask func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ask(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}
