package overlay

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/namespace"
)

// IDMap is a user namespace for whose processes layers are mounted: who is 0 there owns what is 0's on
// the disk, and nothing is chowned.
type IDMap struct {
	File *os.File
	IDs  *namespace.IDMaps
}

// mountIDMapped mounts the layers for the processes of l.Users. An overlay cannot be id-mapped itself
// (overlayfs.rst, "Permission model"), so its layers are, which it takes since Linux 5.19. It works in
// them as whoever mounted it, who has to be among the mapped ids: the namespace's root.
func mountIDMapped(l Layers) (*os.File, error) {
	dirs := slices.Clone(l.Lower)
	if l.Upper != "" {
		if filepath.Dir(l.Upper) != filepath.Dir(l.Work) {
			return nil, errs.New(errs.Invalid, "%s and %s are not in one directory, which id-mapped layers need", l.Upper, l.Work)
		}
		dirs = append(dirs, filepath.Dir(l.Upper))
	}
	mount := way(l)
	if mount == nil {
		mount = mountAt
	}
	return inNamespace(func() (f *os.File, err error) {
		for _, dir := range dirs {
			if err := cover(dir, l.Users.File); err != nil {
				return nil, fmt.Errorf("map the ids of %s: %w", dir, err)
			}
		}
		err = l.Users.IDs.AsRoot(func() (err error) {
			f, err = mount(l)
			return err
		})
		return f, err
	})
}

// cover mounts an id-mapped clone of a directory over it.
func cover(dir string, users *os.File) error {
	fd, err := unix.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(users.Fd())}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return err
	}
	return unix.MoveMount(fd, "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH)
}
