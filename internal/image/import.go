package image

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/orlop-io/orlop/internal/base/ctxreader"
	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/fault"
)

// ImportOptions say how to import.
type ImportOptions struct {
	// Name is given to the image where the archive names none; an archive with
	// several images must name them itself.
	Name string
	// Platform chooses from indexes; "" is this machine's.
	Platform string
	Progress func(Progress)
}

var (
	faultSpooled      = fault.New("image.import.archive-spooled")
	faultImportedMeta = fault.New("image.import.manifest-written")
)

// Import reads an OCI archive or a docker archive (`docker save`, both forms),
// plain or compressed with gzip or zstd, from r. If it fails, nothing is left
// (of an archive with several images, those before the bad one are kept).
func (s *Store) Import(ctx context.Context, r io.Reader, o ImportOptions) ([]Image, error) {
	f, err := s.spool(ctx, r)
	if err != nil {
		return nil, errs.New(errs.KindOf(err), "import: %w", err)
	}
	faultSpooled.Hit()
	src, err := newTarSource(ctx, f, true)
	if err != nil {
		return nil, errs.New(errs.KindOf(err), "import: %w", err)
	}
	defer src.close()
	return s.importFrom(ctx, src, "the archive", o)
}

// ImportPath imports the archive file or the OCI layout directory at path.
func (s *Store) ImportPath(ctx context.Context, path string, o ImportOptions) ([]Image, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, errs.New(errs.NotFound, "import %s: there is no such file or directory", path)
	}
	if err != nil {
		return nil, errs.New(errs.Invalid, "import %s: %w", path, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		root, err := os.OpenRoot(path)
		if err != nil {
			return nil, err
		}
		src := dirSource{root}
		defer src.close()
		return s.importFrom(ctx, src, path, o)
	}
	if plainTar(f) { // read where it lies
		again, err := os.Open(path)
		if err != nil {
			return nil, err
		}
		src, err := newTarSource(ctx, again, false)
		if err != nil {
			return nil, errs.New(errs.KindOf(err), "import %s: %w", path, err)
		}
		defer src.close()
		return s.importFrom(ctx, src, path, o)
	}
	return s.Import(ctx, f, o)
}

// plainTar tells a seekable archive that is not compressed. It leaves f at its
// beginning.
func plainTar(f *os.File) bool {
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() {
		return false
	}
	magic := make([]byte, 262)
	_, _ = f.ReadAt(magic, 0)
	return string(magic[257:]) == "ustar"
}

// candidate is one image of a source.
type candidate struct {
	doc    *document
	config []byte
	names  []string // full
	open   openLayer
}

func (s *Store) importFrom(ctx context.Context, src source, what string, o ImportOptions) ([]Image, error) {
	images, err := s.importAll(ctx, src, o)
	if err != nil {
		return nil, errs.New(errs.KindOf(err), "import %s: %w", what, err)
	}
	return images, nil
}

func (s *Store) importAll(ctx context.Context, src source, o ImportOptions) ([]Image, error) {
	want, err := parsePlatform(o.Platform)
	if err != nil {
		return nil, err
	}
	found, err := candidates(ctx, src, want)
	if err != nil {
		return nil, err
	}
	if o.Name != "" {
		n, err := ParseName(o.Name)
		if err != nil {
			return nil, err
		}
		if n.Digest != "" {
			return nil, errs.New(errs.Invalid, "image name %q: a digest cannot be given as a name", o.Name)
		}
		if len(found) == 1 && len(found[0].names) == 0 {
			found[0].names = []string{n.tagged()}
		} else {
			return nil, errs.New(errs.Invalid, "it names its images itself (%d of them); import it without a name, then tag", len(found))
		}
	}
	var out []Image
	for _, c := range found {
		img, err := s.importOne(ctx, c, want, o.Progress)
		if err != nil {
			if len(c.names) > 0 {
				err = errs.New(errs.KindOf(err), "image %s: %w", c.names[0], err)
			}
			return nil, err
		}
		out = append(out, img)
	}
	return out, nil
}

