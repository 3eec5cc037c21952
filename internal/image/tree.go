package image

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/ctxreader"
	"github.com/orlop-io/orlop/internal/base/errs"
)

// treeWriter writes files of this host as a layer whose bytes depend on nothing
// but names, kinds, modes, capabilities and contents.
type treeWriter struct {
	tw    *tar.Writer
	buf   []byte
	links map[[2]uint64]string // device and inode → first name
}

// writeTree has fn write a layer to w and returns it as a blob.
func writeTree(w io.Writer, fn func(*treeWriter) error) (blobRef, error) {
	sum := sha256.New()
	count := &countWriter{w: io.MultiWriter(w, sum)}
	t := &treeWriter{tw: tar.NewWriter(count), buf: make([]byte, 256<<10), links: make(map[[2]uint64]string)}
	if err := fn(t); err != nil {
		return blobRef{}, err
	}
	if err := t.tw.Close(); err != nil {
		return blobRef{}, err
	}
	return blobRef{ocispec.MediaTypeImageLayer, digest.NewDigest(digest.SHA256, sum), count.n}, nil
}

type countWriter struct {
	w io.Writer
	n int64
}

func (c *countWriter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += int64(n)
	return n, err
}

func (t *treeWriter) header(name string, kind byte, mode int64) *tar.Header {
	return &tar.Header{Name: name, Typeflag: kind, Mode: mode, ModTime: epoch}
}

// executable writes an image of one program: a place to put temporary files, and
// the two files that tell root from nobody, since programs look there.
func (t *treeWriter) executable(ctx context.Context, source, name string) error {
	text := func(name, s string) error {
		h := t.header(name, tar.TypeReg, 0o644)
		h.Size = int64(len(s))
		if err := t.tw.WriteHeader(h); err != nil {
			return err
		}
		_, err := io.WriteString(t.tw, s)
		return err
	}
	steps := []func() error{
		func() error { return t.tw.WriteHeader(t.header("bin/", tar.TypeDir, 0o755)) },
		func() error { return t.file(ctx, source, name, 0o755) },
		func() error { return t.tw.WriteHeader(t.header("etc/", tar.TypeDir, 0o755)) },
		func() error { return text("etc/group", "root:x:0:\nnogroup:x:65534:\n") },
		func() error {
			return text("etc/passwd", "root:x:0:0:root:/:/bin/false\nnobody:x:65534:65534:nobody:/:/bin/false\n")
		},
		func() error { return t.tw.WriteHeader(t.header("tmp/", tar.TypeDir, 0o1777)) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

// dir writes everything in the directory, in the byte order of names.
func (t *treeWriter) dir(ctx context.Context, source string) error {
	return t.below(ctx, source, "")
}

func (t *treeWriter) below(ctx context.Context, source, name string) error {
	d, err := os.Open(filepath.Join(source, name))
	if err != nil {
		return err
	}
	names, err := sortedNames(d)
	d.Close()
	if err != nil {
		return err
	}
	for _, n := range names {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := t.entry(ctx, source, path.Join(name, n)); err != nil {
			return err
		}
	}
	return nil
}

func (t *treeWriter) entry(ctx context.Context, source, name string) error {
	file := filepath.Join(source, name)
	if strings.HasPrefix(path.Base(name), ".wh.") {
		return errs.New(errs.Invalid, "%s: names that begin with .wh. are reserved in images", file)
	}
	var st unix.Stat_t
	if err := unix.Lstat(file, &st); err != nil {
		return &os.PathError{Op: "lstat", Path: file, Err: err}
	}
	mode := int64(st.Mode & 0o7777)
	if st.Mode&unix.S_IFMT != unix.S_IFDIR && st.Nlink > 1 {
		key := [2]uint64{st.Dev, st.Ino}
		if first, ok := t.links[key]; ok {
			h := t.header(name, tar.TypeLink, mode)
			h.Linkname = first
			return t.tw.WriteHeader(h)
		}
		t.links[key] = name
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		if err := t.tw.WriteHeader(t.header(name+"/", tar.TypeDir, mode)); err != nil {
			return err
		}
		return t.below(ctx, source, name)
	case unix.S_IFREG:
		return t.file(ctx, file, name, mode)
	case unix.S_IFLNK:
		target, err := os.Readlink(file)
		if err != nil {
			return err
		}
		h := t.header(name, tar.TypeSymlink, 0o777)
		h.Linkname = target
		return t.tw.WriteHeader(h)
	case unix.S_IFIFO:
		return t.tw.WriteHeader(t.header(name, tar.TypeFifo, mode))
	case unix.S_IFSOCK:
		return nil // means nothing without the process that listens
	}
	return errs.New(errs.Invalid, "%s: it is a device node; images may contain none", file)
}

// file writes one regular file. A file that changes meanwhile is an error.
func (t *treeWriter) file(ctx context.Context, source, name string, mode int64) error {
	f, err := os.OpenFile(source, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if errors.Is(err, unix.ELOOP) { // the executable itself may be given by a symlink
		f, err = os.Open(source)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	h := t.header(name, tar.TypeReg, mode)
	h.Size = info.Size()
	cap := make([]byte, 256)
	if n, err := unix.Fgetxattr(int(f.Fd()), "security.capability", cap); err == nil && n > 0 {
		h.PAXRecords = map[string]string{"SCHILY.xattr.security.capability": string(cap[:n])}
	}
	if err := t.tw.WriteHeader(h); err != nil {
		return err
	}
	n, err := io.CopyBuffer(struct{ io.Writer }{t.tw}, ctxreader.New(ctx, f), t.buf)
	if errors.Is(err, tar.ErrWriteTooLong) || err == nil && n != h.Size {
		return errs.New(errs.FailedPrecondition, "%s changed while it was packed; try again", source)
	}
	return err
}
