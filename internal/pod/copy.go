package pod

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// root opens the root directory of a running container, as its processes see it:
// volumes included. Everything below is resolved by it, so no symlink of the
// container leads out.
func (p *Pods) root(k Key, container string) (*os.Root, error) {
	_, _, st, err := p.running(k, container)
	if err != nil {
		return nil, err
	}
	return os.OpenRoot(fmt.Sprintf("/proc/%d/root", st.PID))
}

// inside turns a path of the container into one below its root.
func inside(name string) (string, error) {
	if !path.IsAbs(name) {
		return "", errs.New(errs.Invalid, "%q must be an absolute path in the container", name)
	}
	name = strings.TrimPrefix(path.Clean(name), "/")
	if name == "" {
		name = "."
	}
	return name, nil
}

// CopyFrom writes what is at the path of the container as a tar archive, whose names
// begin with the path's last element.
func (p *Pods) CopyFrom(ctx context.Context, k Key, container, from string, w io.Writer) error {
	name, err := inside(from)
	if err != nil {
		return err
	}
	root, err := p.root(k, container)
	if err != nil {
		return err
	}
	defer root.Close()
	if _, err := root.Stat(name); errors.Is(err, fs.ErrNotExist) {
		return errs.New(errs.NotFound, "%s does not exist in the container", from)
	} else if err != nil {
		return err
	}
	base := path.Base(name)
	tw := tar.NewWriter(w)
	err = fs.WalkDir(root.FS(), name, func(at string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		fi, err := root.Lstat(at)
		if err != nil {
			return err
		}
		link := ""
		switch {
		case fi.Mode()&fs.ModeSymlink != 0:
			if link, err = root.Readlink(at); err != nil {
				return err
			}
		case !fi.IsDir() && !fi.Mode().IsRegular():
			return nil // sockets, devices and pipes mean nothing elsewhere
		}
		h, err := tar.FileInfoHeader(fi, link)
		if err != nil {
			return err
		}
		h.Name = path.Join(base, strings.TrimPrefix(strings.TrimPrefix(at, name), "/"))
		if fi.IsDir() {
			h.Name += "/"
		}
		if err := tw.WriteHeader(h); err != nil {
			return err
		}
		if !fi.Mode().IsRegular() {
			return nil
		}
		f, err := root.OpenFile(at, os.O_RDONLY|unix.O_NONBLOCK, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		// A file that grows meanwhile is copied as long as it was; one that shrinks is
		// filled up, or the archive would end here.
		n, err := io.Copy(tw, io.LimitReader(f, h.Size))
		if err != nil {
			return err
		}
		_, err = io.CopyN(tw, zeros{}, h.Size-n)
		return err
	})
	if err != nil {
		return fmt.Errorf("copy %s: %w", from, err)
	}
	return tw.Close()
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// CopyTo unpacks the tar archive into a directory of the container. Owners and modes
// are those of the archive; entries that would leave the directory are refused.
func (p *Pods) CopyTo(ctx context.Context, k Key, container, to string, r io.Reader) error {
	name, err := inside(to)
	if err != nil {
		return err
	}
	root, err := p.root(k, container)
	if err != nil {
		return err
	}
	defer root.Close()
	dir, err := root.OpenRoot(name)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return errs.New(errs.NotFound, "the directory %s does not exist in the container", to)
		}
		return err
	}
	defer dir.Close()
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return errs.New(errs.Invalid, "the archive is damaged: %w", err)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := extract(dir, h, tr); err != nil {
			return fmt.Errorf("copy %s to %s: %w", h.Name, to, err)
		}
	}
}

func extract(dir *os.Root, h *tar.Header, r io.Reader) error {
	name := path.Clean(h.Name)
	if !fs.ValidPath(name) {
		return errs.New(errs.Invalid, "the name leads out of the directory")
	}
	mode := fs.FileMode(h.Mode).Perm()
	switch h.Typeflag {
	case tar.TypeDir:
		if err := dir.Mkdir(name, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	case tar.TypeReg:
		f, err := dir.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, r)
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
	case tar.TypeSymlink:
		dir.Remove(name)
		return dir.Symlink(h.Linkname, name)
	default:
		return errs.New(errs.Unsupported, "only files, directories and symlinks can be copied")
	}
	if err := dir.Lchown(name, h.Uid, h.Gid); err != nil {
		return err
	}
	return dir.Chmod(name, mode)
}
