// Package imagetest makes images for tests and benchmarks, and serves them as a
// registry that can be told to misbehave.
package imagetest

import (
	"archive/tar"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// Layer is one layer by the entries in it.
type Layer struct {
	Entries []Entry
	// Raw, if not nil, is the uncompressed layer instead of Entries.
	Raw []byte
	// Write, if not nil, writes the uncompressed layer instead of Entries.
	Write func(io.Writer) error
	// Compression is gzip (also ""), zstd or none.
	Compression string
}

// Entry is one entry of a layer. Typeflag 0 is a directory for names that end in
// a slash and a regular file for others; Size is that of Data.
type Entry struct {
	tar.Header
	Data string
}

// File, Dir, Symlink and Hardlink are the usual entries.
func File(name, data string) Entry {
	return Entry{tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644}, data}
}
func Dir(name string) Entry {
	return Entry{Header: tar.Header{Name: name + "/", Typeflag: tar.TypeDir, Mode: 0o755}}
}
func Symlink(name, target string) Entry {
	return Entry{Header: tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: target, Mode: 0o777}}
}
func Hardlink(name, target string) Entry {
	return Entry{Header: tar.Header{Name: name, Typeflag: tar.TypeLink, Linkname: target, Mode: 0o644}}
}

// Whiteout and Opaque hide what lies below.
func Whiteout(dir, name string) Entry { return File(filepath.Join(dir, ".wh."+name), "") }
func Opaque(dir string) Entry         { return File(filepath.Join(dir, ".wh..wh..opq"), "") }

// Tar writes the entries as a tar archive.
func Tar(w io.Writer, entries []Entry) error {
	tw := tar.NewWriter(w)
	for _, e := range entries {
		h := e.Header
		if h.Typeflag == tar.TypeReg && h.Size == 0 {
			h.Size = int64(len(e.Data))
		}
		if h.ModTime.IsZero() {
			h.ModTime = time.Unix(1_600_000_000, 0)
		}
		if err := tw.WriteHeader(&h); err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
		if _, err := io.WriteString(tw, e.Data); err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
	}
	return tw.Close()
}

// Layout is an OCI image layout on the disk with one image in it.
type Layout struct {
	Dir      string
	Manifest ocispec.Descriptor
	Image    ocispec.Manifest
	Config   ocispec.Image
}

