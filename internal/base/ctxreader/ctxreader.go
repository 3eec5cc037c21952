// Package ctxreader ends a copy with its context, where what is read, a file, knows of none.
package ctxreader

import (
	"context"
	"io"
)

// New returns a reader of r whose Read fails with the context's cause once that has ended. A Read
// that is under way goes on.
func New(ctx context.Context, r io.Reader) io.Reader { return reader{ctx, r} }

type reader struct {
	ctx context.Context
	r   io.Reader
}

func (c reader) Read(b []byte) (int, error) {
	if err := context.Cause(c.ctx); err != nil {
		return 0, err
	}
	return c.r.Read(b)
}
