package container

import (
	"context"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// Start has the container's process execute the program.
func (c *Container) Start(ctx context.Context) error {
	if c.proc != nil {
		return c.proc.Start(ctx)
	}
	return errs.New(errs.Unsupported, "start from another process")
}
