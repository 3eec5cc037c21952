package image

import (
	"context"
	"io"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// Format is an archive format.
type Format string

const (
	// OCIArchive is a tar of an OCI image layout.
	OCIArchive Format = "oci-archive"
	// DockerArchive is what `docker load` of every version reads. It is an OCI
	// layout at the same time.
	DockerArchive Format = "docker-archive"
	// OCILayout is a directory (ExportDir).
	OCILayout Format = "oci-layout"
)

// Export writes the images as one archive. The same images give the same bytes.
func (s *Store) Export(ctx context.Context, namesOrIDs []string, w io.Writer, f Format) error {
	return errs.New(errs.Unsupported, "not built yet")
}

// ExportDir writes the images as an OCI layout into the directory, which is made
// and must be empty if it exists.
func (s *Store) ExportDir(ctx context.Context, namesOrIDs []string, dir string) error {
	return errs.New(errs.Unsupported, "not built yet")
}