func (s *Store) importOne(ctx context.Context, from candidate, want platform, progress func(Progress)) (Image, error) {
	cfg, err := parseConfig(from.config, &from.doc.manifest, want)
	if err != nil {
		return Image{}, err
	}
	c := s.newClaims()
	defer c.release()
	if _, err := c.putBlob(from.doc.mediaType, from.doc.data); err != nil {
		return Image{}, err
	}
	if _, err := c.putBlob(from.doc.manifest.Config.MediaType, from.config); err != nil {
		return Image{}, err
	}
	faultImportedMeta.Hit()
	rec := newRecord(from.doc, cfg)
	if err := s.assemble(ctx, c, &rec, from.open, progress); err != nil {
		return Image{}, err
	}
	if err := s.record(rec, from.names, rec.Manifest.Digest, nil); err != nil {
		return Image{}, err
	}
	return s.Resolve(ctx, rec.ID.String())
}

// candidates finds the images of the source for the platform.
func candidates(ctx context.Context, src source, want platform) ([]candidate, error) {
	index, ierr := readSmall(src, ocispec.ImageIndexFile, maxManifest)
	list, lerr := readSmall(src, "manifest.json", maxManifest)
	for _, err := range []error{ierr, lerr} {
		if err != nil && !errors.Is(err, errs.NotFound) {
			return nil, err
		}
	}
	switch {
	case ierr == nil:
		found, err := ociCandidates(src, index, want)
		if err != nil || lerr != nil {
			return found, err
		}
		// Some tools name images only in Docker's file.
		for _, c := range found {
			if len(c.names) > 0 {
				return found, nil
			}
		}
		if docker, err := dockerCandidates(ctx, src, list); err == nil {
			return docker, nil
		}
		return found, nil
	case lerr == nil:
		return dockerCandidates(ctx, src, list)
	}
	return nil, errs.New(errs.Invalid, "it is neither an OCI layout (no index.json) nor a docker archive (no manifest.json)")
}

func ociCandidates(src source, index []byte, want platform) ([]candidate, error) {
	doc, err := parseDocument(index, ocispec.MediaTypeImageIndex)
	if err != nil {
		return nil, errs.New(errs.KindOf(err), "index.json: %w", err)
	}
	if !doc.isIndex {
		return nil, errs.New(errs.Invalid, "index.json has no manifests in it")
	}
	if len(doc.index.Manifests) > 1000 {
		return nil, errs.New(errs.Invalid, "index.json names %d images", len(doc.index.Manifests))
	}
	var out []candidate
	byDigest := make(map[digest.Digest]int)
	var others []string
	for _, d := range doc.index.Manifests {
		if d.Platform != nil && want.fits(platform{d.Platform.OS, d.Platform.Architecture, d.Platform.Variant}) == 0 {
			others = append(others, platform{d.Platform.OS, d.Platform.Architecture, d.Platform.Variant}.String())
			continue
		}
		m, err := ociManifest(src, d, want)
		if err != nil {
			return nil, err
		}
		name, err := annotatedName(d)
		if err != nil {
			return nil, err
		}
		i, again := byDigest[m.digest()]
		if !again {
			config, err := readBlob(src, m.manifest.Config, maxConfig)
			if err != nil {
				return nil, err
			}
			i = len(out)
			byDigest[m.digest()] = i
			out = append(out, candidate{doc: m, config: config, open: func(_ context.Context, n int, _ func(progressNote)) (io.ReadCloser, error) {
				r, _, err := src.open(blobName(m.manifest.Layers[n].Digest))
				return r, err
			}})
		}
		if name != "" {
			out[i].names = append(out[i].names, name)
		}
	}
	if len(out) == 0 {
		return nil, errs.New(errs.NotFound, "there is no image for %s in it; there is: %s", want, strings.Join(others, ", "))
	}
	return out, nil
}

func blobName(d digest.Digest) string {
	return "blobs/" + d.Algorithm().String() + "/" + d.Encoded()
}

// ociManifest reads the manifest of the descriptor, through one more index if it
// is one.
func ociManifest(src source, d ocispec.Descriptor, want platform) (*document, error) {
	for range 2 {
		data, err := readBlob(src, d, maxManifest)
		if err != nil {
			return nil, err
		}
		m, err := parseDocument(data, d.MediaType)
		if err != nil {
			return nil, err
		}
		if !m.isIndex {
			return m, nil
		}
		if d, err = choose(&m.index, want); err != nil {
			return nil, err
		}
	}
	return nil, errs.New(errs.Invalid, "its indexes are nested")
}

