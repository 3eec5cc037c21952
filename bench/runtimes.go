package main

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
	"time"
)

// podRuntime runs pods: Orlop by manifests and by CRI, containerd by CRI, podman by its command line.
type podRuntime interface {
	Name() string
	Version() (string, error)
	// Start brings it up. It ends with the run's namespaces.
	Start(ctx context.Context) error
	Group() group
	// StartPod starts a pod of one idle container and returns when it runs.
	StartPod(ctx context.Context, name string) error
	// RemovePod kills the pod and removes it.
	RemovePod(ctx context.Context, name string) error
	// Pull fetches and unpacks the image; Drop removes it again, content and all.
	Pull(ctx context.Context, ref string) error
	Drop(ctx context.Context, ref string) error
}

// executes is a podRuntime that runs a command in a pod's container while the caller waits.
type executes interface {
	// Exec runs /bin/true in the container of a pod that StartPod has started.
	Exec(ctx context.Context, name string) error
}

// starter runs single containers, with the default seccomp profile, from a prepared root.
type starter interface {
	Name() string
	Version() (string, error)
	Start(ctx context.Context) error
	Group() group
	// Prepare makes the container's directories; Remove removes them. Neither is timed.
	Prepare(id string) error
	Remove(id string) error
	// Run mounts the root, runs /bin/true until it has ended, and takes everything away
	// but the directories.
	Run(ctx context.Context, id string) error
	// Hold runs an idle container for Exec, which runs /bin/true in it; release ends it.
	Hold(ctx context.Context, id string) (release func() error, err error)
	Exec(ctx context.Context, id string) error
}

// output runs a command; an error carries what it said.
func output(cmd *exec.Cmd) (string, error) {
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", cmd, err, strings.TrimSpace(string(out)))
	}
	return string(out), nil
}

// version is the first line that a program says of itself.
func version(name string, args ...string) (string, error) {
	out, err := output(exec.Command(name, args...))
	line, _, _ := strings.Cut(out, "\n")
	return strings.TrimSpace(line), err
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
