// Package reflink shares the blocks of one file with another (FICLONE,
// ioctl_ficlone(2)): XFS and btrfs, among others.
package reflink

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// Probe tells whether files in dir can share blocks, by doing it. Nothing is left
// behind.
func Probe(dir string) (bool, error) {
	src, err := os.CreateTemp(dir, ".reflink-*")
	if err != nil {
		return false, err
	}
	defer os.Remove(src.Name())
	defer src.Close()
	dst, err := os.CreateTemp(dir, ".reflink-*")
	if err != nil {
		return false, err
	}
	defer os.Remove(dst.Name())
	defer dst.Close()
	// A block of data: an empty clone succeeds where a real one does not.
	if _, err := src.Write(make([]byte, 64<<10)); err != nil {
		return false, err
	}
	err = unix.IoctlFileClone(int(dst.Fd()), int(src.Fd()))
	switch {
	case err == nil:
		return true, nil
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOTTY), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EXDEV), errors.Is(err, unix.ENOSYS):
		return false, nil
	}
	return false, &os.PathError{Op: "clone in", Path: dir, Err: err}
}

// Clone makes dst, which must not exist, a file that shares all blocks of src.
// It is not durable until dst and its directory are synced. The cost grows with
// the number of extents of src, not with its size.
func Clone(dst, src string) (err error) {
	s, err := os.Open(src)
	if err != nil {
		return err
	}
	defer s.Close()
	d, err := os.OpenFile(dst, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		d.Close()
		if err != nil {
			os.Remove(dst)
		}
	}()
	if err := unix.IoctlFileClone(int(d.Fd()), int(s.Fd())); err != nil {
		return &os.PathError{Op: "clone " + src + " to", Path: dst, Err: err}
	}
	return nil
}
