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

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/namespace"
)

// openInside resolves a path as a process of a running container does: volumes included,
// and every symlink on the way, absolute ones and ".." too, within the container's root
// (openat2(2), RESOLVE_IN_ROOT). What is returned is open with O_PATH only: opening a
// device or a pipe could do something.
func (p *Pods) openInside(k Key, container, name string) (*os.File, error) {
	if !path.IsAbs(name) {
		return nil, errs.New(errs.Invalid, "%q must be an absolute path in the container", name)
	}
	_, _, st, err := p.running(k, container)
	if err != nil {
		return nil, err
	}
	f, err := openInRoot(fmt.Sprintf("/proc/%d/root", st.PID), name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errs.New(errs.NotFound, "%s does not exist in the container", name)
	}
	return f, err
}

func openInRoot(root, name string) (*os.File, error) {
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: root, Err: err}
	}
	defer unix.Close(dir)
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	for try := 0; ; try++ {
		fd, err := unix.Openat2(dir, name, &how)
		switch {
		case err == nil:
			return os.NewFile(uintptr(fd), name), nil
		case err == unix.EAGAIN && try < 32: // something was renamed meanwhile
		default:
			return nil, &os.PathError{Op: "open", Path: name, Err: err}
		}
	}
}

// again opens what f, an O_PATH descriptor, is of.
func again(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

// CopyFrom writes what is at the path of the container as a tar archive, whose names
// begin with the path's last element. A symlink at the path itself is followed; those
// below are copied.
func (p *Pods) CopyFrom(ctx context.Context, k Key, container, from string, w io.Writer) error {
	at, err := p.openInside(k, container, from)
	if err != nil {
		return err
	}
	defer at.Close()
	users, err := p.usersOf(k)
	if err != nil {
		return err
	}
	tw := &archiver{Writer: tar.NewWriter(w), users: users}
	base := path.Base(path.Clean(from))
	if base == "/" {
		base = "."
	}
	if err := archiveTree(ctx, at, base, tw); err != nil {
		return fmt.Errorf("copy %s: %w", from, err)
	}
	return tw.Close()
}

// usersOf are the ids of the pod's user namespace; nil: it has the host's.
func (p *Pods) usersOf(k Key) (*namespace.IDMaps, error) {
	w, err := p.worker(k)
	if err != nil {
		return nil, err
	}
	return w.spec().Users, nil
}

// archiver writes owners as the pod knows them.
type archiver struct {
	*tar.Writer
	users *namespace.IDMaps
}

func (a *archiver) WriteHeader(h *tar.Header) error {
	if a.users != nil {
		h.Uid, h.Gid = a.users.Inside(h.Uid, h.Gid)
	}
	return a.Writer.WriteHeader(h)
}

func archiveTree(ctx context.Context, at *os.File, base string, tw *archiver) error {
	fi, err := os.Stat(again(at))
	if err != nil {
		return err
	}
	if !fi.IsDir() {
		if !fi.Mode().IsRegular() {
			return errs.New(errs.Unsupported, "it is neither a file nor a directory")
		}
		return archiveFile(tw, fi, base, func() (*os.File, error) { return os.Open(again(at)) })
	}
	root, err := os.OpenRoot(again(at))
	if err != nil {
		return err
	}
	defer root.Close()
	return fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		fi, err := root.Lstat(name)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // removed meanwhile
		}
		if err != nil {
			return err
		}
		link, full := "", path.Join(base, name)
		switch {
		case fi.Mode()&fs.ModeSymlink != 0:
			if link, err = root.Readlink(name); err != nil {
				return err
			}
		case fi.IsDir():
			full += "/"
		case fi.Mode().IsRegular():
			return archiveFile(tw, fi, full, func() (*os.File, error) { return root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0) })
		default:
			return nil // sockets, devices and pipes mean nothing elsewhere
		}
		h, err := tar.FileInfoHeader(fi, link)
		if err != nil {
			return err
		}
		h.Name = full
		return tw.WriteHeader(h)
	})
}

