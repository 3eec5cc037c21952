package keeper

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// SpawnOptions say how to start a keeper.
type SpawnOptions struct {
	Binary string // orlop-keeper
	Init   string // orlop-init
	Dir    string // of its socket, on tmpfs
	Driver string // of cgroups; "" finds out
	// LogFile receives its log, which is opened for appending.
	LogFile string
}

// Socket is where the keeper of the directory listens.
func Socket(dir string) string { return filepath.Join(dir, "keeper.sock") }

// Spawn starts a keeper in a session of its own and returns once it listens. Where
// one has the directory already the new one ends at once, and that is fine. The
// keeper outlives the caller: it must not be in a cgroup or a namespace that ends
// with it.
func Spawn(ctx context.Context, o SpawnOptions) error {
	for _, b := range []string{o.Binary, o.Init} {
		if _, err := os.Stat(b); err != nil {
			return errs.New(errs.FailedPrecondition, "start the keeper: %w; set keeper.binary and keeper.init, or put them beside orlop", err)
		}
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return err
	}
	log, err := os.OpenFile(o.LogFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(o.Binary, "-dir", o.Dir, "-init", o.Init, "-cgroup-driver", o.Driver)
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the keeper: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for {
		if c, err := Dial(ctx, Socket(o.Dir), nil); err == nil {
			c.Close()
			return nil
		}
		select {
		case err := <-ended:
			if c, derr := Dial(ctx, Socket(o.Dir), nil); derr == nil {
				c.Close()
				return nil
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

// ReadSpec returns what a container of the directory's keeper was made from. It
// needs no keeper.
func ReadSpec(dir, id string) (Spec, error) {
	var s Spec
	raw, err := os.ReadFile(filepath.Join(dir, "containers", id, "spec.json"))
	if errors.Is(err, os.ErrNotExist) {
		return s, errs.New(errs.NotFound, "container %s does not exist", id)
	}
	if err != nil {
		return s, err
	}
	return s, json.Unmarshal(raw, &s)
}
