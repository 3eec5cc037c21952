package keeper

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// SpawnOptions say how to start a keeper.
type SpawnOptions struct {
	Binary string // orlop-keeper
	Init   string // orlop-init
	Dir    string // of its socket, on tmpfs
	Roots  string // for root filesystems of containers in user namespaces that another runtime makes; "": there are none
	Driver string // of cgroups; "" finds out
	// LogFile receives its log, which is opened for appending.
	LogFile string
}

// Socket is where the keeper of the directory listens.
func Socket(dir string) string { return filepath.Join(dir, "keeper.sock") }

// Spawn makes sure that a keeper answers: where none does it starts one, in a session of
// its own, and returns once it listens. Of several that are started at a time one stays
// (it has a lock on the directory) and the others end.
//
// The keeper outlives the caller, whose child it remains: the caller must not end its
// children, and systemd must not end its control group (KillMode=process). Of the
// environment it gets only what is harmless to hand to a process that lives on.
func Spawn(ctx context.Context, o SpawnOptions) error {
	if c, err := Dial(ctx, Socket(o.Dir), nil); err == nil {
		return c.Close()
	}
	for _, b := range []string{o.Binary, o.Init} {
		if _, err := os.Stat(b); err != nil {
			return errs.New(errs.FailedPrecondition, "start the keeper: %w; set keeper.binary and keeper.init, or put them beside orlop", err)
		}
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return fmt.Errorf("start the keeper: %w", err)
	}
	log, err := openLogFile(o.LogFile)
	if err != nil {
		return fmt.Errorf("start the keeper: %w", err)
	}
	defer log.Close()
	cmd := exec.Command(o.Binary, "-dir", o.Dir, "-init", o.Init, "-roots", o.Roots, "-cgroup-driver", o.Driver)
	cmd.Dir = "/"
	cmd.Env = environment()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the keeper: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	tick := time.NewTicker(spawnPause)
	defer tick.Stop()
	deadline := time.After(spawnTimeout)
	for {
		if c, err := Dial(ctx, Socket(o.Dir), nil); err == nil {
			if c.PID() != cmd.Process.Pid {
				// Another was faster. Ours sees that and ends; if it were left to itself it
				// could outlive the other and take its place.
				select {
				case <-ended:
				case <-deadline:
				case <-ctx.Done():
				}
			}
			return c.Close()
		}
		select {
		case err := <-ended:
			if c, derr := Dial(ctx, Socket(o.Dir), nil); derr == nil {
				return c.Close()
			}
			return errs.New(errs.Unavailable, "the keeper ended at its start (%v); see %s", err, o.LogFile)
		case <-ctx.Done():
			return ctx.Err()
		case <-deadline:
			return errs.New(errs.Timeout, "the keeper does not answer; see %s", o.LogFile)
		case <-tick.C:
		}
	}
}

const (
	spawnPause   = 2 * time.Millisecond
	spawnTimeout = 20 * time.Second
	// maxLogFile is how large the keeper's own log may be when another keeper begins; one
	// old log is kept.
	maxLogFile = 4 << 20
)

func openLogFile(path string) (*os.File, error) {
	if fi, err := os.Stat(path); err == nil && fi.Size() > maxLogFile {
		if err := os.Rename(path, path+".1"); err != nil {
			return nil, err
		}
	}
	return os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
}

// environment leaves out what a daemon may have been given for itself: credentials.
func environment() (env []string) {
	for _, e := range os.Environ() {
		name, _, _ := strings.Cut(e, "=")
		switch {
		case name == "PATH", name == "LANG", name == "TZ", name == "GODEBUG", name == "GORACE",
			name == "DBUS_SYSTEM_BUS_ADDRESS", strings.HasPrefix(name, "ORLOP_FAULT"):
			env = append(env, e)
		}
	}
	return env
}
