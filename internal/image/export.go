package image

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/orlop-io/orlop/internal/base/ctxreader"
	"github.com/orlop-io/orlop/internal/base/errs"
)

// Format is an archive format.
type Format string

const (
	// OCIArchive is a tar of an OCI image layout.
	OCIArchive Format = "oci-archive"
	// DockerArchive is what `docker load` reads. It is an OCI layout at the same time.
	DockerArchive Format = "docker-archive"
	// OCILayout is a directory (ExportDir).
	OCILayout Format = "oci-layout"
)

// Export writes the images as one archive. The same images give the same bytes.
// Manifests are those that were pulled, digest for digest, unless a layer is only
// here in another compression, because another image had brought it.
func (s *Store) Export(ctx context.Context, namesOrIDs []string, w io.Writer, f Format) error {
	if f != OCIArchive && f != DockerArchive {
		return errs.New(errs.Invalid, "export: format %q is not one of %s, %s", f, OCIArchive, DockerArchive)
	}
	tw := tar.NewWriter(w)
	dirs := make(map[string]bool)
	err := s.export(ctx, namesOrIDs, f == DockerArchive, func(name string, size int64, r io.Reader) error {
		for i := range name {
			if d := name[:i+1]; name[i] == '/' && !dirs[d] {
				dirs[d] = true
				if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: d, Mode: 0o755, ModTime: epoch}); err != nil {
					return err
				}
			}
		}
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size, ModTime: epoch}); err != nil {
			return err
		}
		_, err := io.CopyBuffer(struct{ io.Writer }{tw}, ctxreader.New(ctx, r), make([]byte, chunkSize))
		return err
	})
	if err == nil {
		err = tw.Close()
	}
	if err != nil {
		return errs.New(errs.KindOf(err), "export: %w", err)
	}
	return nil
}

// ExportDir writes the images as an OCI layout into the directory, which is made
// and must be empty if it exists. On error what it wrote is removed.
func (s *Store) ExportDir(ctx context.Context, namesOrIDs []string, dir string) (err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return errs.New(errs.Invalid, "export to %s: %w", dir, err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		return errs.New(errs.AlreadyExists, "export to %s: the directory is not empty", dir)
	}
	defer func() {
		if err != nil {
			for _, n := range []string{"blobs", "index.json", "oci-layout"} {
				os.RemoveAll(filepath.Join(dir, n))
			}
		}
	}()
	err = s.export(ctx, namesOrIDs, false, func(name string, _ int64, r io.Reader) error {
		file := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return err
		}
		f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
		if err != nil {
			return err
		}
		_, err = io.CopyBuffer(struct{ io.Writer }{f}, ctxreader.New(ctx, r), make([]byte, chunkSize))
		return errors.Join(err, f.Close())
	})
	if err != nil {
		return errs.New(errs.KindOf(err), "export to %s: %w", dir, err)
	}
	return nil
}

