package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/google/uuid"
	"github.com/orlop-io/orlop/internal/base/atomicfile"
	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/fault"
	"github.com/orlop-io/orlop/internal/platform/loop"
	"github.com/orlop-io/orlop/internal/platform/mount"
	"github.com/orlop-io/orlop/internal/platform/xfs"
	"golang.org/x/sys/unix"
)

var (
	faultPoolSized     = fault.New("volume.pool.image-sized")
	faultPoolFormatted = fault.New("volume.pool.image-formatted")
	faultPoolRenamed   = fault.New("volume.pool.image-renamed")
	faultPoolAttached  = fault.New("volume.pool.attached")
	faultPoolMounted   = fault.New("volume.pool.mounted")
	faultPoolGrown     = fault.New("volume.pool.file-grown")
	faultPoolRefreshed = fault.New("volume.pool.device-grown")
)

// openImage makes the image if it is missing, and mounts it if it is not mounted.
func (p *Pool) openImage(ctx context.Context, exists bool) error {
	if err := os.Remove(p.image + ".tmp"); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	want, err := p.wantSize()
	if err != nil {
		return err
	}
	if !exists {
		if err := makeImage(ctx, p.image, want); err != nil {
			return fmt.Errorf("make the pool's image %s: %w", p.image, err)
		}
		p.o.Log.Info("made the pool of volumes", "image", p.image, "bytes", want)
	}
	sb, err := xfs.ReadSuperblock(p.image)
	if err != nil {
		return fmt.Errorf("the pool's image is damaged, and is left as it is: %w", err)
	}
	if err := os.Mkdir(p.root, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	mounted, err := p.mounted()
	if err != nil {
		return err
	}
	if mounted {
		if mounted, err = p.healthy(ctx); err != nil {
			return err
		}
	}
	if !mounted {
		if err := p.mount(ctx, sb.SectorBytes); err != nil {
			return err
		}
	}
	// Unbindable is private too: what is mounted here goes to no other namespace later.
	if err := unix.Mount("", p.root, "", unix.MS_UNBINDABLE, ""); err != nil {
		return fmt.Errorf("make the pool's mount unbindable: %w", err)
	}
	return p.grow(ctx, want)
}

// wantSize returns the size that the image should have.
func (p *Pool) wantSize() (int64, error) {
	n := p.o.SizeBytes
	if n == 0 {
		// The image of an earlier start keeps its size: the disk has not changed.
		if st, err := os.Stat(p.image); err == nil {
			return st.Size(), nil
		}
		var st unix.Statfs_t
		if err := unix.Statfs(p.o.Dir, &st); err != nil {
			return 0, &os.PathError{Op: "statfs", Path: p.o.Dir, Err: err}
		}
		n = max(int64(st.Blocks)*st.Bsize/10*8, 512<<20)
	}
	n = n >> 20 << 20
	if n < xfs.MinSizeBytes {
		return 0, errs.New(errs.Invalid, "a pool of %d bytes is too small; set volume.poolSizeBytes to %d at least", n, 512<<20)
	}
	return n, nil
}

// minFree is what the disk must have free for a new image.
const minFree = 128 << 20

// makeImage makes a formatted image, durable under its name or not there at all.
func makeImage(ctx context.Context, path string, sizeBytes int64) error {
	// The journal of the new filesystem is written out: 64 MiB at least.
	if free, err := available(filepath.Dir(path)); err != nil {
		return err
	} else if free < minFree {
		return errs.New(errs.ResourceExhausted, "the disk has %d bytes free; an empty pool takes %d: free some space", free, int64(minFree))
	}
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	defer os.Remove(tmp) // without effect after the rename
	if err := f.Truncate(sizeBytes); err != nil {
		if errors.Is(err, unix.EFBIG) {
			return errs.New(errs.Invalid, "the disk's filesystem holds no file of %d bytes; set volume.poolSizeBytes lower", sizeBytes)
		}
		return err
	}
	faultPoolSized.Hit()
	sector, err := directSector(f)
	if err != nil {
		return err
	}
	if err := xfs.Make(ctx, tmp, uuid.New(), sector); err != nil {
		return err
	}
	faultPoolFormatted.Hit()
	if err := f.Sync(); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	faultPoolRenamed.Hit()
	return atomicfile.SyncDir(filepath.Dir(path))
}

// directSector returns the sector size with which direct I/O to the file works (statx(2), STATX_DIOALIGN,
// Linux 6.1): that of the disk below. Where the kernel does not tell, 512.
func directSector(f *os.File) (uint32, error) {
	var st unix.Statx_t
	if err := unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_DIOALIGN, &st); err != nil {
		return 0, &os.PathError{Op: "statx", Path: f.Name(), Err: err}
	}
	if st.Mask&unix.STATX_DIOALIGN == 0 || st.Dio_offset_align < 512 || st.Dio_offset_align > 4096 {
		return 512, nil
	}
	return st.Dio_offset_align, nil
}

