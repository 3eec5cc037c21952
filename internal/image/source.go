package image

import (
	"archive/tar"
	"bufio"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"github.com/orlop-io/orlop/internal/base/ctxreader"
	"github.com/orlop-io/orlop/internal/base/errs"
)

// source is an archive or a directory to import from. Names in it are clean paths
// relative to its root.
type source interface {
	// open returns the file and its size; errs.NotFound if there is none.
	open(name string) (io.ReadCloser, int64, error)
	close() error
}

// dirSource reads a directory, never anything outside of it.
type dirSource struct{ root *os.Root }

func (d dirSource) open(name string) (io.ReadCloser, int64, error) {
	f, err := d.root.Open(name)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, 0, errs.New(errs.NotFound, "there is no %s in it", name)
		}
		return nil, 0, errs.New(errs.Invalid, "open %s: %w", name, err)
	}
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		f.Close()
		return nil, 0, errs.New(errs.Invalid, "%s is no regular file (%w)", name, errors.Join(err, fs.ErrInvalid))
	}
	return f, info.Size(), nil
}

func (d dirSource) close() error { return d.root.Close() }

// tarSource reads files of a tar archive at random, by an index made once.
type tarSource struct {
	f      *os.File
	remove bool // a spooled copy
	files  map[string]section
	links  map[string]string
}

type section struct{ off, size int64 }

// maxArchiveEntries bounds the index; an archive of images has a few files a layer.
const maxArchiveEntries = 100_000

// newTarSource indexes the archive in f, which it takes over.
func newTarSource(ctx context.Context, f *os.File, remove bool) (*tarSource, error) {
	t := &tarSource{f: f, remove: remove, files: make(map[string]section), links: make(map[string]string)}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		t.close()
		return nil, err
	}
	// Without a buffer in between, so that the file's position is the reader's.
	tr := tar.NewReader(f)
	for n := 0; ; n++ {
		hdr, err := tr.Next()
		if err == io.EOF {
			return t, nil
		}
		if err == nil {
			err = ctx.Err()
		} else {
			err = errs.New(errs.Invalid, "it is no valid tar archive: %w", err)
		}
		if err == nil && n >= maxArchiveEntries {
			err = errs.New(errs.Invalid, "it has more than %d entries; it is no archive of images", maxArchiveEntries)
		}
		if err != nil {
			t.close()
			return nil, err
		}
		name := strings.TrimPrefix(path.Clean("/"+hdr.Name), "/")
		switch hdr.Typeflag {
		case tar.TypeReg:
			if len(hdr.PAXRecords) > 0 && hdr.PAXRecords["GNU.sparse.major"] != "" || hdr.Size < 0 {
				continue
			}
			off, err := f.Seek(0, io.SeekCurrent)
			if err != nil {
				t.close()
				return nil, err
			}
			t.files[name] = section{off, hdr.Size}
		case tar.TypeSymlink: // docker save writes equal layers so
			t.links[name] = strings.TrimPrefix(path.Join("/", path.Dir(name), hdr.Linkname), "/")
		case tar.TypeLink:
			t.links[name] = strings.TrimPrefix(path.Clean("/"+hdr.Linkname), "/")
		}
	}
}

func (t *tarSource) open(name string) (io.ReadCloser, int64, error) {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	at := name
	for range 10 {
		if s, ok := t.files[at]; ok {
			return io.NopCloser(io.NewSectionReader(t.f, s.off, s.size)), s.size, nil
		}
		to, ok := t.links[at]
		if !ok {
			return nil, 0, errs.New(errs.NotFound, "there is no %s in it", name)
		}
		at = to
	}
	return nil, 0, errs.New(errs.Invalid, "%s is a symlink without end", name)
}

func (t *tarSource) close() error {
	err := t.f.Close()
	if t.remove {
		err = errors.Join(err, os.Remove(t.f.Name()))
	}
	return err
}

// spool writes the archive, decompressed, to a file below tmp.
func (s *Store) spool(ctx context.Context, r io.Reader) (*os.File, error) {
	plain, closeReader, err := decompressor(ctxreader.New(ctx, r))
	if err != nil {
		return nil, err
	}
	defer closeReader()
	f, err := os.CreateTemp(s.dir("tmp"), "import-")
	if err != nil {
		return nil, err
	}
	fail := func(err error) (*os.File, error) {
		f.Close()
		os.Remove(f.Name())
		return nil, err
	}
	most := s.o.Config.MaxImageBytes
	if most <= 0 {
		most = 1 << 60
	}
	buf := make([]byte, chunkSize)
	n, err := io.CopyBuffer(struct{ io.Writer }{f}, io.LimitReader(plain, most+1), buf)
	if err != nil {
		if k := errs.KindOf(diskError(err)); k != errs.Internal {
			return fail(diskError(err))
		}
		return fail(errs.New(errs.Invalid, "read the archive: %w", err))
	}
	if n > most {
		return fail(errs.New(errs.ResourceExhausted, "the archive is larger than the %d bytes that image.maxImageBytes allows", most))
	}
	return f, nil
}

// readSmall reads a whole file of the source, of at most limit bytes.
func readSmall(src source, name string, limit int64) ([]byte, error) {
	r, size, err := src.open(name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if size > limit {
		return nil, errs.New(errs.Invalid, "%s has %d bytes; %d is the most", name, size, limit)
	}
	return io.ReadAll(io.LimitReader(bufio.NewReader(r), limit+1))
}
