package migrate

import (
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/vbatts/tar-split/tar/asm"
	"github.com/vbatts/tar-split/tar/storage"

	"github.com/orlop-io/orlop/internal/base/ctxreader"
	"github.com/orlop-io/orlop/internal/base/errs"
)

// CRIO returns the images of the store that CRI-O and podman share, below root
// (/var/lib/containers/storage), of its overlay driver.
//
// Layers lie there unpacked (containers/storage, docs/containers-storage.md):
// overlay/<layer>/diff are the files, overlay-layers/<layer>.tar-split.gz what the
// tar archive had between them. Together they give the archive back, bit by bit, so
// the images keep their IDs; compressed, as the registry has it, it is not there
// any more: manifests are made anew, and names by digest cannot be kept.
func CRIO(ctx context.Context, root string) ([]Image, error) {
	s := &layerStore{root: root, layers: make(map[string]storedLayer)}
	var layers []storedLayer
	for _, name := range []string{"layers.json", "volatile-layers.json"} {
		if err := s.read(filepath.Join("overlay-layers", name), &layers); err != nil && !(name != "layers.json" && errors.Is(err, errs.NotFound)) {
			return nil, err
		}
		for _, l := range layers {
			s.layers[l.ID] = l
		}
		layers = nil
	}
	var images []storedImage
	if err := s.read("overlay-images/images.json", &images); err != nil {
		return nil, err
	}
	var out []Image
	for _, i := range images {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		img := Image{Digest: digest.Digest("sha256:" + i.ID)}
		byDigest := 0
		for _, n := range i.Names {
			switch {
			case strings.Contains(n, "@"):
				byDigest++
			case validName(n):
				img.Names = append(img.Names, n)
			}
		}
		slices.Sort(img.Names)
		if img.Missing = s.collect(&img, i); img.Missing == nil && len(img.Names) == 0 && byDigest > 0 {
			img.Names = []string{i.Names[0]}
			img.Missing = errs.New(errs.Unsupported, "it is named by digest alone, and what has that digest is not kept; pull it again")
		}
		out = append(out, img)
	}
	slices.SortFunc(out, func(a, b Image) int { return strings.Compare(a.String(), b.String()) })
	return out, nil
}

// storedImage is an entry of images.json.
type storedImage struct {
	ID    string   `json:"id"`
	Names []string `json:"names"`
	Layer string   `json:"layer"` // the top one
}

// storedLayer is an entry of layers.json.
type storedLayer struct {
	ID     string        `json:"id"`
	Parent string        `json:"parent"`
	DiffID digest.Digest `json:"diff-digest"`
	Size   int64         `json:"diff-size"`
}

type layerStore struct {
	root   string
	layers map[string]storedLayer
}

// read decodes a file of the store.
func (s *layerStore) read(name string, v any) error {
	path := filepath.Join(s.root, name)
	data, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return errs.New(errs.NotFound, "there is no %s; if the store is elsewhere (podman info shows it), name its directory with --root; drivers other than overlay are not read", path)
	}
	if err != nil {
		return errs.New(errs.PermissionDenied, "%w", err)
	}
	return parseJSON(path, data, v)
}

