package ctxreader

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
)

func TestReader(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	r := New(ctx, strings.NewReader("abcdef"))
	b := make([]byte, 3)
	if n, err := io.ReadFull(r, b); err != nil || string(b) != "abc" {
		t.Errorf("%d %q %v", n, b, err)
	}
	why := errors.New("enough")
	cancel(why)
	if n, err := r.Read(b); n != 0 || !errors.Is(err, why) {
		t.Errorf("after the context has ended: %d, %v", n, err)
	}
}
