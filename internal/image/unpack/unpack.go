// Package unpack turns the tar stream of one image layer into a directory that
// overlayfs takes as a lower layer (OCI image-spec, layer.md).
//
// Nothing in the stream is trusted. Every path is resolved beneath the layer's
// root by descriptors and openat2(2), never by a name from the filesystem's root;
// what a layer may contain, and what it may cost, is bounded; an entry that breaks
// a rule is an error that names it, and the caller throws the directory away.
//
// There are two ways to unpack:
//
//   - Standalone: into an empty directory, knowing nothing of the layers below.
//     Whiteouts become overlayfs whiteouts. It is the fast way, needs no lower layer
//     to be there, and its result is right wherever the layer is used — unless the
//     layer leaves something to be said by the layers below: a hard link to a file
//     that it does not contain, or a file without the directories above it, whose
//     attributes (or symlinks, as lib → usr/lib) come from below. Then
//     Result.Dependent says so, and the directory is of use only at the bottom.
//   - Merged: into an overlay mount whose upper directory is the layer. The kernel
//     then copies up what is linked to, and makes whiteouts.
package unpack

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"os"
	"path"
	"runtime"
	"strings"

	"github.com/orlop-io/orlop/internal/base/errs"
	"golang.org/x/sys/unix"
)

// Options bound and direct the unpacking of one layer.
type Options struct {
	// Merged: root is an overlay mount, see the package comment.
	Merged bool
	// MaxBytes bounds the sum of the files' sizes, MaxFiles the number of entries
	// of every kind, directories that are made for want of an entry included.
	// 0: no bound.
	MaxBytes, MaxFiles int64
	// Account, where not nil, is told of bytes and files before they are made; its
	// error ends the work. It is how several layers share one budget. It is called
	// from one goroutine per Unpack.
	Account func(bytes, files int64) error
}

// Result is what was unpacked.
type Result struct {
	// Bytes is the sum of the files' sizes, Files the number of entries made.
	Bytes, Files int64
	// Dependent says why the result is not right above other layers; "" if it is.
	Dependent string
	// Missing is the first hard link target that the layer does not contain. With
	// it the result is not right even at the bottom.
	Missing string
	// OpaqueRoot: the layer hides everything below it.
	OpaqueRoot bool
}

// maxName is PATH_MAX less the room that the kernel takes; no path within a root
// can be longer anyhow.
const maxName = 4095

// Unpack reads the tar stream r to its end mark and makes its entries in the
// directory root. Errors of the stream itself are errs.Invalid, broken limits
// errs.ResourceExhausted, errors of r as they are.
//
// It works on a thread of its own whose umask is 0, so that most files need no
// chmod(2).
func Unpack(ctx context.Context, root *os.File, r io.Reader, o Options) (Result, error) {
	type answer struct {
		r   Result
		err error
	}
	done := make(chan answer, 1)
	go func() {
		runtime.LockOSThread() // not unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			done <- answer{err: errs.New(errs.Unsupported, "unshare the umask of a thread: %w", err)}
			return
		}
		unix.Umask(0)
		u := newUnpacker(int(root.Fd()), o)
		defer u.close()
		err := u.run(ctx, r)
		u.res.Bytes, u.res.Files = u.bytes, u.files
		done <- answer{u.res, err}
	}()
	a := <-done
	runtime.KeepAlive(root)
	return a.r, a.err
}

type unpacker struct {
	o     Options
	root  int
	dirs  dirCache
	attrs map[string]attrs // of directories, by resolved path; set when all is made
	// links are symlinks that this layer made, by resolved path.
	links map[string]struct{}
	// touched are resolved paths that this layer made, and all directories above
	// them. Only kept when Merged: it tells what whiteouts spare.
	touched map[string]struct{}
	// cleared are directories from which everything below was taken. Only kept
	// when Merged.
	cleared map[string]struct{}

	bytes, files int64
	buf          []byte
	res          Result
}

