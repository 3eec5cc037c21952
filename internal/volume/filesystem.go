package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/google/uuid"
	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/ext4"
	"github.com/orlop-io/orlop/internal/platform/mount"
	"github.com/orlop-io/orlop/internal/volume/engine"
	"golang.org/x/sys/unix"
)

// How volumes are attached. ext4 is made with blocks of 4 KiB, so that its device needs no smaller
// sectors. What is on a block volume is not known, and 512 is what everything
// can live with; the device must stay although nobody has it open between a pod's containers.
var (
	forFilesystem = engine.Use{SectorBytes: 4096}
	forBlock      = engine.Use{SectorBytes: 512, Stay: true}
)

// format makes the filesystem of a new volume. It has the volume's UUID, so that a
// mount can tell that it is the right one. Scratch space needs no journal: it does not outlive
// the machine.
func format(ctx context.Context, device string, r record) error {
	u, err := uuid.Parse(string(r.Volume))
	if err != nil {
		return err
	}
	_, scratch := r.scratchHolder()
	o := ext4.Options{UUID: u, Label: r.Name[:min(len(r.Name), 16)], Zeroed: true, NoJournal: scratch}
	if err := ext4.Make(ctx, device, o); err != nil {
		return err
	}
	return syncDevice(device)
}

// syncDevice makes what was written to the device durable: it flushes the device, whose image is then
// synced by the loop driver.
func syncDevice(device string) error {
	f, err := os.OpenFile(device, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// check looks at a filesystem before it is mounted. One that was not unmounted
// cleanly is repaired if that loses nothing; one that is not this volume's, or that only a person
// can repair, is an errs.Corrupt error and is left as it is. Nothing is ever formatted here.
func (v *Volumes) check(ctx context.Context, r record, device string) error {
	sb, err := ext4.ReadSuperblock(device)
	if err != nil {
		return err
	}
	if sb.UUID.String() != string(r.Volume) {
		return errs.New(errs.Corrupt, "the filesystem on volume %s is another one's (UUID %s); it is left as it is", r.Volume, sb.UUID)
	}
	if sb.Clean {
		return nil
	}
	// Another mount namespace may still have it mounted (a container that is just ending): then it is
	// sound, not clean, and must not be touched.
	f, err := os.OpenFile(device, os.O_RDWR|unix.O_EXCL, 0)
	if errors.Is(err, unix.EBUSY) {
		return nil
	}
	if err != nil {
		return err
	}
	f.Close()
	start := time.Now()
	repaired, err := ext4.Check(ctx, device, false)
	if err != nil {
		return err
	}
	v.log.Info("checked a volume that was not unmounted cleanly", "claim", r.Key(), "volume", r.Volume, "took", time.Since(start), "repaired", repaired)
	return nil
}

// mountFilesystem mounts the device at dir. What a volume frees is given back to
// the pool (discard). Device nodes on it have no effect: its content is a container's.
func mountFilesystem(device, dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if err := unix.Mount(device, dir, "ext4", unix.MS_NODEV, "discard"); err != nil {
		if errors.Is(err, unix.EUCLEAN) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EIO) {
			return errs.New(errs.Corrupt, "mount %s: %w; it is left as it is, look at it with: e2fsck -n %s", device, err, device)
		}
		return fmt.Errorf("mount %s at %s: %w", device, dir, err)
	}
	return nil
}

// isolate keeps the mount from spreading to other mount namespaces, where it would
// outlive its unmounting here.
func isolate(dir string) error {
	if err := unix.Mount("", dir, "", unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make the mount at %s private: %w", dir, err)
	}
	return nil
}

// bindReadOnly shows dir read-only at another place. The mount is whole before it
// becomes visible: there is no moment at which it can be written through.
func bindReadOnly(dir, at string) error {
	if err := os.Mkdir(at, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return &os.PathError{Op: "open_tree", Path: dir, Err: err}
	}
	defer unix.Close(fd)
	err = unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{
		Attr_set: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NODEV, Propagation: unix.MS_PRIVATE})
	if err != nil {
		return fmt.Errorf("make a read-only mount of %s: %w", dir, err)
	}
	if err := unix.MoveMount(fd, "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return &os.PathError{Op: "move_mount", Path: at, Err: err}
	}
	return nil
}

// patience is how long an unmount or a detachment waits for who is just letting go.
const patience = 3 * time.Second

// unmount takes a mount point away. Removing the directory takes it from mount
// namespaces that copied it too (rename(2), unlink(2): a mount point of another namespace
// does not keep a directory), so that a forgotten copy does not keep the volume.
func unmount(ctx context.Context, dir string) error {
	if err := mount.Unmount(ctx, dir, patience); err != nil {
		return err
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// detach takes the volume's device away and waits for that, for a while.
func (v *Volumes) detach(ctx context.Context, id ID) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return v.engine.Detach(ctx, id)
}

// release unmounts and detaches a volume that nobody holds.
func (v *Volumes) release(ctx context.Context, id ID) error {
	for _, dir := range []string{v.readOnlyDir(id), v.mountDir(id)} {
		if err := unmount(ctx, dir); err != nil {
			return err
		}
	}
	return v.detach(ctx, id)
}
