package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// group is a control group whose CPU time is counted: a runtime's processes are in its
// child "runtime", those of its containers below its child "pods". Unlike wall time, CPU
// time hardly moves with what else the machine does.
type group struct {
	name string
	dir  string // in the hierarchy that counts CPU time
	v1   bool
	// inside runs functions on a thread that is in the group. v1 only: there a process cannot
	// begin in a group that its parent is not in, and entering one waits for every processor
	// (cgroup_threadgroup_rwsem), 10 ms that are no runtime's.
	inside chan func()
}

// newGroup makes the group. Its name begins with groupPrefix, by which it is swept.
func newGroup(name string) (group, error) {
	g := group{name: groupPrefix + name, v1: isV1()}
	g.dir = "/sys/fs/cgroup/" + g.name
	if g.v1 {
		g.dir = "/sys/fs/cgroup/cpuacct/" + g.name
	}
	if err := os.MkdirAll(g.dir+"/runtime", 0o755); err != nil || !g.v1 {
		return g, err
	}
	g.inside = make(chan func())
	entered := make(chan error)
	go func() { // for as long as this process lives
		runtime.LockOSThread()
		err := os.WriteFile(g.dir+"/runtime/tasks", []byte(strconv.Itoa(unix.Gettid())), 0)
		entered <- err
		for err == nil {
			(<-g.inside)()
		}
	}()
	return g, <-entered
}

func isV1() bool {
	_, err := os.Stat("/sys/fs/cgroup/cpuacct/cpuacct.usage")
	return err == nil
}

// pods is the path that the runtime is given for its containers' groups.
func (g group) pods() string { return "/" + g.name + "/pods" }

// start starts the command in the group, from its first instruction on.
func (g group) start(cmd *exec.Cmd) error {
	if !g.v1 {
		fd, err := unix.Open(g.dir+"/runtime", unix.O_DIRECTORY|unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if cmd.SysProcAttr == nil {
			cmd.SysProcAttr = &syscall.SysProcAttr{}
		}
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, fd
		return cmd.Start()
	}
	done := make(chan error, 1)
	g.inside <- func() { done <- cmd.Start() }
	return <-done
}

// run runs the command in the group; an error carries what it said. Its output goes to a
// file, since a container that it leaves behind holds it open.
func (g group) run(ctx context.Context, name string, args ...string) error {
	out, err := os.CreateTemp("", "output-")
	if err != nil {
		return err
	}
	defer os.Remove(out.Name())
	defer out.Close()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = out, out
	if err = g.start(cmd); err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		said, _ := os.ReadFile(out.Name())
		return fmt.Errorf("%s: %w: %s", cmd, err, said[max(0, len(said)-1000):])
	}
	return nil
}

// spawn starts a process that stays, its output in a file.
func (g group) spawn(logFile, name string, args ...string) (*exec.Cmd, error) {
	log, err := os.Create(logFile)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = log, log
	return cmd, g.start(cmd)
}

// cpu is the CPU time that the group and all below it have used.
func (g group) cpu() (time.Duration, error) {
	if g.v1 {
		raw, err := os.ReadFile(g.dir + "/cpuacct.usage")
		if err != nil {
			return 0, err
		}
		ns, err := strconv.ParseInt(strings.TrimSpace(string(raw)), 10, 64)
		return time.Duration(ns), err
	}
	us, err := field(g.dir+"/cpu.stat", "usage_usec")
	return time.Duration(us) * time.Microsecond, err
}

// usage is what processes of one name have in memory.
type usage struct {
	Count          int
	PSSKiB, RSSKiB float64
}

// memory returns the group's processes by the names of their programs, but for the
// workload of the pods.
func (g group) memory() (map[string]usage, error) {
	byName := make(map[string]usage)
	err := filepath.WalkDir(g.dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.Name() != "cgroup.procs" {
			return nil // a group that goes meanwhile is nobody's
		}
		raw, err := os.ReadFile(path)
		if err != nil {
			return nil
		}
		for _, pid := range strings.Fields(string(raw)) {
			line, err := os.ReadFile("/proc/" + pid + "/cmdline")
			if err != nil || len(line) == 0 {
				continue // it has ended
			}
			argv := strings.Split(strings.TrimRight(string(line), "\x00"), "\x00")
			if argv[len(argv)-1] == workloadMark {
				continue
			}
			name := filepath.Base(argv[0])
			if argv[len(argv)-1] == pauseMark {
				name = "pause"
			}
			p, perr := field("/proc/"+pid+"/smaps_rollup", "Pss:")
			r, rerr := field("/proc/"+pid+"/smaps_rollup", "Rss:")
			if perr != nil || rerr != nil {
				continue
			}
			u := byName[name]
			byName[name] = usage{u.Count + 1, u.PSSKiB + p, u.RSSKiB + r}
		}
		return nil
	})
	return byName, err
}

func totalPSS(m map[string]usage) (kib float64) {
	for _, u := range m {
		kib += u.PSSKiB
	}
	return kib
}

// removeGroups removes a control group and all below it. Processes that were just
// killed may still be leaving it.
func removeGroups(dir string) error {
	ents, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for _, e := range ents {
		if e.IsDir() {
			err = errors.Join(err, removeGroups(filepath.Join(dir, e.Name())))
		}
	}
	if err != nil {
		return err
	}
	for range 500 {
		if err = os.Remove(dir); !errors.Is(err, syscall.EBUSY) {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// onThread runs fn on a thread that does nothing else until fn returns.
func onThread(fn func()) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	fn()
}
