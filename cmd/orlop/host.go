package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/orlop-io/orlop/internal/base/atomicfile"
	"github.com/orlop-io/orlop/internal/base/config"
	"github.com/orlop-io/orlop/internal/base/store"
	"github.com/orlop-io/orlop/internal/base/trace/otlp"
	"github.com/orlop-io/orlop/internal/image"
	"github.com/orlop-io/orlop/internal/network"
	"github.com/orlop-io/orlop/internal/platform/mount"
	"github.com/orlop-io/orlop/internal/pod"
	"github.com/orlop-io/orlop/internal/server/rpc"
	"github.com/orlop-io/orlop/internal/volume"
	"golang.org/x/sys/unix"
)

// host is every domain of this machine, open and wired together. The daemon serves
// it; teardown takes it down.
type host struct {
	config            config.Config
	log               *slog.Logger
	durable, volatile *store.DB

	images   *image.Store
	network  *network.Network
	volumes  *volume.Volumes
	pods     *pod.Pods
	tracer   *otlp.Tracer // nil: tracing is off
	watch    *rpc.Watcher
	closings []func() error // in the order of opening
}

// openHost opens the state and every domain. It fails, with nothing changed, where
// another daemon has the same directories.
func openHost(ctx context.Context, c config.Config, log *slog.Logger) (_ *host, err error) {
	h := &host{config: c, log: log}
	defer func() {
		if err != nil {
			h.Close()
		}
	}()
	if err := os.MkdirAll(c.Root, 0o700); err != nil {
		return nil, err
	}
	// The durable file's lock makes us the only one; only then may anything be touched.
	if h.durable, err = store.Open(filepath.Join(c.Root, "state.db"), store.Durable); err != nil {
		return nil, err
	}
	h.closings = append(h.closings, h.durable.Close)
	if err := freshRun(c, log); err != nil {
		return nil, err
	}
	if h.volatile, err = store.Open(filepath.Join(c.Run, "state.db"), store.Volatile); err != nil {
		return nil, err
	}
	h.closings = append(h.closings, h.volatile.Close)

	if h.images, err = image.Open(ctx, image.Options{Root: c.Root, DB: h.durable, Config: c.Image, Log: log.With("domain", "image")}); err != nil {
		return nil, fmt.Errorf("open the image store: %w", err)
	}
	h.closings = append(h.closings, h.images.Close)
	if h.network, err = network.Open(ctx, networkOptions(c, h, log)); err != nil {
		return nil, fmt.Errorf("set up the network: %w", err)
	}
	h.closings = append(h.closings, h.network.Close)
	if h.volumes, err = volume.Open(ctx, volume.Options{
		Root: c.Root, Run: c.Run, DB: h.durable, Volatile: h.volatile, Log: log.With("domain", "volume"),
		PoolSizeBytes: c.Volume.PoolSizeBytes, ReserveBytes: c.Volume.ReserveBytes, Overcommit: c.Volume.Overcommit,
	}); err != nil {
		return nil, fmt.Errorf("open the volumes: %w", err)
	}
	h.closings = append(h.closings, h.volumes.Close)
	if h.pods, err = pod.Open(ctx, h.podOptions()); err != nil {
		return nil, fmt.Errorf("open the pods: %w", err)
	}
	h.closings = append(h.closings, h.pods.Close)
	return h, nil
}

func networkOptions(c config.Config, h *host, log *slog.Logger) network.Options {
	block := func(s string) netip.Prefix {
		p, _ := netip.ParsePrefix(s) // validated by config; "" is none
		return p
	}
	return network.Options{
		Instance: c.Instance, Run: c.Run, DB: h.volatile, Durable: h.durable,
		IPv4Block: block(c.Network.IPv4Block), IPv6Block: block(c.Network.IPv6Block),
		MTU: c.Network.MTU, NoMasquerade: !c.Network.Masquerade, Log: log.With("domain", "network"),
	}
}

// Close closes everything in reverse order. What runs goes on.
func (h *host) Close() error {
	var all []error
	for i := len(h.closings) - 1; i >= 0; i-- {
		all = append(all, h.closings[i]())
	}
	h.closings = nil
	return errors.Join(all...)
}

// freshRun makes the volatile directory and, if what is in it is of an earlier boot
// (where it is not on a tmpfs), empties it.
func freshRun(c config.Config, log *slog.Logger) error {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return err
	}
	mark := filepath.Join(c.Run, "boot-id")
	old, err := os.ReadFile(mark)
	if err == nil && string(old) == string(boot) {
		return openRun(c)
	}
	if err == nil {
		log.Warn("the run directory is of an earlier boot and is emptied", "run", c.Run, "boot", strings.TrimSpace(string(old)))
		for _, dir := range []string{c.Run, rootsDir(c)} {
			if err := mount.RemoveTree(dir); err != nil {
				return err
			}
		}
	}
	if err := os.MkdirAll(c.Run, 0o700); err != nil {
		return err
	}
	// Secrets and sockets must not reach a disk, whatever /run is on.
	var fs unix.Statfs_t
	if err := unix.Statfs(c.Run, &fs); err != nil {
		return err
	}
	if fs.Type != unix.TMPFS_MAGIC {
		if err := unix.Mount("tmpfs", c.Run, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0700"); err != nil {
			return fmt.Errorf("mount a tmpfs at %s: %w", c.Run, err)
		}
	}
	if err := openRun(c); err != nil {
		return err
	}
	return atomicfile.Write(mark, boot, 0o600, false)
}

// openRun lets the control group reach the socket, and nobody else anything.
func openRun(c config.Config) error {
	if c.Control.Group == "" {
		return os.Chmod(c.Run, 0o700)
	}
	g, err := user.LookupGroup(c.Control.Group)
	if err != nil {
		return fmt.Errorf("control.group: %w", err)
	}
	gid, err := strconv.Atoi(g.Gid)
	if err != nil {
		return err
	}
	if err := os.Chown(c.Run, 0, gid); err != nil {
		return err
	}
	return os.Chmod(c.Run, 0o710)
}

// reconcile makes kernel and records agree with what should be.
func (h *host) reconcile(ctx context.Context) error {
	return h.pods.Reconcile(ctx)
}