// bigData is the file of an image's data of that name.
func bigData(name string) string {
	if strings.ContainsFunc(name, func(r rune) bool { return !(r == '.' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z') }) {
		return "=" + base64.StdEncoding.EncodeToString([]byte(name))
	}
	return name
}

// storeID tells names of layers and images, which are used in paths.
func storeID(s string) bool {
	return len(s) == 64 && !strings.ContainsFunc(s, func(r rune) bool { return !(r >= '0' && r <= '9' || r >= 'a' && r <= 'f') })
}

// collect finds the configuration and the layers of the image.
func (s *layerStore) collect(img *Image, i storedImage) error {
	if !storeID(i.ID) {
		return errs.New(errs.Invalid, "%q is no image ID", i.ID)
	}
	// The ID is the digest of the configuration, which is kept under it.
	path := filepath.Join(s.root, "overlay-images", i.ID, bigData("sha256:"+i.ID))
	config, err := os.ReadFile(path)
	if err != nil {
		return errs.New(errs.Unsupported, "its configuration is not kept (an image of Docker's first manifests?): %w", err)
	}
	if digest.FromBytes(config) != img.Digest {
		return errs.New(errs.Corrupt, "its configuration has another digest than its ID")
	}
	var c ocispec.Image
	if err := parseJSON(path, config, &c); err != nil {
		return err
	}
	var chain []storedLayer
	for id := i.Layer; id != ""; id = s.layers[id].Parent {
		l, ok := s.layers[id]
		if !ok || !storeID(l.ID) || len(chain) > len(c.RootFS.DiffIDs) {
			return errs.New(errs.Corrupt, "its layer %s is not in the store", id)
		}
		chain = append(chain, l)
	}
	slices.Reverse(chain)
	if len(chain) != len(c.RootFS.DiffIDs) {
		return errs.New(errs.Corrupt, "it has %d layers, its configuration %d", len(chain), len(c.RootFS.DiffIDs))
	}
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Layers: []ocispec.Descriptor{}}
	cb := bytesBlob(ocispec.MediaTypeImageConfig, config)
	m.Config = cb.Descriptor
	var layers []blob
	for n, l := range chain {
		if l.DiffID != c.RootFS.DiffIDs[n] || !isSHA256(l.DiffID) {
			return errs.New(errs.Corrupt, "layer %s is not the one that its configuration names", l.ID)
		}
		if _, err := os.Stat(s.split(l)); err != nil {
			return errs.New(errs.Unsupported, "layer %s cannot be put together again (a partly pulled one, or one of a build?); pull or build it again: %w", l.ID, err)
		}
		b := blob{ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: l.DiffID, Size: l.Size}, func(ctx context.Context, w io.Writer) error { return s.layer(ctx, l, w) }}
		layers = append(layers, b)
		m.Layers = append(m.Layers, b.Descriptor)
	}
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	mb := bytesBlob(ocispec.MediaTypeImageManifest, data)
	img.top = mb.Descriptor
	for _, b := range append([]blob{mb, cb}, layers...) {
		img.add(b)
	}
	return nil
}

func (s *layerStore) split(l storedLayer) string {
	return filepath.Join(s.root, "overlay-layers", l.ID+".tar-split.gz")
}

// layer writes the layer's tar archive.
func (s *layerStore) layer(ctx context.Context, l storedLayer, w io.Writer) error {
	f, err := os.Open(s.split(l))
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return errs.New(errs.Corrupt, "%s: %w", s.split(l), err)
	}
	root, err := os.OpenRoot(filepath.Join(s.root, "overlay", l.ID, "diff"))
	if err != nil {
		return err
	}
	defer root.Close()
	tar := asm.NewOutputTarStream(filesOf{root}, storage.NewJSONUnpacker(z))
	defer tar.Close()
	n, err := io.Copy(w, io.LimitReader(ctxreader.New(ctx, tar), l.Size))
	if err != nil {
		return errs.New(errs.Corrupt, "layer %s: %w", l.ID, err)
	}
	if n != l.Size {
		return errs.New(errs.Corrupt, "layer %s has %d bytes, not %d", l.ID, n, l.Size)
	}
	if n, _ := io.Copy(io.Discard, io.LimitReader(tar, 1)); n > 0 {
		return errs.New(errs.Corrupt, "layer %s has more than %d bytes", l.ID, l.Size)
	}
	return nil
}

// filesOf gives the files of a layer, and nothing outside of its directory.
type filesOf struct{ root *os.Root }

// Get implements storage.FileGetter.
func (f filesOf) Get(name string) (io.ReadCloser, error) {
	name = strings.TrimPrefix(filepath.Clean("/"+name), "/")
	info, err := f.root.Lstat(name)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file", name)
	}
	return f.root.Open(name)
}
