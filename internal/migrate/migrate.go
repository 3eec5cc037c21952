// Package migrate reads what another container runtime has on a machine, its images
// and its configuration, so that Orlop can take its place.
//
// It reads only, needs no daemon of the other runtime, and trusts nothing that it
// reads: files of a layer are opened below the layer's directory alone, and every
// blob is verified by whoever imports the archive.
package migrate

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/orlop-io/orlop/internal/base/errs"
)

// Image is one image of another runtime's store.
type Image struct {
	// Names are repository:tag and repository@digest, sorted.
	Names []string
	// Digest is that of its manifest, or of the index that has it.
	Digest digest.Digest
	// SizeBytes is how much will be read.
	SizeBytes int64
	// Missing is why it cannot be moved; nil if it can.
	Missing error

	top   ocispec.Descriptor // what its names mean
	blobs []blob
}

// Tags are the names without those by digest.
func (i *Image) Tags() []string {
	return slices.DeleteFunc(slices.Clone(i.Names), func(n string) bool { return strings.Contains(n, "@") })
}

// String is what people call it.
func (i *Image) String() string {
	if t := i.Tags(); len(t) > 0 {
		return t[0]
	}
	if len(i.Names) > 0 {
		return i.Names[0]
	}
	return i.Digest.String()
}

// blob is one blob of an image, which is not open.
type blob struct {
	ocispec.Descriptor
	// write writes the content, of which there must be Size bytes.
	write func(context.Context, io.Writer) error
}

// bytesBlob is a blob that is in memory.
func bytesBlob(mediaType string, data []byte) blob {
	d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	return blob{d, func(_ context.Context, w io.Writer) error {
		_, err := w.Write(data)
		return err
	}}
}

// nameAnnotation is how archives of containerd name images in full.
const nameAnnotation = "io.containerd.image.name"

// WriteArchive writes the image as an OCI archive with all its names.
func (i *Image) WriteArchive(ctx context.Context, w io.Writer) error {
	if i.Missing != nil {
		return i.Missing
	}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for _, n := range i.Names {
		d := i.top
		d.Annotations = map[string]string{nameAnnotation: n}
		index.Manifests = append(index.Manifests, d)
	}
	if len(index.Manifests) == 0 {
		index.Manifests = append(index.Manifests, i.top)
	}
	data, err := json.Marshal(index)
	if err != nil {
		return err
	}
	tw := tar.NewWriter(w)
	put := func(name string, size int64, write func(io.Writer) error) error {
		if err := tw.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: size}); err != nil {
			return err
		}
		return write(tw)
	}
	plain := func(b []byte) func(io.Writer) error {
		return func(w io.Writer) error { _, err := w.Write(b); return err }
	}
	layout := []byte(`{"imageLayoutVersion":"1.0.0"}`)
	if err := put(ocispec.ImageLayoutFile, int64(len(layout)), plain(layout)); err != nil {
		return err
	}
	if err := put(ocispec.ImageIndexFile, int64(len(data)), plain(data)); err != nil {
		return err
	}
	for _, b := range i.blobs {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		err := put("blobs/sha256/"+b.Digest.Encoded(), b.Size, func(w io.Writer) error { return b.write(ctx, w) })
		if err != nil {
			return fmt.Errorf("read %s of image %s: %w", b.Digest, i, err)
		}
	}
	return tw.Close()
}

// add adds the blob once.
func (i *Image) add(b blob) {
	if slices.ContainsFunc(i.blobs, func(o blob) bool { return o.Digest == b.Digest }) {
		return
	}
	i.blobs = append(i.blobs, b)
	i.SizeBytes += b.Size
}

// validName tells names that mean a repository, with a tag or a digest; the stores
// have image IDs among them.
func validName(n string) bool {
	return strings.Contains(n, "/") && !strings.HasPrefix(n, "sha256:") && (strings.Contains(n, "@sha256:") || strings.LastIndexByte(n, ':') > strings.LastIndexByte(n, '/'))
}

// parseJSON decodes what a store has in a file, of at most 8 MiB.
func parseJSON(what string, data []byte, v any) error {
	if len(data) > maxDocument {
		return errs.New(errs.Invalid, "%s is larger than %d bytes", what, maxDocument)
	}
	if err := json.NewDecoder(bytes.NewReader(data)).Decode(v); err != nil {
		return errs.New(errs.Invalid, "%s is malformed: %w", what, err)
	}
	return nil
}

// maxDocument bounds manifests, configurations and indexes.
const maxDocument = 8 << 20

// isSHA256 tells a well-formed digest; methods of others panic.
func isSHA256(d digest.Digest) bool {
	return strings.HasPrefix(string(d), "sha256:") && d.Validate() == nil
}
