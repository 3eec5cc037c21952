package heap

import (
	"runtime"
	"testing"
)

func TestDue(t *testing.T) {
	var w watch
	for i, step := range []struct {
		usage
		want bool
	}{
		{usage{10 << 20, 5 << 20}, false},     // busy
		{usage{20 << 20, 5 << 20}, false},     // still
		{usage{20<<20 + 1000, 5 << 20}, true}, // quiet
		{usage{20<<20 + 2000, 1000}, false},   // given back already
		{usage{21 << 20, 1 << 20}, false},     // a little: not worth it
		{usage{21<<20 + 1000, 2 << 20}, true}, // little by little it was
		{usage{40 << 20, 9 << 20}, false},     // busy again
		{usage{40<<20 + 100_000, 9 << 20}, true},
	} {
		if got := w.due(step.usage); got != step.want {
			t.Errorf("step %d: %v", i, got)
		}
	}
}

var kept [][]byte

// What was freed shows as nothing to gain; garbage, and what is kept unused, as something.
func TestGain(t *testing.T) {
	for range 64 {
		kept = append(kept, make([]byte, 1<<20))
	}
	if u := read(); u.allocated < 64<<20 {
		t.Errorf("%d bytes were ever allocated", u.allocated)
	}
	kept = nil
	runtime.GC()
	if u := read(); u.gain < 32<<20 {
		t.Errorf("of 64 MiB of garbage %d bytes are to be gained", u.gain)
	}
	Free()
	if u := read(); u.gain >= worthBytes {
		t.Errorf("%d bytes are to be gained after all was freed", u.gain)
	}
}
