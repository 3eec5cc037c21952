package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// peer is a runtime under measurement. Its processes, and those of its pods, run
// in one cgroup, so that CPU time can be read from outside.
type peer interface {
	Name() string
	// Start brings it up; Stop ends it and removes what it made.
	Start(ctx context.Context) error
	Stop()
	// Group is the cgroup whose CPU time counts.
	Group() string
	// StartPod starts a pod of one idle container and returns when it runs.
	StartPod(ctx context.Context, name string) error
	// RemovePod stops the pod at once and removes it.
	RemovePod(ctx context.Context, name string) error
	// Pull fetches and unpacks the image; Drop removes it again.
	Pull(ctx context.Context, ref string) error
	Drop(ctx context.Context, ref string) error
	// Own tells the runtime's own processes from the workload's.
	Own(pid int, cmdline string) bool
}

// starter runs one container with a seccomp profile from a prepared root.
type starter interface {
	Name() string
	Group() string
	Start(ctx context.Context) error
	Stop()
	// Run starts /bin/true and returns how long it took until the program was
	// executed, and until it had ended and everything was removed.
	Run(ctx context.Context, id string) (started, whole time.Duration, err error)
}

// run executes a command and returns its output; a failure carries what it said.
func run(ctx context.Context, name string, args ...string) (string, error) {
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return string(out), nil
}

// spawn starts a long-running process in the group, its output in a file.
func spawn(group func(int) error, logFile string, name string, args ...string) (*exec.Cmd, error) {
	log, err := os.Create(logFile)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	// The shell enters the group first, so that no CPU time is missed.
	cmd := exec.Command("/bin/sh", append([]string{"-c", `read go && exec "$@"`, "sh", name}, args...)...)
	cmd.Stdout, cmd.Stderr = log, log
	gate, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	if err := group(cmd.Process.Pid); err != nil {
		cmd.Process.Kill()
		cmd.Wait()
		return nil, err
	}
	fmt.Fprintln(gate, "go")
	gate.Close()
	return cmd, nil
}

// until calls ok again and again until it returns nil or a minute is over.
func until(ctx context.Context, ok func() error) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		err := ok()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(20 * time.Millisecond):
		}
	}
}
