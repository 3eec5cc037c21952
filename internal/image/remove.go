package image

import (
	"context"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/orlop-io/orlop/internal/base/errs"
)

// Removed is what Remove or Prune took away.
type Removed struct {
	Untagged   []string        // names
	Images     []digest.Digest // IDs
	FreedBytes int64           // blobs and unpacked layers that nothing else needs
}

// Pruned is what Prune took away.
type Pruned = Removed

// PruneOptions say what Prune may take.
type PruneOptions struct {
	// All also takes images that have a name; otherwise only those without.
	All bool
	// InUse tells whether a container uses the image; nil: none is.
	InUse func(id digest.Digest) bool
}

// Remove takes the name away, and the image with it if that was its last one. An
// ID takes all the names of the image. An image that inUse (which may be nil)
// claims, or that is Hold'ed, keeps its last name: errs.InUse.
func (s *Store) Remove(ctx context.Context, nameOrID string, inUse func(id digest.Digest) bool) (Removed, error) {
	s.mu.Lock()
	r, name, err := s.find(nameOrID)
	if err != nil {
		s.mu.Unlock()
		return Removed{}, err
	}
	held := s.st.holds[r.ID] > 0
	names, tags := s.namesOf(r.ID)
	s.mu.Unlock()

	ch := change{names: names, images: []digest.Digest{r.ID}}
	if name != "" && !strings.Contains(name, "@") && tags > 1 {
		ch = change{names: []string{name}} // others stay
	} else if held || inUse != nil && inUse(r.ID) {
		return Removed{}, errs.New(errs.InUse, "image %q is used by a container; delete its pod first (orlop ps shows them)", nameOrID)
	}
	freed, err := s.sweep(&ch)
	if err != nil {
		return Removed{}, errs.New(errs.KindOf(err), "remove image %q: %w", nameOrID, err)
	}
	if len(ch.images)+len(ch.names) == 0 { // held since, or removed by another
		s.mu.Lock()
		_, _, err := s.find(nameOrID)
		s.mu.Unlock()
		if err != nil {
			return Removed{}, err
		}
		return Removed{}, errs.New(errs.InUse, "image %q is just being used by a container that starts", nameOrID)
	}
	return Removed{Untagged: ch.names, Images: ch.images, FreedBytes: freed}, nil
}

// namesOf returns everything that names the image, sorted, and how many of them
// are tags. The caller holds mu.
func (s *Store) namesOf(id digest.Digest) (names []string, tags int) {
	for n, to := range s.st.names {
		if to.ID == id {
			names = append(names, n)
			if !strings.Contains(n, "@") {
				tags++
			}
		}
	}
	slices.Sort(names)
	return names, tags
}

// Prune removes images that nothing uses, and all content that no image reaches.
// Pinned images stay.
func (s *Store) Prune(ctx context.Context, o PruneOptions) (Pruned, error) {
	s.mu.Lock()
	var candidates []digest.Digest
	for id, r := range s.st.images {
		_, tags := s.namesOf(id)
		if !r.Pinned && s.st.holds[id] == 0 && (o.All || tags == 0) {
			candidates = append(candidates, id)
		}
	}
	s.mu.Unlock()
	slices.Sort(candidates)
	var ch change
	for _, id := range candidates {
		if o.InUse == nil || !o.InUse(id) {
			ch.images = append(ch.images, id)
		}
	}
	freed, err := s.sweep(&ch)
	if err != nil {
		return Pruned{}, errs.New(errs.KindOf(err), "prune images: %w", err)
	}
	return Pruned{Untagged: ch.names, Images: ch.images, FreedBytes: freed}, nil
}
