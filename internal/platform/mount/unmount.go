package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/orlop-io/orlop/internal/base/errs"
	"golang.org/x/sys/unix"
)

// Unmount takes away every mount stacked at path. Nothing mounted there, or no
// such path, is no error. A mount that is busy is tried again until the context
// ends or patience has passed: what held it is often just exiting. Then the error
// is an errs.InUse that names who uses it. Symlinks are not followed.
func Unmount(ctx context.Context, path string, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		err := unix.Unmount(path, unix.UMOUNT_NOFOLLOW)
		switch {
		case err == nil:
			wait = time.Millisecond
			continue // another one may lie below it
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
			return nil // not a mount point
		case !errors.Is(err, unix.EBUSY):
			return &os.PathError{Op: "unmount", Path: path, Err: err}
		}
		select {
		case <-ctx.Done():
			return errs.New(errs.InUse, "unmount %s: %s", path, busy(path))
		case <-time.After(wait):
		}
	}
}

// Detach takes away every mount stacked at path at once, busy or not: who has
// something open there keeps it until it lets go (MNT_DETACH). Nothing mounted
// there is no error.
func Detach(path string) error {
	for {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		switch {
		case err == nil:
			continue
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
			return nil
		}
		return &os.PathError{Op: "unmount", Path: path, Err: err}
	}
}

// UnmountBelow unmounts everything at dir and below it, deepest first, each with
// the given patience. What stays busy is detached, so that afterwards nothing is
// mounted there; the returned error then tells what was still used.
func UnmountBelow(ctx context.Context, dir string, patience time.Duration) error {
	all, err := Below(dir)
	if err != nil {
		return err
	}
	var bad []error
	for _, m := range all {
		err := Unmount(ctx, m.Point, patience)
		if errors.Is(err, errs.InUse) {
			bad = append(bad, err)
			err = Detach(m.Point)
		}
		if err != nil {
			bad = append(bad, err)
		}
	}
	if err := errors.Join(bad...); err != nil {
		return fmt.Errorf("unmount what lies below %s: %w", dir, err)
	}
	return nil
}