// readBlob reads and verifies a small blob.
func readBlob(src source, d ocispec.Descriptor, limit int64) ([]byte, error) {
	if err := checkDescriptor(d, limit); err != nil {
		return nil, err
	}
	data, err := readSmall(src, blobName(d.Digest), limit)
	if err != nil {
		return nil, err
	}
	if got := digest.FromBytes(data); got != d.Digest || int64(len(data)) != d.Size {
		return nil, errs.New(errs.Corrupt, "blob %s: its content has the digest %s and %d bytes, not %d", d.Digest, got, len(data), d.Size)
	}
	return data, nil
}

// annotatedName returns the full name that the annotations of an index entry give. A
// name by digest is one if it is that of the entry.
func annotatedName(d ocispec.Descriptor) (string, error) {
	a := d.Annotations
	s := a["io.containerd.image.name"]
	if s == "" {
		// The OCI annotation is a full name with some tools and a bare tag with others.
		if s = a[ocispec.AnnotationRefName]; !strings.ContainsAny(s, "/:") {
			return "", nil
		}
	}
	n, err := ParseName(s)
	if err != nil {
		return "", err
	}
	if n.Tag == "" && n.Digest == d.Digest {
		return n.digested(n.Digest), nil
	}
	return n.tagged(), nil
}

// dockerCandidates reads what `docker save` writes: manifest.json names for each
// image its configuration and its layers by files of the archive.
func dockerCandidates(ctx context.Context, src source, list []byte) ([]candidate, error) {
	var entries []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := json.Unmarshal(list, &entries); err != nil {
		return nil, errs.New(errs.Invalid, "manifest.json is malformed: %w", err)
	}
	if len(entries) == 0 || len(entries) > 1000 {
		return nil, errs.New(errs.Invalid, "manifest.json names %d images", len(entries))
	}
	var out []candidate
	for _, e := range entries {
		config, err := readSmall(src, e.Config, maxConfig)
		if err != nil {
			return nil, errs.New(errs.KindOf(err), "manifest.json: %w", err)
		}
		var cfg ocispec.Image
		if err := json.Unmarshal(config, &cfg); err != nil {
			return nil, errs.New(errs.Invalid, "%s is malformed: %w", e.Config, err)
		}
		if len(cfg.RootFS.DiffIDs) != len(e.Layers) {
			return nil, errs.New(errs.Invalid, "manifest.json has %d layers, the image's configuration %d", len(e.Layers), len(cfg.RootFS.DiffIDs))
		}
		if len(e.Layers) > maxLayers {
			return nil, errs.New(errs.Invalid, "the image has %d layers; %d is the most", len(e.Layers), maxLayers)
		}
		var layers []blobRef
		for i, name := range e.Layers {
			b, err := dockerLayerBlob(ctx, src, name, cfg.RootFS.DiffIDs[i])
			if err != nil {
				return nil, err
			}
			layers = append(layers, b)
		}
		data, err := makeManifest(blobRef{ocispec.MediaTypeImageConfig, digest.FromBytes(config), int64(len(config))}, layers)
		if err != nil {
			return nil, err
		}
		doc, err := parseDocument(data, ocispec.MediaTypeImageManifest)
		if err != nil {
			return nil, err
		}
		c := candidate{doc: doc, config: config, open: func(_ context.Context, n int, _ func(progressNote)) (io.ReadCloser, error) {
			r, _, err := src.open(e.Layers[n])
			return r, err
		}}
		for _, t := range e.RepoTags {
			n, err := ParseName(t)
			if err != nil {
				return nil, err
			}
			c.names = append(c.names, n.tagged())
		}
		out = append(out, c)
	}
	return out, nil
}

// dockerLayerBlob describes a layer file. A plain one has its DiffID as digest,
// which is verified when it is read; a compressed one must be read to know.
func dockerLayerBlob(ctx context.Context, src source, name string, diffID digest.Digest) (blobRef, error) {
	r, size, err := src.open(name)
	if err != nil {
		return blobRef{}, errs.New(errs.KindOf(err), "manifest.json: %w", err)
	}
	defer r.Close()
	br := bufio.NewReaderSize(r, 64<<10)
	magic, _ := br.Peek(4)
	b := blobRef{ocispec.MediaTypeImageLayer, diffID, size}
	switch {
	case strings.HasPrefix(string(magic), "\x1f\x8b"):
		b.MediaType = ocispec.MediaTypeImageLayerGzip
	case string(magic) == "\x28\xb5\x2f\xfd":
		b.MediaType = ocispec.MediaTypeImageLayerZstd
	default:
		return b, nil
	}
	b.Digest, err = digest.FromReader(ctxreader.New(ctx, br))
	return b, err
}
