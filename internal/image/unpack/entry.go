package unpack

import (
	"archive/tar"
	"context"
	"io"
	"path"
	"strings"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/overlay"
	"golang.org/x/sys/unix"
)

// entry makes what one header says.
func (u *unpacker) entry(ctx context.Context, hdr *tar.Header, data io.Reader) error {
	u.dirs.reap()
	if hdr.Typeflag == tar.TypeXGlobalHeader {
		return nil // comments; its records mean nothing to a layer
	}
	name, err := clean(hdr.Name)
	if err != nil {
		return err
	}
	if done, err := u.whiteout(hdr, name); done || err != nil {
		return err
	}
	a, err := attrsOf(hdr)
	if err != nil {
		return err
	}
	if name == "" {
		if hdr.Typeflag != tar.TypeDir {
			return errs.New(errs.Invalid, "the root of a layer must be a directory")
		}
		u.attrs[""] = a
		return nil
	}
	var size int64
	if hdr.Typeflag == tar.TypeReg || hdr.Typeflag == tar.TypeCont {
		size = hdr.Size
	}
	if err := u.count(size, 1); err != nil {
		return err
	}
	at, err := u.parent(dirOf(name), true)
	if err != nil {
		return err
	}
	base := path.Base(name)
	switch hdr.Typeflag {
	case tar.TypeDir:
		return u.directory(at, base, a)
	case tar.TypeReg, tar.TypeCont:
		return u.file(ctx, at, base, a, size, data)
	case tar.TypeSymlink:
		return u.symlink(at, base, a, hdr.Linkname)
	case tar.TypeLink:
		return u.link(at, base, hdr.Linkname)
	case tar.TypeFifo:
		return u.node(at, base, a, unix.S_IFIFO)
	case tar.TypeChar, tar.TypeBlock:
		if hdr.Typeflag == tar.TypeChar && hiddenDevice(at.path, hdr) {
			return nil
		}
		return errs.New(errs.Invalid, "it is a device node (%d:%d); images may contain none, since devices are given to a container when it starts", hdr.Devmajor, hdr.Devminor)
	}
	return errs.New(errs.Invalid, "its type %q is not one that a layer may have", hdr.Typeflag)
}

func dirOf(name string) string {
	i := strings.LastIndexByte(name, '/')
	if i < 0 {
		return ""
	}
	return name[:i]
}

// hiddenDevice tells of a device node that no container can see, since /dev is
// mounted over, and that gives nothing that the runtime does not put there
// itself. Base images made from a root filesystem have these; they are left out.
func hiddenDevice(dir string, hdr *tar.Header) bool {
	if dir != "dev" {
		return false
	}
	switch [2]int64{hdr.Devmajor, hdr.Devminor} {
	case [2]int64{1, 3}, [2]int64{1, 5}, [2]int64{1, 7}, [2]int64{1, 8}, [2]int64{1, 9}, // null zero full random urandom
		[2]int64{5, 0}, [2]int64{5, 1}, [2]int64{5, 2}: // tty console ptmx
		return true
	}
	return false
}

// made notes a path of this layer.
func (u *unpacker) made(at dir, base string) {
	if u.o.Merged {
		u.touch(path.Join(at.path, base))
	}
}

func (u *unpacker) directory(at dir, base string, a attrs) error {
	p := base
	if at.path != "" {
		p = at.path + "/" + base
	}
	mode := a.mode &^ (unix.S_ISUID | unix.S_ISGID) // inherited by what is made in it: later
	err := unix.Mkdirat(at.fd, base, mode)
	if err == unix.EEXIST {
		var st unix.Stat_t
		if err := unix.Fstatat(at.fd, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			if err := u.remove(at, base); err != nil {
				return err
			}
			if err := unix.Mkdirat(at.fd, base, mode); err != nil {
				return err
			}
			// What was there, a whiteout or a file, hid a directory below; so must this.
			if !u.o.Merged {
				fd, err := unix.Openat(at.fd, base, dirFlags, 0)
				if err != nil {
					return err
				}
				err = setOpaque(dir{fd, p})
				unix.Close(fd)
				if err != nil {
					return err
				}
			}
		}
	} else if err != nil {
		return err
	}
	u.attrs[p] = a
	u.made(at, base)
	return nil
}

