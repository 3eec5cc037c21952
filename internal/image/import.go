package image

import (
	"context"
	"io"

	"github.com/orlop-io/orlop/internal/base/errs"
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

// Import reads an OCI archive or a docker archive (`docker save`, both forms),
// plain or compressed with gzip or zstd, from r. If it fails, nothing is left.
func (s *Store) Import(ctx context.Context, r io.Reader, o ImportOptions) ([]Image, error) {
	return nil, errs.New(errs.Unsupported, "not built yet")
}

// ImportPath imports the archive file or the OCI layout directory at path.
func (s *Store) ImportPath(ctx context.Context, path string, o ImportOptions) ([]Image, error) {
	return nil, errs.New(errs.Unsupported, "not built yet")
}
