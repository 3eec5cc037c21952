package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/orlop-io/orlop/internal/platform/executor"
	"github.com/orlop-io/orlop/internal/platform/ext4"
	"github.com/orlop-io/orlop/internal/platform/keeper"
)

// keeperStarter runs single containers through a keeper, as the daemon does.
type keeperStarter struct {
	bin, dir, root string
	group          group
	client         *keeper.Client
}

func (k *keeperStarter) Name() string             { return "orlop" }
func (k *keeperStarter) Version() (string, error) { return version(k.bin+"/orlop", "--version") }
func (k *keeperStarter) Group() group             { return k.group }

// run is on tmpfs, and short, since a socket's path must be.
func (k *keeperStarter) run() string { return "/run/keeper" }

func (k *keeperStarter) Start(ctx context.Context) (err error) {
	if k.group, err = newGroup("keeper"); err != nil {
		return err
	}
	for _, d := range []string{k.dir, k.run()} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return err
		}
	}
	if bare, err := ext4.NoJournal(k.dir); err != nil {
		return err
	} else if bare {
		if err := ext4.Spread(k.dir); err != nil {
			return err
		}
	}
	log := filepath.Join(k.dir, "keeper.log")
	if _, err := k.group.spawn(log, k.bin+"/orlop-keeper", "-dir", k.run(), "-init", k.bin+"/orlop-init"); err != nil {
		return err
	}
	err = until(ctx, func() (err error) {
		k.client, err = keeper.Dial(ctx, keeper.Socket(k.run()), nil)
		return err
	})
	return withLog(err, log)
}

func (k *keeperStarter) spec(id string, argv ...string) keeper.Spec {
	dir := filepath.Join(k.dir, id)
	return keeper.Spec{
		ID: id, OCI: containerSpec(argv...), Cgroup: k.group.pods() + "/" + id,
		Rootfs: executor.Rootfs{Lower: []string{k.root}, Upper: dir + "/upper", Work: dir + "/work"},
		Log:    keeper.LogConfig{Path: dir + "/log", MaxBytes: 1 << 20, MaxFiles: 2},
	}
}

func (k *keeperStarter) Prepare(id string) error {
	for _, d := range []string{"upper", "work"} {
		if err := os.MkdirAll(filepath.Join(k.dir, id, d), 0o700); err != nil {
			return err
		}
	}
	return nil
}

func (k *keeperStarter) Run(ctx context.Context, id string) error {
	if _, err := k.client.Run(ctx, k.spec(id, "/bin/true")); err != nil {
		return k.failed(err)
	}
	if _, err := k.client.Wait(ctx, id); err != nil {
		return k.failed(err)
	}
	return k.failed(k.client.Delete(ctx, id))
}

func (k *keeperStarter) failed(err error) error {
	return withLog(err, filepath.Join(k.dir, "keeper.log"))
}

func (k *keeperStarter) Remove(id string) error { return os.RemoveAll(filepath.Join(k.dir, id)) }

func (k *keeperStarter) Hold(ctx context.Context, id string) (func() error, error) {
	if err := k.Prepare(id); err != nil {
		return nil, err
	}
	if _, err := k.client.Run(ctx, k.spec(id, "/bin/sleep", workloadMark)); err != nil {
		return nil, k.failed(err)
	}
	return func() error {
		if err := k.client.Signal(ctx, id, 9, true); err != nil {
			return err
		}
		if _, err := k.client.Wait(ctx, id); err != nil {
			return err
		}
		if err := k.client.Delete(ctx, id); err != nil {
			return err
		}
		return k.Remove(id)
	}, nil
}

func (k *keeperStarter) Exec(ctx context.Context, id string) error {
	e, err := k.client.Exec(ctx, id, keeper.ExecSpec{Process: containerSpec("/bin/true").Process})
	if err != nil {
		return k.failed(err)
	}
	_, err = e.Wait(ctx)
	return k.failed(err)
}

// withLog adds the end of a process's log to an error.
func withLog(err error, file string) error {
	if err == nil {
		return nil
	}
	raw, _ := os.ReadFile(file)
	return fmt.Errorf("%w; the end of its log:\n%s", err, raw[max(0, len(raw)-2000):])
}
