package ociruntime

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// Container is a container of a runtime, by its id. It holds nothing.
type Container struct {
	*Runtime
	ID string
	// Dir is the bundle (config.json), and a place for small files that live as long as a
	// command.
	Dir string
	// Sockets is a directory with a short name, for sockets of terminals.
	Sockets string
}

// Started is a process that a runtime has made. It is the caller's child if that was a
// child subreaper when it was made.
type Started struct {
	PID      int
	Terminal *os.File // master; nil without a terminal
}

// scratch is a name for a file of one command, in the bundle. It is not made.
func (c *Container) scratch(kind string) (string, error) {
	f, err := os.CreateTemp(c.Dir, kind+"-*")
	if err != nil {
		return "", err
	}
	name := f.Name()
	return name, f.Close()
}

// Create makes the container with those standard streams, or with a terminal, and leaves its
// process where Start lets it go on. If it fails, Delete takes away what there is.
func (c *Container) Create(ctx context.Context, streams [3]*os.File, terminal bool) (Started, error) {
	if err := os.MkdirAll(c.Root, 0o700); err != nil {
		return Started{}, fmt.Errorf("runtime handler %s: %w", c.Name, err)
	}
	return c.process(ctx, c.Limit(), []string{"create", "--bundle", c.Dir}, streams, terminal)
}

// Restore makes the container of a checkpoint, as Create, with CRIU's log in the directory work. It runs when
// Restore returns; TCP connections that it had are closed.
func (c *Container) Restore(ctx context.Context, images, work string, streams [3]*os.File, terminal bool) (Started, error) {
	if err := os.MkdirAll(c.Root, 0o700); err != nil {
		return Started{}, fmt.Errorf("runtime handler %s: %w", c.Name, err)
	}
	return c.process(ctx, checkpointLimit, []string{"restore", "--detach", "--bundle", c.Dir, "--image-path", images, "--work-path", work, "--file-locks", "--tcp-close"}, streams, terminal)
}

// Exec runs a further process in the container. It runs when Exec returns.
func (c *Container) Exec(ctx context.Context, p *specs.Process, streams [3]*os.File) (Started, error) {
	raw, err := json.Marshal(p)
	if err != nil {
		return Started{}, err
	}
	file, err := c.scratch("process")
	if err != nil {
		return Started{}, err
	}
	defer os.Remove(file)
	if err := os.WriteFile(file, raw, 0o600); err != nil {
		return Started{}, err
	}
	return c.process(ctx, c.Limit(), []string{"exec", "--detach", "--process", file}, streams, p.Terminal)
}

// process carries out a command that leaves a process behind.
func (c *Container) process(ctx context.Context, limit time.Duration, args []string, streams [3]*os.File, terminal bool) (s Started, err error) {
	log, err := c.scratch("log")
	if err != nil {
		return s, err
	}
	pidFile, err := c.scratch("pid")
	if err != nil {
		return s, err
	}
	defer os.Remove(pidFile)
	if err := os.Remove(pidFile); err != nil { // runsc wants to make it
		return s, err
	}
	k := call{limit: limit, log: log, args: append(args, "--pid-file", pidFile)}
	var console *console
	if terminal {
		if console, err = listen(c.Sockets); err != nil {
			return s, err
		}
		defer console.close()
		k.args = append(k.args, "--console-socket", console.path)
	} else {
		k.streams = &streams
	}
	k.args = append(k.args, c.ID)
	if _, err := c.run(ctx, k); err != nil {
		return s, err
	}
	raw, err := os.ReadFile(pidFile)
	if err == nil {
		s.PID, err = strconv.Atoi(strings.TrimSpace(string(raw)))
	}
	if err != nil || s.PID <= 0 {
		return s, errs.New(errs.FailedPrecondition, "runtime handler %s: %s %s succeeded, and wrote no process to its --pid-file: %v", c.Name, c.Path, args[0], err)
	}
	if terminal {
		if s.Terminal, err = console.receive(); err != nil {
			return s, errs.New(errs.FailedPrecondition, "runtime handler %s: %s %s succeeded, and sent no terminal to its --console-socket: %w", c.Name, c.Path, args[0], err)
		}
	}
	return s, nil
}

// do carries out a command that takes the id alone.
func (c *Container) do(ctx context.Context, stdin []byte, args ...string) ([]byte, error) {
	log, err := c.scratch("log")
	if err != nil {
		return nil, err
	}
	limit := c.Limit()
	if args[0] == "kill" || args[0] == "delete" {
		limit = min(limit, endTimeout)
	}
	return c.run(ctx, call{args: args, limit: limit, log: log, stdin: stdin})
}

// Start lets the container's program be executed.
func (c *Container) Start(ctx context.Context) error {
	_, err := c.do(ctx, nil, "start", c.ID)
	return err
}

// Kill sends a signal to the first process or, with all, to every process.
func (c *Container) Kill(ctx context.Context, sig unix.Signal, all bool) error {
	args := []string{"kill"}
	if all {
		args = append(args, "--all")
	}
	_, err := c.do(ctx, nil, append(args, c.ID, strconv.Itoa(int(sig)))...)
	return err
}

// Update changes limits; what is nil stays as it is.
func (c *Container) Update(ctx context.Context, r *specs.LinuxResources) error {
	raw, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, err = c.do(ctx, raw, "update", "--resources", "-", c.ID)
	return err
}

// Pause stops every process; Resume lets them go on.
func (c *Container) Pause(ctx context.Context) error {
	_, err := c.do(ctx, nil, "pause", c.ID)
	return err
}

// Resume undoes Pause.
func (c *Container) Resume(ctx context.Context) error {
	_, err := c.do(ctx, nil, "resume", c.ID)
	return err
}

// State asks where in its life the container is: creating, created, running, stopped
// (runtime.md, "State"), or paused.
func (c *Container) State(ctx context.Context) (specs.ContainerState, error) {
	raw, err := c.do(ctx, nil, "state", c.ID)
	if err != nil {
		return "", err
	}
	var s specs.State
	if err := json.Unmarshal(raw, &s); err != nil {
		return "", errs.New(errs.FailedPrecondition, "runtime handler %s: %s state: %w", c.Name, c.Path, err)
	}
	return s.Status, nil
}

// Delete takes away whatever the runtime has of the container, with a process if there is
// one. One that it does not know is no error. What a runtime that fails leaves of its
// state is removed in its place; the error, which tells of that, is then only a warning: of
// processes and control groups the caller sees by itself.
func (c *Container) Delete(ctx context.Context) error {
	_, err := c.do(ctx, nil, "delete", "--force", c.ID)
	// Every runtime has a directory of the container's id there.
	if rerr := os.RemoveAll(filepath.Join(c.Root, c.ID)); rerr != nil && err == nil {
		err = rerr
	}
	return err
}

// checkpointLimit is how long a checkpoint or restore may take: much memory takes its time, and a command that is killed
// leaves processes with CRIU's code in them.
const checkpointLimit = 30 * time.Minute

// Checkpoint saves the container by CRIU in a directory, with CRIU's log in another, and lets it go on as it
// was: running or paused.
func (c *Container) Checkpoint(ctx context.Context, images, work string) error {
	log, err := c.scratch("log")
	if err != nil {
		return err
	}
	_, err = c.run(context.WithoutCancel(ctx), call{limit: checkpointLimit, log: log,
		args: []string{"checkpoint", "--leave-running", "--tcp-established", "--file-locks", "--image-path", images, "--work-path", work, c.ID}})
	return err
}
