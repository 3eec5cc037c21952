package heap

import "testing"

func TestDue(t *testing.T) {
	var w watch
	for i, step := range []struct {
		total uint64
		want  bool
	}{
		{10 << 20, false},        // busy
		{20 << 20, false},        // still
		{20<<20 + 1000, true},    // quiet
		{20<<20 + 2000, false},   // given back already
		{21 << 20, false},        // a little
		{21<<20 + 1000, false},   // not worth it
		{40 << 20, false},        // busy again
		{40<<20 + 100_000, true}, // quiet again
	} {
		if got := w.due(step.total); got != step.want {
			t.Errorf("step %d: %v", i, got)
		}
	}
	if allocated() == 0 {
		t.Error("nothing was ever allocated")
	}
}
