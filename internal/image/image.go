package image

import (
	"context"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/orlop-io/orlop/internal/base/errs"
)

// Image is one image of the store.
type Image struct {
	// ID is the digest of the image's configuration, as with Docker and CRI.
	ID digest.Digest
	// Names are its tags in full (docker.io/library/busybox:1.37), sorted.
	Names []string
	// Digests are repository@digest references that it was pulled by, sorted. The
	// digest is that of the index where the registry answered with one.
	Digests []string
	// Manifest is the digest of the image manifest.
	Manifest digest.Digest
	// SizeBytes is what its compressed layers, manifest and configuration take.
	SizeBytes int64
	// UnpackedBytes is the size of the files of its layers.
	UnpackedBytes int64
	// Created is when the image was built; zero if it does not say.
	Created time.Time
	// Platform is os/architecture[/variant].
	Platform string
	// Config is how a container of the image runs by default.
	Config ocispec.ImageConfig
	// Labels are Config.Labels.
	Labels map[string]string
	// Layers are the DiffIDs, lowest first.
	Layers []digest.Digest
	// Pinned images are never pruned.
	Pinned bool
	// Unpacked tells that every layer is ready to be mounted.
	Unpacked bool
}

// Resolve returns the image of a name ("busybox", "ghcr.io/a/b:1",
// "a/b@sha256:…"), an ID ("sha256:…" or its 64 digits) or an unambiguous beginning
// of an ID (at least 4 digits). A name wins over a beginning.
func (s *Store) Resolve(ctx context.Context, nameOrID string) (Image, error) {
	return Image{}, errs.New(errs.Unsupported, "not built yet")
}

// List returns every image, sorted by first name, then ID.
func (s *Store) List(ctx context.Context) ([]Image, error) {
	return nil, errs.New(errs.Unsupported, "not built yet")
}

// Tag gives the image a further name, taking it from another image that has it.
func (s *Store) Tag(ctx context.Context, nameOrID, name string) error {
	return errs.New(errs.Unsupported, "not built yet")
}