// mounted tells whether the pool's own image is mounted at its place.
func (p *Pool) mounted() (bool, error) {
	m, ok, err := mount.At(p.root)
	if err != nil || !ok {
		return false, err
	}
	dev, ok, err := loop.Find(p.image)
	if err != nil {
		return false, err
	}
	if !ok || dev.Device != m.Source {
		return false, errs.New(errs.FailedPrecondition, "%s is a mount of %s, not of the pool's image %s; unmount it", p.root, m.Source, p.image)
	}
	return true, nil
}

// healthy tells whether the mounted pool works. After a write to its journal failed (the
// host's disk was full, or is broken) XFS has shut down, and everything in it is
// an I/O error until it is mounted anew, which replays the journal. That is done here, unless
// volumes in it are still in use.
func (p *Pool) healthy(ctx context.Context) (bool, error) {
	_, err := os.ReadDir(p.root)
	if !errors.Is(err, unix.EIO) {
		return true, err
	}
	p.o.Log.Warn("the pool of volumes has shut down after a failed write; it is mounted anew", "image", p.image)
	if err := unmountImage(ctx, p.root, time.Second); err != nil {
		return false, errs.New(errs.Unavailable, "the pool of volumes has shut down after a failed write (is the disk full?), and volumes in it are still in use; "+
			"what was synced is safe: free disk space, delete the pods that use volumes, and start the daemon again, or run: orlop system teardown: %w", err)
	}
	return false, os.Mkdir(p.root, 0o700)
}

func (p *Pool) mount(ctx context.Context, sectorBytes uint32) error {
	dev, err := loop.Attach(ctx, p.image, loop.Options{DirectIO: true, Autoclear: true, SectorBytes: sectorBytes})
	if err != nil {
		return err
	}
	defer dev.Close() // the mount keeps it
	faultPoolAttached.Hit()
	if !dev.DirectIO {
		p.o.Log.Warn("the pool's image is read and written through the page cache: the disk's filesystem has no direct I/O", "image", p.image)
	}
	// discard: what a volume frees is punched out of the image, and so given back to the host.
	err = unix.Mount(dev.Path, p.root, "xfs", unix.MS_NODEV|unix.MS_NOSUID|unix.MS_NOEXEC|unix.MS_NOATIME, "discard")
	if errors.Is(err, unix.EUCLEAN) || errors.Is(err, unix.EINVAL) {
		return errs.New(errs.Corrupt, "mount the pool's image %s: %w; it is left as it is, look at it with: xfs_repair -n -f %s", p.image, err, p.image)
	}
	if errors.Is(err, unix.ENODEV) {
		return errs.New(errs.Unsupported, "mount the pool's image %s: this kernel has no XFS; load the module: modprobe xfs", p.image)
	}
	if err != nil {
		return fmt.Errorf("mount the pool's image %s: %w", p.image, err)
	}
	faultPoolMounted.Hit()
	return nil
}

// grow makes file, device and filesystem at least so large. Each step compares with what
// is there, so that the next Open completes an interrupted one.
func (p *Pool) grow(ctx context.Context, want int64) error {
	st, err := os.Stat(p.image)
	if err != nil {
		return err
	}
	if want < st.Size() {
		p.o.Log.Warn("the pool cannot shrink; it keeps its size", "image", p.image, "bytes", st.Size(), "configured", want)
		want = st.Size()
	}
	if want > st.Size() {
		if err := truncate(p.image, want); err != nil {
			return fmt.Errorf("grow the pool's image to %d bytes: %w", want, err)
		}
		p.o.Log.Info("the pool of volumes grows", "image", p.image, "bytes", want)
		faultPoolGrown.Hit()
	}
	dev, ok, err := loop.Find(p.image)
	if err != nil || !ok {
		return fmt.Errorf("find the pool's device (found: %v): %w", ok, err)
	}
	if dev.SizeBytes < want {
		if err := loop.Refresh(p.image); err != nil {
			return err
		}
		faultPoolRefreshed.Hit()
	}
	have, err := xfs.SizeBytes(p.root)
	if err != nil {
		return err
	}
	// The last allocation group is left out where it would be too small to be one.
	if want-have < 16<<20 {
		return nil
	}
	return xfs.Grow(ctx, p.root)
}

// truncate grows a file durably.
func truncate(path string, sizeBytes int64) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Truncate(sizeBytes); err != nil {
		return err
	}
	return f.Sync()
}

// patience is how long an unmount waits: blocks are freed in the background, and unmounting waits for that.
const patience = 10 * time.Second
