package image

import (
	"context"

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
	return Removed{}, errs.New(errs.Unsupported, "not built yet")
}

// Prune removes images that nothing uses, and all content that no image reaches.
func (s *Store) Prune(ctx context.Context, o PruneOptions) (Pruned, error) {
	return Pruned{}, errs.New(errs.Unsupported, "not built yet")
}