// archiveFile writes a file as long as it was when it was looked at: one that grows
// meanwhile is cut, one that shrinks is filled up, or the archive would end here.
func archiveFile(tw *archiver, fi fs.FileInfo, name string, open func() (*os.File, error)) error {
	f, err := open()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	h, err := tar.FileInfoHeader(fi, "")
	if err != nil {
		return err
	}
	h.Name = name
	if err := tw.WriteHeader(h); err != nil {
		return err
	}
	n, err := io.Copy(tw, io.LimitReader(f, h.Size))
	if err != nil {
		return err
	}
	_, err = io.CopyN(tw, zeros{}, h.Size-n)
	return err
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { clear(b); return len(b), nil }

// CopyTo unpacks the tar archive into a directory of the container. Owners and modes are those of the
// archive; entries that would leave the directory are refused. Links that are there are followed as a
// process of the container would, those that the archive brings are not.
func (p *Pods) CopyTo(ctx context.Context, k Key, container, to string, r io.Reader) error {
	root, err := p.openInside(k, container, "/")
	if err != nil {
		return err
	}
	defer root.Close()
	at, err := openInRoot(again(root), to)
	if errors.Is(err, fs.ErrNotExist) {
		return errs.New(errs.NotFound, "%s does not exist in the container", to)
	}
	if err != nil {
		return err
	}
	defer at.Close()
	if fi, err := os.Stat(again(at)); err != nil || !fi.IsDir() {
		return errs.New(errs.FailedPrecondition, "%s is not a directory of the container", to)
	}
	users, err := p.usersOf(k)
	if err != nil {
		return err
	}
	u := &unpacker{root: again(root), to: to, links: make(map[string]bool)}
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
		if users != nil {
			if h.Uid, h.Gid, err = users.Outside(h.Uid, h.Gid); err != nil {
				return fmt.Errorf("copy %s to %s: %w", h.Name, to, err)
			}
		}
		if err := users.AsRoot(func() error { return u.extract(h, tr) }); err != nil {
			return fmt.Errorf("copy %s to %s: %w", h.Name, to, err)
		}
	}
}

// unpacker writes what an archive has below a directory of a container.
type unpacker struct {
	root  string          // the container's, seen from here
	to    string          // the directory, in the container
	links map[string]bool // that the archive has brought
}

func (u *unpacker) extract(h *tar.Header, r io.Reader) error {
	name := path.Clean(h.Name)
	if !fs.ValidPath(name) {
		return errs.New(errs.Invalid, "the name leads out of the directory")
	}
	for above := path.Dir(name); above != "."; above = path.Dir(above) {
		if u.links[above] {
			return errs.New(errs.Invalid, "it is behind %s, a link of the archive itself", above)
		}
	}
	parent, err := openInRoot(u.root, path.Join(u.to, path.Dir(name)))
	if err != nil {
		return err
	}
	defer parent.Close()
	dir, err := os.OpenRoot(again(parent))
	if err != nil {
		return err
	}
	defer dir.Close()
	base := path.Base(name)
	link := false
	if fi, err := dir.Lstat(base); err == nil {
		link = fi.Mode()&fs.ModeSymlink != 0
	}
	if link {
		done, err := u.through(h, r, name)
		if done || err != nil {
			return err
		}
		if err := dir.Remove(base); err != nil {
			return err
		}
	}
	switch h.Typeflag {
	case tar.TypeDir:
		if err := dir.Mkdir(base, 0o755); errors.Is(err, fs.ErrExist) {
			if fi, err := dir.Lstat(base); err != nil || !fi.IsDir() {
				return errs.New(errs.AlreadyExists, "it is a directory here and none in the container")
			}
		} else if err != nil {
			return err
		}
	case tar.TypeReg:
		f, err := dir.OpenFile(base, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return err
		}
		_, err = io.Copy(f, r)
		if err = errors.Join(err, f.Close()); err != nil {
			return err
		}
	case tar.TypeSymlink:
		dir.Remove(base)
		u.links[name] = true
		return dir.Symlink(h.Linkname, base)
	default:
		return errs.New(errs.Unsupported, "only files, directories and symlinks can be copied")
	}
	if err := dir.Lchown(base, h.Uid, h.Gid); err != nil {
		return err
	}
	return dir.Chmod(base, fs.FileMode(h.Mode).Perm())
}

// through writes to what a link leads to: a file into a file, a directory into a directory. It is false where
// the link leads to nothing of the kind, or is the archive's own, and is to be replaced.
func (u *unpacker) through(h *tar.Header, r io.Reader, name string) (bool, error) {
	if u.links[name] {
		return false, nil
	}
	at, err := openInRoot(u.root, path.Join(u.to, name))
	if err != nil {
		return false, nil
	}
	defer at.Close()
	fi, err := os.Stat(again(at))
	switch {
	case err != nil:
		return false, err
	case h.Typeflag == tar.TypeDir:
		return fi.IsDir(), nil
	case h.Typeflag != tar.TypeReg || !fi.Mode().IsRegular():
		return false, nil
	}
	f, err := os.OpenFile(again(at), os.O_WRONLY|os.O_TRUNC, 0)
	if err != nil {
		return false, err
	}
	_, err = io.Copy(f, r)
	return true, errors.Join(err, f.Close())
}