// Build writes an image of the layers into the directory, which is made. change,
// if not nil, alters configuration and manifest before they are written.
func Build(dir string, layers []Layer, change func(*ocispec.Image, *ocispec.Manifest)) (*Layout, error) {
	l := &Layout{Dir: dir}
	blobs := filepath.Join(dir, "blobs/sha256")
	if err := os.MkdirAll(blobs, 0o755); err != nil {
		return nil, err
	}
	l.Config = ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH},
		Config:   ocispec.ImageConfig{Cmd: []string{"/bin/true"}, Env: []string{"PATH=/bin"}},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: make([]digest.Digest, len(layers))},
	}
	l.Image = ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Layers: make([]ocispec.Descriptor, len(layers)),
	}
	var g errgroup.Group
	g.SetLimit(runtime.NumCPU())
	for i, layer := range layers {
		g.Go(func() (err error) {
			l.Image.Layers[i], l.Config.RootFS.DiffIDs[i], err = writeLayer(blobs, layer)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	if change != nil {
		change(&l.Config, &l.Image)
	}
	var err error
	if l.Image.Config.Digest == "" {
		if l.Image.Config, err = l.put(ocispec.MediaTypeImageConfig, l.Config); err != nil {
			return nil, err
		}
	}
	if l.Manifest, err = l.put(l.Image.MediaType, l.Image); err != nil {
		return nil, err
	}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{l.Manifest}}
	data, err := json.Marshal(index)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "index.json"), data, 0o644); err != nil {
		return nil, err
	}
	return l, os.WriteFile(filepath.Join(dir, "oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o644)
}

// put writes v as a blob.
func (l *Layout) put(mediaType string, v any) (ocispec.Descriptor, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	return l.Put(mediaType, data)
}

// Put writes data as a blob.
func (l *Layout) Put(mediaType string, data []byte) (ocispec.Descriptor, error) {
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	return d, os.WriteFile(filepath.Join(l.Dir, "blobs/sha256", d.Digest.Encoded()), data, 0o644)
}

// Read returns the content of a blob.
func (l *Layout) Read(d digest.Digest) ([]byte, error) {
	return os.ReadFile(filepath.Join(l.Dir, "blobs/sha256", d.Encoded()))
}

func writeLayer(blobs string, layer Layer) (ocispec.Descriptor, digest.Digest, error) {
	d := ocispec.Descriptor{}
	f, err := os.CreateTemp(blobs, "layer-")
	if err != nil {
		return d, "", err
	}
	defer f.Close()
	defer os.Remove(f.Name())
	blobSum, diffSum := sha256.New(), sha256.New()
	out := io.MultiWriter(f, blobSum)
	var z io.WriteCloser
	switch layer.Compression {
	case "", "gzip":
		d.MediaType = ocispec.MediaTypeImageLayerGzip
		z = gzip.NewWriter(out)
	case "zstd":
		d.MediaType = ocispec.MediaTypeImageLayerZstd
		if z, err = zstd.NewWriter(out, zstd.WithEncoderConcurrency(1)); err != nil {
			return d, "", err
		}
	default:
		d.MediaType = ocispec.MediaTypeImageLayer
		z = nopCloser{out}
	}
	w := io.MultiWriter(z, diffSum)
	switch {
	case layer.Write != nil:
		err = layer.Write(w)
	case layer.Raw != nil:
		_, err = w.Write(layer.Raw)
	default:
		err = Tar(w, layer.Entries)
	}
	if err != nil {
		return d, "", err
	}
	if err := z.Close(); err != nil {
		return d, "", err
	}
	if d.Size, err = f.Seek(0, io.SeekCurrent); err != nil {
		return d, "", err
	}
	d.Digest = digest.NewDigest(digest.SHA256, blobSum)
	return d, digest.NewDigest(digest.SHA256, diffSum), os.Rename(f.Name(), filepath.Join(blobs, d.Digest.Encoded()))
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// Generate writes an image like those that people pull into the directory: files
// of sizes around bytes/files in a tree of directories, whose contents compress to
// about two thirds, in gzipped layers of equal size. The same numbers give the
// same image.
func Generate(dir string, files int, bytes int64, layers int) (*Layout, error) {
	all := make([]Layer, layers)
	for i := range all {
		n, b := files/layers, bytes/int64(layers)
		all[i].Write = func(w io.Writer) error { return generateLayer(w, i, n, b) }
	}
	return Build(dir, all, nil)
}

const filesPerDir = 20

func generateLayer(w io.Writer, seed, files int, bytes int64) error {
	rnd := rand.New(rand.NewPCG(uint64(seed), 1))
	tw := tar.NewWriter(w)
	mtime := time.Unix(1_600_000_000, 0)
	dir := func(name string) error {
		return tw.WriteHeader(&tar.Header{Name: name + "/", Typeflag: tar.TypeDir, Mode: 0o755, ModTime: mtime})
	}
	if err := dir("usr"); err != nil {
		return err
	}
	top := fmt.Sprintf("usr/layer%d", seed)
	if err := dir(top); err != nil {
		return err
	}
	mean := float64(bytes) / float64(max(files, 1))
	var at string
	buf := make([]byte, 0, 1<<20)
	for i := range files {
		if i%filesPerDir == 0 {
			at = fmt.Sprintf("%s/package-%d", top, i/filesPerDir)
			if err := dir(at); err != nil {
				return err
			}
		}
		left := bytes - int64(mean*float64(i))
		size := int64(mean * (0.1 + 0.9*rnd.ExpFloat64()))
		if i == files-1 {
			size = int64(mean)
		}
		size = max(0, min(size, left, 64*int64(mean)))
		buf = fillText(buf[:0], size, rnd)
		h := &tar.Header{Name: fmt.Sprintf("%s/file-%d.dat", at, i), Typeflag: tar.TypeReg, Mode: 0o644, Size: size, ModTime: mtime}
		if err := tw.WriteHeader(h); err != nil {
			return err
		}
		if _, err := tw.Write(buf); err != nil {
			return err
		}
	}
	return tw.Close()
}

const text = "the quick brown fox jumps over the lazy dog while containers lie in the hold below the orlop deck "

// fillText appends size bytes, about 60 % of them without pattern.
func fillText(b []byte, size int64, rnd *rand.Rand) []byte {
	for int64(len(b)) < size {
		if rnd.IntN(5) < 3 {
			for range 16 {
				v := rnd.Uint64()
				b = append(b, byte(v), byte(v>>8), byte(v>>16), byte(v>>24), byte(v>>32), byte(v>>40), byte(v>>48), byte(v>>56))
			}
		} else {
			n := rnd.IntN(len(text) / 2)
			b = append(b, text[n:]...)
			b = append(b, text[:n]...)
		}
	}
	return b[:size]
}