func (u *unpacker) file(ctx context.Context, at dir, base string, a attrs, size int64, data io.Reader) error {
	const flags = unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC
	mode := a.mode &^ (unix.S_ISUID | unix.S_ISGID)
	fd, err := unix.Openat(at.fd, base, flags, mode)
	if err == unix.EEXIST {
		if err := u.remove(at, base); err != nil {
			return err
		}
		fd, err = unix.Openat(at.fd, base, flags, mode)
	}
	if err != nil {
		return err
	}
	if err := u.write(ctx, fd, size, data); err != nil {
		unix.Close(fd)
		return err
	}
	if err := a.set(fd, u.o.Merged, a.mode != mode); err != nil {
		unix.Close(fd)
		return err
	}
	u.made(at, base)
	return unix.Close(fd)
}

// write copies exactly size bytes.
func (u *unpacker) write(ctx context.Context, fd int, size int64, data io.Reader) error {
	for left, n := size, 0; left > 0; n++ {
		if n%16 == 15 && ctx.Err() != nil {
			return ctx.Err()
		}
		buf := u.buf[:min(left, int64(len(u.buf)))]
		if _, err := io.ReadFull(data, buf); err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		left -= int64(len(buf))
		for len(buf) > 0 {
			n, err := unix.Write(fd, buf)
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				return err
			}
			buf = buf[n:]
		}
	}
	return nil
}

func (u *unpacker) symlink(at dir, base string, a attrs, target string) error {
	if target == "" || len(target) > maxName || strings.IndexByte(target, 0) >= 0 {
		return errs.New(errs.Invalid, "its target is empty, longer than %d bytes or contains a zero byte", maxName)
	}
	err := unix.Symlinkat(target, at.fd, base)
	if err == unix.EEXIST {
		if err := u.remove(at, base); err != nil {
			return err
		}
		err = unix.Symlinkat(target, at.fd, base)
	}
	if err != nil {
		return err
	}
	u.links[path.Join(at.path, base)] = struct{}{}
	u.made(at, base)
	return a.setAt(at.fd, base, u.o.Merged)
}

func (u *unpacker) node(at dir, base string, a attrs, kind uint32) error {
	mode := kind | a.mode&^(unix.S_ISUID|unix.S_ISGID)
	err := unix.Mknodat(at.fd, base, mode, 0)
	if err == unix.EEXIST {
		if err := u.remove(at, base); err != nil {
			return err
		}
		err = unix.Mknodat(at.fd, base, mode, 0)
	}
	if err != nil {
		return err
	}
	u.made(at, base)
	return a.setAt(at.fd, base, u.o.Merged)
}

// link makes a hard link. Its target is a path from the layer's root, of a file
// that came earlier in the layer or, when Merged, from below.
func (u *unpacker) link(at dir, base, linkname string) error {
	target, err := clean(linkname)
	if err != nil {
		return errs.New(errs.Invalid, "its link target %q: %w", linkname, err)
	}
	if target == "" {
		return errs.New(errs.Invalid, "it is a hard link to the root")
	}
	from, err := u.parent(dirOf(target), false)
	var st unix.Stat_t
	tbase := path.Base(target)
	if err == nil {
		err = unix.Fstatat(from.fd, tbase, &st, unix.AT_SYMLINK_NOFOLLOW)
	}
	if err == nil && !u.o.Merged && overlay.IsWhiteout(&st) {
		return errs.New(errs.Invalid, "it is a hard link to %q, which the layer removes", linkname)
	}
	if err == unix.ENOENT {
		if u.o.Merged {
			return errs.New(errs.Invalid, "it is a hard link to %q, which neither the layer nor one below it contains", linkname)
		}
		if u.res.Missing == "" {
			u.res.Missing = linkname
			u.res.Dependent = "it has a hard link to " + quote(linkname) + ", which it does not contain"
		}
		return nil
	}
	if err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return errs.New(errs.Invalid, "it is a hard link to a directory, %q", linkname)
	}
	if from.path == at.path && tbase == base {
		return nil // to itself
	}
	err = unix.Linkat(from.fd, tbase, at.fd, base, 0)
	if err == unix.EEXIST {
		// What is in the way may be a directory with the target in it.
		if p := path.Join(at.path, base); from.path == p || strings.HasPrefix(from.path, p+"/") {
			return errs.New(errs.Invalid, "it is a hard link that replaces a directory by a file in it, %q", linkname)
		}
		if err := u.remove(at, base); err != nil {
			return err
		}
		err = unix.Linkat(from.fd, tbase, at.fd, base, 0)
	}
	if err == unix.EMLINK {
		return errs.New(errs.Invalid, "%q has more hard links than the filesystem takes", linkname)
	}
	if err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		u.links[path.Join(at.path, base)] = struct{}{}
	}
	u.made(at, base)
	return nil
}
