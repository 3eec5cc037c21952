package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// A run has a mount, a network, an IPC and a PID namespace of its own: what runtimes
// leave (mounts, interfaces, firewall rules, processes) ends with them, also when this
// program is killed. What the kernel does not take away is swept before and after: one
// directory and the control groups whose names begin with groupPrefix.
//
// The program runs three times: outside; as process 1 of the namespaces, which reaps;
// and as its child, which measures.
const (
	stageVariable = "ORLOP_BENCH_STAGE"
	stageInit     = "init"
	stageMeasure  = "measure"

	groupPrefix = "orlbench-"
)

// isolated runs the measuring stage and returns what it found.
func isolated(ctx context.Context, o options, args []string) (*results, error) {
	if err := sweep(o.dir); err != nil {
		return nil, fmt.Errorf("remove what an earlier run left: %w", err)
	}
	made, err := ensureDirs(privateDirs)
	if err != nil {
		return nil, err
	}
	defer func() {
		for _, d := range made {
			os.Remove(d)
		}
	}()
	if err := os.MkdirAll(o.dir, 0o700); err != nil {
		return nil, err
	}
	cmd := stage(stageInit, args)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID | unix.CLONE_NEWIPC,
		Pdeathsig:  syscall.SIGKILL,
		Setpgid:    true, // an interrupt from the terminal goes through us
	}
	// Pdeathsig counts the thread that forks: it has to live on.
	wait := make(chan error, 1)
	started := make(chan error, 1)
	go onThread(func() {
		err := cmd.Start()
		started <- err
		if err == nil {
			wait <- cmd.Wait()
		}
	})
	if err := <-started; err != nil {
		return nil, fmt.Errorf("make the run's namespaces: %w", err)
	}
	select {
	case err = <-wait:
	case <-ctx.Done(): // its namespaces, and all in them, end with process 1
		cmd.Process.Kill()
		err = <-wait
	}
	raw, rerr := os.ReadFile(o.resultFile())
	if serr := sweep(o.dir); serr != nil {
		err = errors.Join(err, fmt.Errorf("remove what the run left: %w", serr))
	}
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case err != nil: // it has said why
		return nil, fmt.Errorf("the run failed: %w", err)
	case rerr != nil:
		return nil, rerr
	}
	var r results
	return &r, json.Unmarshal(raw, &r)
}

// stage is this program again, as another stage.
func stage(name string, args []string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), stageVariable+"="+name)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd
}

// privateDirs are where runtimes keep state whatever their configuration says.
var privateDirs = []string{"/run", "/var/lib/cni"}

// ensureDirs makes what is missing and returns it, the deepest first.
func ensureDirs(dirs []string) (made []string, err error) {
	for _, d := range dirs {
		if _, err := os.Stat(d); err == nil {
			continue
		}
		if err := os.Mkdir(d, 0o755); err != nil {
			return made, err
		}
		made = append([]string{d}, made...)
	}
	return made, nil
}

// initStage is process 1: it makes the namespaces fit to live in, starts the measuring
// stage, and reaps what is orphaned until that ends. Its end kills the rest.
func initStage(args []string) int {
	if err := settle(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	}
	cmd := stage(stageMeasure, args)
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	}
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, 0, nil)
		switch {
		case err == syscall.EINTR:
		case err != nil:
			fmt.Fprintln(os.Stderr, "bench: wait:", err)
			return 1
		case pid == cmd.Process.Pid && ws.Exited():
			return ws.ExitStatus()
		case pid == cmd.Process.Pid && ws.Signaled():
			return 128 + int(ws.Signal())
		}
	}
}

func settle() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount proc: %w", err)
	}
	for _, d := range privateDirs {
		if err := unix.Mount("tmpfs", d, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
			return fmt.Errorf("mount a tmpfs at %s: %w", d, err)
		}
	}
	_, err := output(exec.Command("ip", "link", "set", "lo", "up"))
	return err
}

// sweep removes the directory and the control groups of a run whose processes are gone.
func sweep(dir string) error {
	if len(strings.Split(dir, "/")) < 3 {
		return fmt.Errorf("-dir %s: it would be removed; name one of its own", dir)
	}
	err := os.RemoveAll(dir)
	for _, root := range append(glob("/sys/fs/cgroup/*"), "/sys/fs/cgroup") {
		for _, g := range glob(filepath.Join(root, groupPrefix+"*")) {
			err = errors.Join(err, removeGroups(g))
		}
	}
	return err
}

func glob(pattern string) []string {
	list, err := filepath.Glob(pattern)
	if err != nil {
		panic(err) // the pattern is malformed
	}
	return list
}
