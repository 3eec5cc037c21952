package unpack

import (
	"archive/tar"
	"path"
	"strings"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/overlay"
	"golang.org/x/sys/unix"
)

// Whiteouts in a tar stream (image-spec layer.md, "Whiteouts"): an empty file
// .wh.NAME hides NAME of the layers below, .wh..wh..opq hides everything that the
// layers below have in its directory. They never concern what the same layer
// contains, wherever in the stream they stand.
const (
	whPrefix = ".wh."
	whOpaque = ".wh..wh..opq"
)

// aufs are names that aufs, which the format comes from, used for itself. Old
// images contain them; they mean nothing.
var aufs = map[string]bool{".wh..wh.aufs": true, ".wh..wh.orph": true, ".wh..wh.plnk": true}

// whiteout carries the entry out if it is one, and tells so.
func (u *unpacker) whiteout(hdr *tar.Header, name string) (done bool, err error) {
	if !strings.Contains(name, whPrefix) {
		return false, nil
	}
	base := path.Base(name)
	for c := range strings.SplitSeq(name, "/") {
		if aufs[c] {
			return true, nil
		}
	}
	for c := range strings.SplitSeq(dirOf(name), "/") {
		if strings.HasPrefix(c, whPrefix) {
			return true, errs.New(errs.Invalid, "a directory in it is named like a whiteout, which is reserved")
		}
	}
	if !strings.HasPrefix(base, whPrefix) {
		return false, nil
	}
	if hdr.Typeflag != tar.TypeReg && hdr.Typeflag != tar.TypeLink {
		return true, errs.New(errs.Invalid, "it is named like a whiteout, but is no file")
	}
	if base == whOpaque {
		return true, u.opaque(dirOf(name))
	}
	hidden := strings.TrimPrefix(base, whPrefix)
	if hidden == "" || hidden == "." || hidden == ".." || strings.HasPrefix(hidden, whPrefix) {
		return true, errs.New(errs.Invalid, "it is a whiteout of %q, which is no name that a file can have", hidden)
	}
	return true, u.hide(dirOf(name), hidden)
}

// hide makes the whiteout of base in the directory at name.
func (u *unpacker) hide(name, base string) error {
	if err := u.count(0, 1); err != nil {
		return err
	}
	if u.o.Merged {
		at, err := u.parent(name, false)
		if err == unix.ENOENT {
			return nil // nothing there to hide
		}
		if err != nil {
			return err
		}
		return u.clear(at.fd, base, path.Join(at.path, base))
	}
	at, err := u.parent(name, true)
	if err != nil {
		return err
	}
	err = overlay.Whiteout(at.fd, base)
	if err != unix.EEXIST {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(at.fd, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil // of this layer, and hides what is below by itself
	}
	fd, err := unix.Openat(at.fd, base, dirFlags, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return setOpaque(dir{fd, path.Join(at.path, base)})
}

// opaque hides what the layers below have in the directory at name.
func (u *unpacker) opaque(name string) error {
	if err := u.count(0, 1); err != nil {
		return err
	}
	if u.o.Merged {
		at, err := u.parent(name, false)
		if err == unix.ENOENT {
			return nil
		}
		if err != nil {
			return err
		}
		return u.clearDir(at.fd, at.path)
	}
	at, err := u.parent(name, true)
	if err != nil {
		return err
	}
	if at.path == "" {
		u.res.OpaqueRoot = true
		return nil
	}
	return setOpaque(at)
}

// setOpaque marks a directory that d has open by O_PATH.
func setOpaque(d dir) error {
	fd, err := unix.Openat(d.fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return overlay.SetOpaque(fd)
}

// clear removes name, whose path is p, from the merged tree, sparing what this
// layer made.
func (u *unpacker) clear(fd int, name, p string) error {
	if _, ok := u.touched[p]; !ok {
		u.dirs.flush()
		err := u.removeTree(fd, name, p)
		if err == unix.ENOENT {
			return nil
		}
		return err
	}
	sub, err := unix.Openat(fd, name, dirFlags, 0)
	if err == unix.ENOTDIR || err == unix.ELOOP {
		return nil // a file of this layer
	}
	if err != nil {
		return err
	}
	defer unix.Close(sub)
	return u.clearDir(sub, p)
}

// clearDir clears everything in the directory, whose path is p.
func (u *unpacker) clearDir(fd int, p string) error {
	if _, done := u.cleared[p]; done {
		return nil
	}
	u.cleared[p] = struct{}{}
	sub, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(sub)
	names, err := entries(sub)
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := u.clear(sub, n, path.Join(p, n)); err != nil {
			return err
		}
	}
	return nil
}
