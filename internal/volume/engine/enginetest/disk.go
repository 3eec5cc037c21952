package enginetest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"
	"unsafe"

	"github.com/google/uuid"
	"github.com/orlop-io/orlop/internal/platform/loop"
	"github.com/orlop-io/orlop/internal/platform/mount"
	"github.com/orlop-io/orlop/internal/platform/xfs"
	"golang.org/x/sys/unix"
)

// Disk returns a directory on a disk of its own, whose filesystem (XFS) can reflink.
// At the end of the test it is taken away, which fails the test if anything on it is
// still in use.
func Disk(t *testing.T, sizeBytes int64) string {
	t.Helper()
	ctx := context.Background()
	dir := t.TempDir()
	image, at := filepath.Join(dir, "disk.img"), filepath.Join(dir, "disk")
	f, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := errors.Join(f.Truncate(sizeBytes), os.Mkdir(at, 0o700), xfs.Make(ctx, image, uuid.New(), 512)); err != nil {
		t.Fatal(err)
	}
	dev, err := loop.Attach(ctx, image, loop.Options{DirectIO: true, Autoclear: true})
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	if err := unix.Mount(dev.Path, at, "xfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		if err := mount.UnmountBelow(ctx, dir, 10*time.Second); err != nil {
			t.Error(err)
		}
		if err := loop.Detach(ctx, image); err != nil {
			t.Error(err)
		}
	})
	return at
}

func ioctl(f *os.File, request uintptr, arg *[2]uint64) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), request, uintptr(unsafe.Pointer(arg))); errno != 0 {
		return errno
	}
	return nil
}
