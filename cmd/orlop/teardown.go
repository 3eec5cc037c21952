package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/orlop-io/orlop/internal/base/config"
	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/cgroup"
	"github.com/orlop-io/orlop/internal/platform/mount"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// newTeardownCommand returns `orlop system teardown`.
func newTeardownCommand() *cobra.Command {
	var path string
	var purge bool
	cmd := &cobra.Command{
		Use:   "teardown",
		Short: "Stop everything and leave the machine as it was",
		Long: `Stops the daemon, every pod and the keeper, and removes every mount, namespace, interface, firewall rule and
control group that they made. Manifests, images and volumes stay: the next daemon starts the pods again. With
--purge they are removed too.`,
		Example: `  orlop system teardown
  orlop system teardown --purge`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if os.Geteuid() != 0 {
				return errs.New(errs.PermissionDenied, "taking the host down needs root")
			}
			c, err := config.Load(path)
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), 5*time.Minute)
			defer cancel()
			return teardown(ctx, c, newLogger(config.Log{Level: "warn", Format: c.Log.Format}, cmd.ErrOrStderr()), purge)
		},
	}
	cmd.Flags().StringVar(&path, "config", "", "configuration file (default "+config.DefaultPath+" if it exists)")
	cmd.Flags().BoolVar(&purge, "purge", false, "remove images, volumes, manifests and logs too")
	return cmd
}

// teardown is idempotent: one that was cut off is simply done again.
func teardown(ctx context.Context, c config.Config, log *slog.Logger, purge bool) error {
	if err := stopDaemon(ctx, c); err != nil {
		return err
	}
	_, rootErr := os.Stat(filepath.Join(c.Root, "state.db"))
	_, runErr := os.Stat(filepath.Join(c.Run, "state.db"))
	if runErr == nil && rootErr == nil {
		h, err := openHost(ctx, c, log)
		if err != nil {
			return err
		}
		err = h.takeDown(ctx, purge)
		err = errors.Join(err, h.Close())
		if err != nil {
			return err
		}
	}
	if err := removeGroups(ctx, c); err != nil {
		return err
	}
	for _, dir := range []string{c.Run, rootsDir(c)} {
		if err := removeRun(ctx, dir); err != nil {
			return err
		}
	}
	if !purge {
		return nil
	}
	return purgeRoot(ctx, c.Root)
}

// purgeRoot removes the durable directory. A disk that is mounted there is the operator's:
// it stays mounted, and is empty.
func purgeRoot(ctx context.Context, root string) error {
	entries, err := os.ReadDir(root)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == "lost+found" { // the filesystem's own (mklost+found(8))
			continue
		}
		path := filepath.Join(root, e.Name())
		if err := mount.UnmountBelow(ctx, path, 10*time.Second); err != nil {
			return err
		}
		if err := mount.RemoveTree(path); err != nil {
			return err
		}
	}
	if mounted, err := mount.IsMounted(root); err != nil || mounted {
		return err
	}
	return os.Remove(root)
}

// takeDown takes down what the domains have made.
func (h *host) takeDown(ctx context.Context, purge bool) error {
	if err := h.pods.Reconcile(ctx); err != nil {
		return err
	}
	if err := h.pods.StopAll(ctx); err != nil {
		return fmt.Errorf("stop the pods: %w", err)
	}
	if err := h.network.Teardown(ctx); err != nil {
		return fmt.Errorf("take the network down: %w", err)
	}
	if err := h.volumes.Teardown(ctx); err != nil {
		return fmt.Errorf("take the volumes down: %w", err)
	}
	if purge {
		if err := h.volumes.Purge(ctx); err != nil {
			return fmt.Errorf("remove the volumes: %w", err)
		}
	}
	return nil
}

// stopDaemon ends a daemon that runs on the same directories and waits for it.
func stopDaemon(ctx context.Context, c config.Config) error {
	raw, err := os.ReadFile(pidFile(c))
	if err != nil {
		return nil
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil {
		return errs.New(errs.Corrupt, "%s holds %q, which is no process id", pidFile(c), raw)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil // it has ended, and was killed: the file is left
	}
	defer unix.Close(fd)
	// The number may be another process's by now.
	exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil || filepath.Base(strings.TrimSuffix(exe, " (deleted)")) != "orlop" {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0); err != nil {
		return fmt.Errorf("stop the daemon: %w", err)
	}
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 200)
		if err != nil && err != unix.EINTR {
			return err
		}
		if n > 0 {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return errs.New(errs.Timeout, "the daemon (process %d) does not end", pid)
		}
	}
}

// removeGroups removes the parent of the pods' control groups.
func removeGroups(ctx context.Context, c config.Config) error {
	driver := cgroup.Driver(c.Cgroup.Driver)
	if driver == "auto" {
		driver = ""
	}
	h, err := cgroup.Open(cgroup.Options{Driver: driver})
	if err != nil {
		return err
	}
	g, err := h.Load(c.Cgroup.Parent)
	if errors.Is(err, errs.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return g.Remove(ctx)
}

// removeRun unmounts and removes a volatile directory.
func removeRun(ctx context.Context, run string) error {
	if err := mount.UnmountBelow(ctx, run, 10*time.Second); err != nil {
		return err
	}
	if ok, err := mount.IsMounted(run); err == nil && ok {
		if err := mount.Unmount(ctx, run, 10*time.Second); err != nil {
			return err
		}
	}
	if err := mount.RemoveTree(run); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
