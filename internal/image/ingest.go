package image

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/fault"
	"github.com/orlop-io/orlop/internal/image/unpack"
	"github.com/orlop-io/orlop/internal/platform/overlay"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

var (
	faultTempMade   = fault.New("image.layer.temporary-made")
	faultDownloaded = fault.New("image.layer.blob-verified")
	faultUnpacked   = fault.New("image.layer.unpacked")
)

// ingest is the work on one layer: its blob comes in, is verified, kept and
// unpacked, all at the same time. Nothing is visible until the caller commits.
//
//	source → [blob digest, blob file] → decompression → [DiffID] → files
//
// Each arrow is a pipe between two goroutines.
type ingest struct {
	s *Store
	// open returns the compressed layer; it may resume by itself.
	open func(context.Context) (io.ReadCloser, error)
	// blob is what must come. A Digest of "" and a size of -1 are not checked, but
	// found out.
	blob blobRef
	// keep: the blob is not in the store yet and is to be.
	keep bool
	// diffID must be the digest of the decompressed layer; "" is found out.
	diffID digest.Digest
	// lower are the directories that the layer is unpacked above, topmost first; nil
	// unpacks it standalone.
	lower    []string
	budget   *budget
	progress func(done int64) // of compressed bytes; may be nil

	// Results.
	temp string // directory below tmp/, with blob and diff in it
	res  unpack.Result
}

// budget bounds an image as a whole.
type budget struct {
	bytes, files       atomic.Int64
	maxBytes, maxFiles int64
}

func (s *Store) newBudget() *budget {
	return &budget{maxBytes: s.o.Config.MaxImageBytes, maxFiles: s.o.Config.MaxFiles}
}

func (b *budget) add(bytes, files int64) error {
	if n := b.bytes.Add(bytes); b.maxBytes > 0 && n > b.maxBytes {
		return errs.New(errs.ResourceExhausted, "the image unpacks to more than %d bytes; if it is to be trusted, raise image.maxImageBytes", b.maxBytes)
	}
	if n := b.files.Add(files); b.maxFiles > 0 && n > b.maxFiles {
		return errs.New(errs.ResourceExhausted, "the image has more than %d files; if it is to be trusted, raise image.maxFiles", b.maxFiles)
	}
	return nil
}

// discard removes what run made. It is harmless after a commit, which has moved
// everything of worth away.
func (in *ingest) discard() {
	if in.temp != "" {
		removeAll(in.s.o.Log, in.temp)
	}
}

func (in *ingest) blobFile() string { return filepath.Join(in.temp, "blob") }
func (in *ingest) diffDir() string  { return filepath.Join(in.temp, "diff") }

// run does the work. On error the caller calls discard, too.
func (in *ingest) run(ctx context.Context) (err error) {
	if in.temp, err = os.MkdirTemp(in.s.dir("tmp"), "layer-"); err != nil {
		return err
	}
	if err := os.Mkdir(in.diffDir(), 0o755); err != nil {
		return err
	}
	if err := os.Chmod(in.diffDir(), 0o755); err != nil { // whatever the umask
		return err
	}
	faultTempMade.Hit()
	root, err := in.root()
	if err != nil {
		return err
	}
	defer root.Close()

	down, plain := newPipe(), newPipe()
	g, ctx := errgroup.WithContext(ctx)
	var blobErr, plainErr, unpackErr error
	var hopeless atomic.Bool // no need to read on to see whether the digest is right
	g.Go(func() error {
		blobErr = in.download(ctx, down)
		if errors.Is(blobErr, errPipeStopped) {
			blobErr = nil // the stage that stopped has the reason
		}
		return blobErr
	})
	g.Go(func() error {
		plainErr = in.decompress(down, plain)
		if errors.Is(plainErr, errPipeStopped) {
			plainErr = nil
		}
		if errors.Is(plainErr, errs.ResourceExhausted) {
			hopeless.Store(true)
		}
		if !hopeless.Load() {
			// Read to the end also after an error: if the content is not what its
			// digest says, that is the better message.
			_, _ = io.Copy(io.Discard, down)
		}
		down.close()
		return nil
	})
	g.Go(func() error {
		unpackErr = in.unpack(ctx, root, plain)
		if errors.Is(unpackErr, errs.ResourceExhausted) {
			hopeless.Store(true)
		}
		plain.close()
		return nil
	})
	_ = g.Wait()
	down.recycle()
	plain.recycle()
	// The first stage that failed has the cause; the later ones saw its error, or
	// the context's end.
	for _, err := range []error{blobErr, plainErr, unpackErr} {
		if err != nil {
			return err
		}
	}
	faultUnpacked.Hit()
	return nil
}

// root opens what is unpacked into: the directory itself, or an overlay whose
// upper directory it is.
func (in *ingest) root() (*os.File, error) {
	if in.lower == nil {
		return os.Open(in.diffDir())
	}
	work := filepath.Join(in.temp, "work")
	if err := os.Mkdir(work, 0o700); err != nil {
		return nil, err
	}
	return overlay.Mount(overlay.Layers{Lower: in.lower, Upper: in.diffDir(), Work: work})
}

