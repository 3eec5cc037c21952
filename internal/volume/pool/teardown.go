package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/loop"
	"github.com/orlop-io/orlop/internal/platform/mount"
)

// Teardown implements engine.Engine.
func (p *Pool) Teardown(ctx context.Context) error {
	return Teardown(ctx, p.o.Dir, p.o.Run)
}

// Teardown detaches the volumes of the pool of those directories, and unmounts and
// detaches its image, if there are such. It needs no open Pool and makes nothing, so that what a broken
// start left can be taken away too.
func Teardown(ctx context.Context, dir, run string) error {
	if err := teardown(ctx, dir, run); err != nil {
		return fmt.Errorf("tear down the volume pool: %w", err)
	}
	return nil
}

func teardown(ctx context.Context, dir, run string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	root, image := filepath.Join(run, "pool"), filepath.Join(dir, "pool.img")
	for _, volumes := range []string{filepath.Join(root, "volumes"), filepath.Join(dir, "pool/volumes")} {
		found, err := attached(volumes)
		if err != nil {
			return err
		}
		for id := range found {
			if err := loop.Detach(ctx, filepath.Join(volumes, string(id)+suffix)); err != nil {
				return err
			}
		}
	}
	err := unmountImage(ctx, root, patience)
	if errors.Is(err, errs.InUse) {
		err = errors.Join(err, mount.Detach(root))
	}
	if err != nil {
		return err
	}
	return loop.Detach(ctx, image)
}

// unmountImage unmounts the pool's image and removes its mount point. With the directory the
// mount goes from mount namespaces that were copied from ours while it was there, too
// (unlink(2), Linux 3.18): otherwise whoever has made one, a service with private mounts or another
// container engine, would keep the pool, and its device, for as long as it lives.
func unmountImage(ctx context.Context, root string, patience time.Duration) error {
	if err := mount.Unmount(ctx, root, patience); err != nil {
		return err
	}
	if err := os.Remove(root); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}
