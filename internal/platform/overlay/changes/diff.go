// Package changes tells what has become of the files of an overlay, and does it to another.
package changes

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/platform/overlay"
)

// Diff writes what an upper directory adds to the layers below it (topmost first), and changes in them, as a
// tar archive without whiteouts, and returns the paths that it hides, beginning with a slash. Paths for which
// skip is true are left out.
//
// Nobody may write to the directory meanwhile.
func Diff(w io.Writer, upper string, lower []string, skip func(path string) bool) (gone []string, err error) {
	root, err := os.OpenRoot(upper)
	if err != nil {
		return nil, fmt.Errorf("open the writable layer: %w", err)
	}
	defer root.Close()
	d := differ{root: root, lower: lower, tar: tar.NewWriter(w), links: map[[2]uint64]string{}}
	err = fs.WalkDir(root.FS(), ".", func(p string, e fs.DirEntry, err error) error {
		if err != nil || p == "." {
			return err
		}
		if skip("/" + p) {
			if e.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		return d.add(p)
	})
	if err == nil {
		err = d.tar.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("read the writable layer: %w", err)
	}
	return d.gone, nil
}

// xattrRecord is what names of extended attributes begin with in an archive (star(5), as all tools have it).
const xattrRecord = "SCHILY.xattr."

type differ struct {
	root  *os.Root
	lower []string
	tar   *tar.Writer
	gone  []string
	links map[[2]uint64]string // files of several names, by device and inode
}

func (d *differ) add(p string) error {
	info, err := d.root.Lstat(p)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	dir, err := d.root.Open(path.Dir(p))
	if err != nil {
		return err
	}
	err = unix.Fstatat(int(dir.Fd()), path.Base(p), &st, unix.AT_SYMLINK_NOFOLLOW)
	dir.Close()
	if err != nil {
		return &fs.PathError{Op: "stat", Path: p, Err: err}
	}
	if overlay.IsWhiteout(&st) {
		d.gone = append(d.gone, "/"+p)
		return nil
	}
	if info.Mode()&fs.ModeSocket != 0 {
		return nil // means nothing without who listens, and tar has none
	}
	target := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		if target, err = d.root.Readlink(p); err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(info, target)
	if err != nil {
		return err
	}
	h.Name, h.Format, h.Uname, h.Gname = p, tar.FormatPAX, "", ""
	if info.IsDir() {
		h.Name += "/"
	}
	if !info.Mode().IsRegular() {
		if info.IsDir() {
			if err := d.attributes(p, h); err != nil {
				return err
			}
		}
		return d.tar.WriteHeader(h)
	}
	if st.Nlink > 1 {
		key := [2]uint64{uint64(st.Dev), st.Ino}
		if first, ok := d.links[key]; ok {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
			return d.tar.WriteHeader(h)
		}
		d.links[key] = p
	}
	if err := d.attributes(p, h); err != nil {
		return err
	}
	f, err := d.root.Open(p)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := d.tar.WriteHeader(h); err != nil {
		return err
	}
	_, err = io.Copy(d.tar, f)
	return err
}

// attributes adds a file's extended attributes to its header. Those of overlayfs mean nothing elsewhere; an opaque
// directory hides what is below it.
func (d *differ) attributes(p string, h *tar.Header) error {
	f, err := d.root.OpenFile(p, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	names, err := xattrNames(int(f.Fd()))
	if err != nil {
		return &fs.PathError{Op: "list attributes", Path: p, Err: err}
	}
	for _, name := range names {
		value, err := xattr(int(f.Fd()), name)
		if err != nil {
			return &fs.PathError{Op: "read attribute " + name, Path: p, Err: err}
		}
		switch {
		case name == overlay.XattrPrefix+"opaque":
			if string(value) == "y" {
				if err := d.hidden(p); err != nil {
					return err
				}
			}
		case strings.HasPrefix(name, overlay.XattrPrefix), strings.HasPrefix(name, overlay.UserXattrPrefix):
		default:
			if h.PAXRecords == nil {
				h.PAXRecords = map[string]string{}
			}
			h.PAXRecords[xattrRecord+name] = string(value)
		}
	}
	return nil
}

// hidden adds what the lower layers have in a directory and the upper one, which is opaque, has not.
func (d *differ) hidden(p string) error {
	seen := map[string]bool{}
	for _, layer := range d.lower {
		root, err := os.OpenRoot(layer)
		if err != nil {
			return err
		}
		opaque, err := lowerNames(root, p, func(name string, whiteout bool) {
			if seen[name] {
				return
			}
			seen[name] = true
			if _, err := d.root.Lstat(path.Join(p, name)); !whiteout && errors.Is(err, fs.ErrNotExist) {
				d.gone = append(d.gone, "/"+path.Join(p, name))
			}
		})
		root.Close()
		if err != nil {
			return err
		}
		if opaque {
			break
		}
	}
	slices.Sort(d.gone)
	return nil
}

// lowerNames calls each with the names of a layer's directory, and tells whether nothing is seen of the
// layers below.
func lowerNames(root *os.Root, p string, each func(name string, whiteout bool)) (opaque bool, err error) {
	info, err := root.Lstat(p)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil || !info.IsDir() { // which hides what is below, or is below a link that does
		return true, nil
	}
	f, err := root.Open(p)
	if err != nil {
		return false, err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return false, err
	}
	for _, name := range names {
		var st unix.Stat_t
		if err := unix.Fstatat(int(f.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return false, &fs.PathError{Op: "stat", Path: path.Join(p, name), Err: err}
		}
		each(name, overlay.IsWhiteout(&st))
	}
	value, err := xattr(int(f.Fd()), overlay.XattrPrefix+"opaque")
	return err == nil && string(value) == "y", nil
}

func xattrNames(fd int) (names []string, err error) {
	raw, err := grown(func(b []byte) (int, error) { return unix.Flistxattr(fd, b) })
	for name := range strings.SplitSeq(string(raw), "\x00") {
		if name != "" {
			names = append(names, name)
		}
	}
	return names, err
}

func xattr(fd int, name string) ([]byte, error) {
	return grown(func(b []byte) (int, error) { return unix.Fgetxattr(fd, name, b) })
}

// grown reads with a buffer that is large enough. A filesystem without attributes has none.
func grown(read func([]byte) (int, error)) ([]byte, error) {
	for buf := make([]byte, 256); ; buf = make([]byte, 2*len(buf)) {
		n, err := read(buf)
		switch {
		case err == unix.ENOTSUP:
			return nil, nil
		case err == unix.ERANGE && len(buf) < 1<<20:
		default:
			return buf[:max(n, 0)], err
		}
	}
}