// download reads the source, verifies it and writes it down.
func (in *ingest) download(ctx context.Context, to *pipe) (err error) {
	fail := func(err error) error {
		to.err = err
		close(to.full)
		return err
	}
	src, err := in.open(ctx)
	if err != nil {
		return fail(err)
	}
	defer src.Close()
	var file *blobWriter
	if in.keep {
		if file, err = newBlobWriter(in.blobFile()); err != nil {
			return fail(err)
		}
		defer file.close()
	}
	sum, size := sha256.New(), int64(0)
	err = to.fill(src, func(b []byte) error {
		size += int64(len(b))
		if in.blob.SizeBytes >= 0 && size > in.blob.SizeBytes {
			return errs.New(errs.Corrupt, "more than the %d bytes that the manifest says came", in.blob.SizeBytes)
		}
		sum.Write(b)
		if in.progress != nil {
			in.progress(size)
		}
		if file != nil {
			return file.write(b)
		}
		return nil
	})
	if err != nil {
		return err
	}
	got := digest.NewDigest(digest.SHA256, sum)
	if in.blob.SizeBytes >= 0 && size != in.blob.SizeBytes {
		return errs.New(errs.Corrupt, "%d bytes came, the manifest says %d", size, in.blob.SizeBytes)
	}
	if in.blob.Digest != "" && got != in.blob.Digest {
		return errs.New(errs.Corrupt, "the content's digest is %s, not %s as the manifest says", got, in.blob.Digest)
	}
	in.blob.Digest, in.blob.SizeBytes = got, size
	if file != nil {
		if err := file.sync(); err != nil {
			return err
		}
	}
	faultDownloaded.Hit()
	return nil
}

// decompress reads the compressed layer, and writes and hashes the plain one.
func (in *ingest) decompress(from, to *pipe) error {
	r, closeReader, err := decompressor(from)
	if err != nil {
		to.err = err
		close(to.full)
		return err
	}
	defer closeReader()
	// What may be decompressed is bounded apart from what is unpacked: padding and
	// headers cost time although they make no file.
	limit := int64(-1)
	if m := in.s.o.Config.MaxLayerBytes; m > 0 {
		limit = 2*m + 64<<20
	}
	sum, size := sha256.New(), int64(0)
	err = to.fill(r, func(b []byte) error {
		if size += int64(len(b)); limit >= 0 && size > limit {
			return errs.New(errs.ResourceExhausted, "the layer decompresses to more than %d bytes; if it is to be trusted, raise image.maxLayerBytes", limit)
		}
		sum.Write(b)
		return nil
	})
	if err != nil {
		if k := errs.KindOf(err); k == errs.Internal && !errors.Is(err, errPipeStopped) {
			return errs.New(errs.Corrupt, "decompress: %w", err)
		}
		return err
	}
	return in.checkDiffID(sum)
}

func (in *ingest) checkDiffID(sum hash.Hash) error {
	got := digest.NewDigest(digest.SHA256, sum)
	if in.diffID != "" && in.diffID != got {
		return errs.New(errs.Corrupt, "the decompressed layer's digest is %s, not %s as the image's configuration says", got, in.diffID)
	}
	in.diffID = got
	return nil
}

func (in *ingest) unpack(ctx context.Context, root *os.File, from *pipe) (err error) {
	in.res, err = unpack.Unpack(ctx, root, from, unpack.Options{
		Merged:   in.lower != nil,
		MaxBytes: in.s.o.Config.MaxLayerBytes,
		MaxFiles: in.s.o.Config.MaxFiles,
		Account:  in.budget.add,
	})
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, from) // padding after the archive; part of the DiffID
	return err
}

// decompressor tells the compression by its first bytes, since media types of
// archives cannot be relied on.
func decompressor(r io.Reader) (io.Reader, func(), error) {
	br := bufio.NewReaderSize(r, 64<<10)
	magic, _ := br.Peek(4)
	switch {
	case len(magic) >= 2 && magic[0] == 0x1f && magic[1] == 0x8b:
		z, err := gzip.NewReader(br)
		if err != nil {
			return nil, nil, errs.New(errs.Corrupt, "decompress: %w", err)
		}
		return z, func() { z.Close() }, nil
	case len(magic) == 4 && magic[0] == 0x28 && magic[1] == 0xb5 && magic[2] == 0x2f && magic[3] == 0xfd:
		z, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(128<<20), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, nil, errs.New(errs.Corrupt, "decompress: %w", err)
		}
		return z, z.Close, nil
	}
	return br, func() {}, nil
}

// blobWriter writes a blob and has the kernel write it back as it comes, so that
// the fsync(2) at the end has little left to do.
type blobWriter struct {
	f               *os.File
	written, pushed int64
}

func newBlobWriter(path string) (*blobWriter, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	return &blobWriter{f: f}, err
}

const pushBytes = 8 << 20

func (w *blobWriter) write(b []byte) error {
	n, err := w.f.Write(b)
	w.written += int64(n)
	if err != nil {
		return diskError(err)
	}
	if w.written-w.pushed >= pushBytes {
		// Only a hint: what it cannot do, fsync does.
		_ = unix.SyncFileRange(int(w.f.Fd()), w.pushed, w.written-w.pushed, unix.SYNC_FILE_RANGE_WRITE)
		w.pushed = w.written
	}
	return nil
}

// sync has the blob on the disk. Nobody is going to read it soon, so that it need
// not stay in memory.
func (w *blobWriter) sync() error {
	if err := w.f.Sync(); err != nil {
		return diskError(err)
	}
	_ = unix.Fadvise(int(w.f.Fd()), 0, 0, unix.FADV_DONTNEED) // a hint
	return nil
}

func (w *blobWriter) close() { w.f.Close() }

// diskError says what to do about a full disk.
func diskError(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return errs.New(errs.ResourceExhausted, "the disk of the image store is full; free some with: orlop image prune: %w", err)
	}
	return err
}
