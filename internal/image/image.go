package image

import (
	"cmp"
	"context"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/fault"
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
	s.mu.Lock()
	defer s.mu.Unlock()
	r, _, err := s.find(nameOrID)
	if err != nil {
		return Image{}, err
	}
	return s.describe(r), nil
}

var idPrefix = regexp.MustCompile(`^[0-9a-f]{4,64}$`)

// find returns the image, and the name by which it was found ("" by its ID). The
// caller holds mu.
func (s *Store) find(nameOrID string) (imageRecord, string, error) {
	hex, isID := strings.CutPrefix(nameOrID, "sha256:")
	if !isID && !hexID.MatchString(hex) {
		n, err := ParseName(nameOrID)
		if err != nil {
			return imageRecord{}, "", err
		}
		full := n.tagged()
		if n.Digest != "" { // the digest says what is meant
			full = n.digested(n.Digest)
		}
		if to, ok := s.st.names[full]; ok {
			return s.st.images[to.ID], full, nil
		}
		if strings.ContainsAny(nameOrID, ":/@") {
			return imageRecord{}, "", notHere(nameOrID)
		}
	}
	if !idPrefix.MatchString(hex) {
		if isID {
			return imageRecord{}, "", errs.New(errs.Invalid, "image ID %q: it must be 4 to 64 hexadecimal digits", nameOrID)
		}
		return imageRecord{}, "", notHere(nameOrID)
	}
	var found []imageRecord
	for id, r := range s.st.images {
		if strings.HasPrefix(id.Encoded(), hex) {
			found = append(found, r)
		}
	}
	switch len(found) {
	case 0:
		return imageRecord{}, "", notHere(nameOrID)
	case 1:
		return found[0], "", nil
	}
	return imageRecord{}, "", errs.New(errs.Invalid, "image ID %q: %d images begin so; give more digits", nameOrID, len(found))
}

// List returns every image, sorted by first name, then ID.
func (s *Store) List(ctx context.Context) ([]Image, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]Image, 0, len(s.st.images))
	for _, r := range s.st.images {
		all = append(all, s.describe(r))
	}
	first := func(i Image) string {
		if len(i.Names) > 0 {
			return i.Names[0]
		}
		return "\xff" // those without a name last
	}
	slices.SortFunc(all, func(a, b Image) int {
		return cmp.Or(cmp.Compare(first(a), first(b)), cmp.Compare(a.ID, b.ID))
	})
	return all, nil
}

// Tag gives the image a further name, taking it from another image that has it.
func (s *Store) Tag(ctx context.Context, nameOrID, name string) error {
	n, err := ParseName(name)
	if err != nil {
		return err
	}
	if n.Digest != "" {
		return errs.New(errs.Invalid, "image name %q: a digest cannot be given as a name", name)
	}
	s.write.Lock()
	defer s.write.Unlock()
	s.mu.Lock()
	r, _, err := s.find(nameOrID)
	s.mu.Unlock()
	if err != nil {
		return err
	}
	to := nameRecord{ID: r.ID, Manifest: r.Manifest.Digest}
	if err := s.db.names.Put(n.tagged(), to); err != nil {
		return err
	}
	faultTagged.Hit()
	s.mu.Lock()
	s.st.names[n.tagged()] = to
	s.mu.Unlock()
	return nil
}

var faultTagged = fault.New("image.tag.recorded")

// Pin marks the image as never to be pruned, or no longer so.
func (s *Store) Pin(ctx context.Context, nameOrID string, pinned bool) error {
	s.write.Lock()
	defer s.write.Unlock()
	s.mu.Lock()
	r, _, err := s.find(nameOrID)
	s.mu.Unlock()
	if err != nil {
		return err
	}
	r.Pinned = pinned
	if err := s.db.images.Put(r.ID.String(), r); err != nil {
		return err
	}
	s.mu.Lock()
	s.st.images[r.ID] = r
	s.mu.Unlock()
	return nil
}
