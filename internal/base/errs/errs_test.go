package errs

import (
	"context"
	"errors"
	"fmt"
	"testing"
)

func TestKinds(t *testing.T) {
	base := New(NotFound, "image %q", "a")
	wrapped := fmt.Errorf("start pod: %w", base)
	for _, tt := range []struct {
		err  error
		want *Kind
	}{
		{nil, nil},
		{base, NotFound},
		{wrapped, NotFound},
		{New(Unavailable, "pull: %w", base), Unavailable},
		{As(InUse, base), InUse},
		{errors.Join(errors.New("x"), base), NotFound},
		{context.Canceled, Canceled},
		{fmt.Errorf("x: %w", context.DeadlineExceeded), Timeout},
		{errors.New("x"), Internal},
		{Invalid, Invalid},
	} {
		if got := KindOf(tt.err); got != tt.want {
			t.Errorf("KindOf(%v) = %v, want %v", tt.err, got, tt.want)
		}
	}
	if !errors.Is(wrapped, NotFound) || errors.Is(wrapped, Invalid) {
		t.Error("errors.Is does not follow the kind through a wrap")
	}
	if As(NotFound, nil) != nil {
		t.Error("As of nil is not nil")
	}
	for _, k := range kinds {
		if ParseKind(k.Error()) != k {
			t.Errorf("ParseKind(%q) is not the kind", k)
		}
	}
}
