package changes

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/overlay"
)

// Apply does to a tree what Diff has told of another: it makes the archive's files, and removes those that are
// gone. Nothing outside of the tree is touched, whatever the archive says.
func Apply(tree *os.Root, r io.Reader, gone []string) error {
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return errs.New(errs.Corrupt, "read the archive of changed files: %w", err)
		}
		if err := makeEntry(tree, h, tr); err != nil {
			return fmt.Errorf("make %.256q: %w", h.Name, err)
		}
	}
	for _, p := range gone {
		name, err := below(p)
		if err == nil {
			err = tree.RemoveAll(name)
		}
		if err != nil {
			return fmt.Errorf("remove %.256q: %w", p, err)
		}
	}
	return nil
}

// below is a path without the slash that it may begin with.
func below(p string) (string, error) {
	name := path.Clean(strings.TrimPrefix(p, "/"))
	if !fs.ValidPath(name) || name == "." {
		return "", errs.New(errs.Corrupt, "the name leads out of the tree, or is the tree's own")
	}
	return name, nil
}

func makeEntry(tree *os.Root, h *tar.Header, content io.Reader) error {
	if path.Clean(h.Name) == "." {
		return nil
	}
	name, err := below(h.Name)
	if err != nil {
		return err
	}
	if old, err := tree.Lstat(name); err == nil && !(old.IsDir() && h.Typeflag == tar.TypeDir) {
		if err := tree.RemoveAll(name); err != nil {
			return err
		}
	}
	mode := h.FileInfo().Mode()
	switch h.Typeflag {
	case tar.TypeDir:
		if err := tree.Mkdir(name, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	case tar.TypeReg:
		f, err := tree.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, content)
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
	case tar.TypeLink:
		target, err := below(h.Linkname)
		if err != nil {
			return err
		}
		return tree.Link(target, name) // which has all of its own already
	case tar.TypeSymlink:
		if err := tree.Symlink(h.Linkname, name); err != nil {
			return err
		}
		return tree.Lchown(name, h.Uid, h.Gid)
	case tar.TypeFifo, tar.TypeChar, tar.TypeBlock:
		if err := node(tree, name, h); err != nil {
			return err
		}
	default:
		return errs.New(errs.Corrupt, "its type %q is not known", h.Typeflag)
	}
	if err := tree.Lchown(name, h.Uid, h.Gid); err != nil {
		return err
	}
	if err := tree.Chmod(name, mode); err != nil { // which chown takes away from
		return err
	}
	if h.Typeflag == tar.TypeDir || h.Typeflag == tar.TypeReg {
		if err := setAttributes(tree, name, h); err != nil {
			return err
		}
	}
	return tree.Chtimes(name, h.ModTime, h.ModTime)
}

// node makes a FIFO or a device.
func node(tree *os.Root, name string, h *tar.Header) error {
	dir, err := tree.Open(path.Dir(name))
	if err != nil {
		return err
	}
	defer dir.Close()
	kind := uint32(unix.S_IFIFO)
	switch h.Typeflag {
	case tar.TypeChar:
		kind = unix.S_IFCHR
	case tar.TypeBlock:
		kind = unix.S_IFBLK
	}
	dev := unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))
	if kind == unix.S_IFCHR && dev == 0 {
		return errs.New(errs.Corrupt, "it is a whiteout, which is no file")
	}
	return unix.Mknodat(int(dir.Fd()), path.Base(name), kind|0o600, int(dev))
}

func setAttributes(tree *os.Root, name string, h *tar.Header) error {
	var f *os.File
	for key, value := range h.PAXRecords {
		attr, ok := strings.CutPrefix(key, xattrRecord)
		if !ok {
			continue
		}
		if strings.HasPrefix(attr, overlay.XattrPrefix) || strings.HasPrefix(attr, overlay.UserXattrPrefix) {
			return errs.New(errs.Corrupt, "it has an attribute of overlayfs, %s", attr)
		}
		if f == nil {
			var err error
			if f, err = tree.Open(name); err != nil {
				return err
			}
			defer f.Close()
		}
		if err := unix.Fsetxattr(int(f.Fd()), attr, []byte(value), 0); err != nil {
			return &fs.PathError{Op: "set attribute " + attr, Path: name, Err: err}
		}
	}
	return nil
}