func newUnpacker(root int, o Options) *unpacker {
	u := &unpacker{
		o: o, root: root,
		attrs: make(map[string]attrs),
		links: make(map[string]struct{}),
		buf:   make([]byte, 256<<10),
	}
	if o.Merged {
		u.touched = make(map[string]struct{})
		u.cleared = make(map[string]struct{})
	}
	return u
}

func (u *unpacker) close() {
	u.dirs.flush()
	u.dirs.reap()
}

func (u *unpacker) run(ctx context.Context, r io.Reader) error {
	tr := tar.NewReader(r)
	for n := 0; ; n++ {
		if n%64 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		hdr, err := tr.Next()
		if err == io.EOF {
			return u.finish()
		}
		if err != nil {
			if errors.Is(err, tar.ErrHeader) || errors.Is(err, tar.ErrFieldTooLong) || errors.Is(err, tar.ErrInsecurePath) {
				return errs.New(errs.Invalid, "the layer is no valid tar archive: %w", err)
			}
			if errors.Is(err, io.ErrUnexpectedEOF) {
				return errs.New(errs.Invalid, "the layer's tar archive ends in the middle: %w", err)
			}
			return err
		}
		if err := u.entry(ctx, hdr, tr); err != nil {
			return explain(hdr, err)
		}
	}
}

// explain adds the entry to the error, and the kind to what the kernel refused
// because of the entry.
func explain(hdr *tar.Header, err error) error {
	name := hdr.Name
	if len(name) > 200 {
		name = name[:200] + "…"
	}
	switch {
	case errors.Is(err, unix.ENAMETOOLONG):
		return errs.New(errs.Invalid, "entry %q: a name in it is longer than the filesystem takes", name)
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return errs.New(errs.ResourceExhausted, "entry %q: the disk of the image store is full; free some with: orlop image prune: %w", name, err)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return errs.New(errs.Invalid, "entry %q: the layer's tar archive ends in the middle: %w", name, err)
	}
	return errs.As(errs.KindOf(err), &entryError{name, err})
}

type entryError struct {
	name string
	err  error
}

func (e *entryError) Error() string { return "entry " + quote(e.name) + ": " + e.err.Error() }
func (e *entryError) Unwrap() error { return e.err }

// clean returns the path of an entry relative to the root, "" for the root
// itself. A leading slash is taken as the root of the layer, as every runtime does
// (ko writes such layers); going up is refused even where it would stay inside.
func clean(name string) (string, error) {
	if len(name) > maxName {
		return "", errs.New(errs.Invalid, "the name is %d bytes long; %d is the most", len(name), maxName)
	}
	if strings.IndexByte(name, 0) >= 0 {
		return "", errs.New(errs.Invalid, "the name contains a zero byte")
	}
	if hasDotDot(name) {
		return "", errs.New(errs.Invalid, "the name goes up by \"..\"; a layer must name what is inside it")
	}
	return strings.TrimPrefix(path.Clean("/"+name), "/"), nil
}

func hasDotDot(name string) bool {
	if !strings.Contains(name, "..") {
		return false
	}
	for c := range strings.SplitSeq(name, "/") {
		if c == ".." {
			return true
		}
	}
	return false
}

// count bounds and accounts for what is about to be made.
func (u *unpacker) count(bytes, files int64) error {
	if bytes < 0 {
		return errs.New(errs.Invalid, "its size is negative")
	}
	u.bytes += bytes
	u.files += files
	if u.o.MaxBytes > 0 && (u.bytes > u.o.MaxBytes || u.bytes < 0) {
		return errs.New(errs.ResourceExhausted, "the layer unpacks to more than %d bytes; if it is to be trusted, raise image.maxLayerBytes", u.o.MaxBytes)
	}
	if u.o.MaxFiles > 0 && u.files > u.o.MaxFiles {
		return errs.New(errs.ResourceExhausted, "the layer has more than %d files; if it is to be trusted, raise image.maxFiles", u.o.MaxFiles)
	}
	if u.o.Account != nil {
		return u.o.Account(bytes, files)
	}
	return nil
}
