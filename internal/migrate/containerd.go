package migrate

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/orlop-io/orlop/internal/base/errs"
	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// containerd's directories below its root, as its plugins are called.
const (
	containerdMeta  = "io.containerd.metadata.v1.bolt/meta.db"
	containerdBlobs = "io.containerd.content.v1.content/blobs/sha256"
)

// ContainerdNamespaces are those of Kubernetes, ctr and Docker.
var ContainerdNamespaces = []string{"k8s.io", "default", "moby"}

// Containerd returns the images of containerd's store below root
// (/var/lib/containerd), of those namespaces. containerd may run or not.
//
// The metadata is a bbolt file (containerd, core/metadata/buckets.go):
// v1/<namespace>/images/<name>/target/{digest,mediatype,size}.
func Containerd(ctx context.Context, root string, namespaces []string) ([]Image, error) {
	path := filepath.Join(root, containerdMeta)
	db, done, err := openBolt(path)
	if err != nil {
		return nil, err
	}
	defer done()
	targets := make(map[digest.Digest]*Image)
	err = db.View(func(tx *bolt.Tx) error {
		v1 := tx.Bucket([]byte("v1"))
		if v1 == nil {
			return errs.New(errs.Unsupported, "%s has no bucket v1: it is of an unknown version of containerd", path)
		}
		for _, ns := range namespaces {
			b := v1.Bucket([]byte(ns))
			if b == nil {
				continue
			}
			images := b.Bucket([]byte("images"))
			if images == nil {
				continue
			}
			err := images.ForEachBucket(func(name []byte) error {
				target := images.Bucket(name).Bucket([]byte("target"))
				if target == nil {
					return nil
				}
				d := ocispec.Descriptor{MediaType: string(target.Get([]byte("mediatype"))), Digest: digest.Digest(target.Get([]byte("digest")))}
				d.Size, _ = binary.Varint(target.Get([]byte("size")))
				if !isSHA256(d.Digest) {
					return nil
				}
				img := targets[d.Digest]
				if img == nil {
					img = &Image{Digest: d.Digest, top: d}
					targets[d.Digest] = img
				}
				if n := string(name); validName(n) && !slices.Contains(img.Names, n) {
					img.Names = append(img.Names, n)
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	var out []Image
	for _, img := range targets {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		slices.Sort(img.Names)
		s := contentStore(filepath.Join(root, containerdBlobs))
		img.Missing = s.collect(img)
		out = append(out, *img)
	}
	slices.SortFunc(out, func(a, b Image) int { return strings.Compare(a.String(), b.String()) })
	return out, nil
}

// openBolt opens the file read-only. Where its owner runs and has it locked, a copy
// is opened, which is taken again if it was changed meanwhile.
func openBolt(path string) (*bolt.DB, func(), error) {
	if _, err := os.Stat(path); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, nil, errs.New(errs.NotFound, "there is no %s; if containerd has its images elsewhere, name its directory with --root", path)
		}
		return nil, nil, errs.New(errs.PermissionDenied, "%w", err)
	}
	o := &bolt.Options{ReadOnly: true, Timeout: 200 * time.Millisecond}
	db, err := bolt.Open(path, 0, o)
	if err == nil {
		return db, func() { db.Close() }, nil
	}
	if !errors.Is(err, bolterrors.ErrTimeout) {
		return nil, nil, errs.New(errs.Corrupt, "%s: %w", path, err)
	}
	dir, err := os.MkdirTemp("", "orlop-migrate-")
	if err != nil {
		return nil, nil, err
	}
	for range 10 {
		if db, err = openCopy(path, filepath.Join(dir, "meta.db"), o); err == nil {
			return db, func() { db.Close(); os.RemoveAll(dir) }, nil
		}
	}
	os.RemoveAll(dir)
	return nil, nil, errs.New(errs.Unavailable, "%s changes while it is read; stop containerd, or what pulls images by it: %w", path, err)
}

// openCopy copies the file and opens the copy if it is one state of it.
func openCopy(path, to string, o *bolt.Options) (*bolt.DB, error) {
	before, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	in, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	_, err = io.Copy(out, in)
	if err = errors.Join(err, out.Close()); err != nil {
		return nil, err
	}
	after, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !after.ModTime().Equal(before.ModTime()) || after.Size() != before.Size() {
		return nil, errs.New(errs.Unavailable, "it was written to")
	}
	db, err := bolt.Open(to, 0, o)
	if err != nil {
		return nil, err
	}
	// Writes by mmap do not show in the times: what the copy says must hold together.
	err = db.View(func(tx *bolt.Tx) error {
		var first error
		for err := range tx.Check() {
			if first == nil {
				first = err
			}
		}
		return first
	})
	if err != nil {
		db.Close()
		return nil, err
	}
	return db, nil
}

// contentStore is a directory of blobs by their sha256.
type contentStore string

// file returns the blob as it lies there; errs.NotFound if it does not.
func (s contentStore) file(d ocispec.Descriptor) (blob, error) {
	if !isSHA256(d.Digest) {
		return blob{}, errs.New(errs.Invalid, "%q is no sha256 digest", d.Digest)
	}
	path := filepath.Join(string(s), d.Digest.Encoded())
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return blob{}, errs.New(errs.NotFound, "there is no blob %s", d.Digest)
	}
	if err != nil {
		return blob{}, err
	}
	if !info.Mode().IsRegular() || info.Size() != d.Size {
		return blob{}, errs.New(errs.Corrupt, "blob %s has %d bytes, not %d", d.Digest, info.Size(), d.Size)
	}
	return blob{d, func(ctx context.Context, w io.Writer) error {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		n, err := io.Copy(w, io.LimitReader(f, d.Size))
		if err == nil && n != d.Size {
			err = errs.New(errs.Corrupt, "it has %d bytes, not %d", n, d.Size)
		}
		return err
	}}, nil
}

// document reads a manifest or an index.
func (s contentStore) document(d ocispec.Descriptor, v any) (blob, error) {
	b, err := s.file(d)
	if err != nil {
		return b, err
	}
	if d.Size > maxDocument {
		return b, errs.New(errs.Invalid, "%s is larger than %d bytes", d.Digest, maxDocument)
	}
	data, err := os.ReadFile(filepath.Join(string(s), d.Digest.Encoded()))
	if err != nil {
		return b, err
	}
	return b, parseJSON(d.Digest.String(), data, v)
}

// collect finds the blobs of the image for this machine's platform.
func (s contentStore) collect(img *Image) error {
	var top struct {
		ocispec.Manifest
		Manifests []ocispec.Descriptor `json:"manifests"`
	}
	b, err := s.document(img.top, &top)
	if err != nil {
		return err
	}
	img.add(b)
	if top.Manifests == nil {
		return s.manifest(img, top.Manifest)
	}
	var last error = errs.New(errs.NotFound, "it has no image for linux/%s", runtime.GOARCH)
	found := false
	for _, d := range top.Manifests {
		if p := d.Platform; p != nil && (p.OS != "linux" || p.Architecture != runtime.GOARCH) {
			continue
		}
		var m ocispec.Manifest
		b, err := s.document(d, &m)
		if errors.Is(err, errs.NotFound) { // another platform's, which was not pulled
			if d.Platform != nil {
				last = err
			}
			continue
		}
		if err != nil {
			return err
		}
		one := *img
		one.blobs = slices.Clone(img.blobs)
		one.add(b)
		if err := s.manifest(&one, m); err != nil {
			last = err
			continue
		}
		img.blobs, img.SizeBytes, found = one.blobs, one.SizeBytes, true
	}
	if !found {
		return last
	}
	return nil
}

// manifest adds what a manifest names.
func (s contentStore) manifest(img *Image, m ocispec.Manifest) error {
	b, err := s.file(m.Config)
	if err != nil {
		return fmt.Errorf("its configuration: %w", err)
	}
	img.add(b)
	missing := 0
	for _, l := range m.Layers {
		b, err := s.file(l)
		if errors.Is(err, errs.NotFound) {
			missing++
			continue
		}
		if err != nil {
			return err
		}
		img.add(b)
	}
	if missing > 0 {
		return errs.New(errs.NotFound, "%d of its %d layers are not kept as they were pulled (discard_unpacked_layers in containerd's configuration); pull it again", missing, len(m.Layers))
	}
	return nil
}