type dockerEntry struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// export puts the files of a layout, metadata last.
func (s *Store) export(ctx context.Context, namesOrIDs []string, docker bool, put func(name string, size int64, r io.Reader) error) error {
	if len(namesOrIDs) == 0 {
		return errs.New(errs.Invalid, "name at least one image")
	}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	var list []dockerEntry
	written := make(map[digest.Digest]bool)
	for _, name := range namesOrIDs {
		s.mu.Lock()
		img, by, err := s.find(name)
		s.mu.Unlock()
		if err != nil {
			return err
		}
		release, err := s.Hold(img.ID)
		if err != nil {
			return err
		}
		defer release()
		manifest, layers, err := s.exportable(&img)
		if err != nil {
			return err
		}
		tags := []string{by}
		if by == "" || strings.Contains(by, "@") {
			s.mu.Lock()
			tags = s.describe(img).Names
			s.mu.Unlock()
		}
		d := ocispec.Descriptor{MediaType: img.Manifest.MediaType, Digest: digest.FromBytes(manifest), Size: int64(len(manifest))}
		if p, err := parsePlatform(img.Platform); err == nil {
			d.Platform = &ocispec.Platform{OS: p.os, Architecture: p.arch, Variant: p.variant}
		}
		if len(tags) == 0 {
			index.Manifests = append(index.Manifests, d)
		}
		for _, t := range tags {
			d.Annotations = map[string]string{"io.containerd.image.name": t, ocispec.AnnotationRefName: t}
			index.Manifests = append(index.Manifests, d)
		}
		e := dockerEntry{Config: blobName(img.Config.Digest), RepoTags: tags, Layers: []string{}}
		for _, b := range append(slices.Clone(layers), img.Config) {
			if b.Digest != img.Config.Digest {
				e.Layers = append(e.Layers, blobName(b.Digest))
			}
			if written[b.Digest] {
				continue
			}
			written[b.Digest] = true
			if err := s.putFile(b, put); err != nil {
				return err
			}
		}
		if !written[d.Digest] {
			written[d.Digest] = true
			if err := put(blobName(d.Digest), d.Size, strings.NewReader(string(manifest))); err != nil {
				return err
			}
		}
		list = append(list, e)
	}
	return putMetadata(index, list, docker, put)
}

func putMetadata(index ocispec.Index, list []dockerEntry, docker bool, put func(string, int64, io.Reader) error) error {
	files := map[string]any{
		ocispec.ImageIndexFile:  index,
		ocispec.ImageLayoutFile: ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion},
	}
	if docker {
		files["manifest.json"] = list
	}
	var names []string
	for n := range files {
		names = append(names, n)
	}
	sort.Strings(names)
	for _, n := range names {
		data, err := marshal(files[n])
		if err != nil {
			return err
		}
		if err := put(n, int64(len(data)), strings.NewReader(string(data))); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) putFile(b blobRef, put func(string, int64, io.Reader) error) error {
	f, err := os.Open(s.blobPath(b.Digest))
	if err != nil {
		return errs.New(errs.Corrupt, "blob %s is not here; pull the image again: %w", b.Digest, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if info.Size() != b.SizeBytes {
		return errs.New(errs.Corrupt, "blob %s has %d bytes instead of %d; pull the image again", b.Digest, info.Size(), b.SizeBytes)
	}
	sum := sha256.New()
	if err := put(blobName(b.Digest), b.SizeBytes, io.TeeReader(f, sum)); err != nil {
		return err
	}
	if got := digest.NewDigest(digest.SHA256, sum); got != b.Digest {
		return errs.New(errs.Corrupt, "blob %s has changed on the disk (its digest is %s now); remove the image and pull it again", b.Digest, got)
	}
	return nil
}

// exportable returns the image's manifest and its layers' blobs, all of which are
// here: the manifest as it came if possible, else one with the blobs that are.
func (s *Store) exportable(img *imageRecord) ([]byte, []blobRef, error) {
	s.mu.Lock()
	var layers []blobRef
	same := true
	for _, l := range img.Layers {
		b := l.Blob
		if have := s.st.blobs[b.Digest]; have == nil {
			same = false
			u := s.st.layers[l.Key]
			if u == nil || s.st.blobs[u.rec.Blob.Digest] == nil {
				s.mu.Unlock()
				return nil, nil, errs.New(errs.Corrupt, "the content of layer %s is not here; pull the image again", l.DiffID)
			}
			b = u.rec.Blob
		}
		layers = append(layers, b)
	}
	s.mu.Unlock()
	if same {
		data, err := os.ReadFile(s.blobPath(img.Manifest.Digest))
		if err != nil {
			return nil, nil, errs.New(errs.Corrupt, "the image's manifest is not here; pull it again: %w", err)
		}
		return data, layers, nil
	}
	data, err := makeManifest(img.Config, layers)
	img.Manifest.MediaType = ocispec.MediaTypeImageManifest
	return data, layers, err
}
