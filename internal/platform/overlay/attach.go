package overlay

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// ReadOnly mounts a stack of layers, topmost first, read-only and attached nowhere.
func ReadOnly(layers []string) (f *os.File, err error) {
	if len(layers) == 1 { // overlayfs takes no single layer
		fd, err := unix.OpenTree(unix.AT_FDCWD, layers[0], unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			return nil, &os.PathError{Op: "open_tree", Path: layers[0], Err: err}
		}
		f = os.NewFile(uintptr(fd), layers[0])
	} else if f, err = Mount(Layers{Lower: layers}); err != nil {
		return nil, err
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY, Propagation: unix.MS_PRIVATE}
	if err := unix.MountSetattr(int(f.Fd()), "", unix.AT_EMPTY_PATH, &attr); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Attach gives a detached mount its place. The descriptor stays the caller's.
func Attach(f *os.File, dir string) error {
	if err := unix.MoveMount(int(f.Fd()), "", unix.AT_FDCWD, dir, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return &os.PathError{Op: "move_mount", Path: dir, Err: err}
	}
	return nil
}

// ForgetVolatile removes the mark that a volatile overlay leaves in its work directory and
// that keeps it from being mounted again. It is there after a start that failed, or whose caller
// died and tries again; after a crash of the machine the upper directory must not be used
// again at all.
func ForgetVolatile(work string) error {
	mark := work + "/work/incompat/volatile"
	err := os.RemoveAll(mark)
	if errors.Is(err, os.ErrPermission) {
		// The kernel makes its directories with no permissions at all: a user without
		// privileges has to give them to himself.
		for _, dir := range []string{filepath.Dir(filepath.Dir(mark)), filepath.Dir(mark), mark} {
			if err := os.Chmod(dir, 0o700); err != nil {
				return fmt.Errorf("forget that the layer was volatile: %w", err)
			}
		}
		err = os.RemoveAll(mark)
	}
	if err != nil {
		return fmt.Errorf("forget that the layer was volatile: %w", err)
	}
	return nil
}
