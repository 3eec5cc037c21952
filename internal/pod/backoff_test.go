package pod

import (
	"testing"
	"time"
)

// A container that always runs as long before it ends.
func TestBackOff(t *testing.T) {
	const s, m = time.Second, time.Minute
	for _, tt := range []struct {
		name string
		runs []time.Duration
		want []time.Duration // between the end and the next start
	}{
		{"ends at once", []time.Duration{0, 0, 0, 0, 0, 0, 0, 0, 0}, []time.Duration{0, 10 * s, 20 * s, 40 * s, 80 * s, 160 * s, 5 * m, 5 * m, 5 * m}},
		{"runs a while", []time.Duration{9 * m, 9 * m, 10 * m, 9 * m}, []time.Duration{0, 10 * s, 20 * s, 40 * s}},
		{"runs long", []time.Duration{0, 0, 0, 11 * m, 0, 0}, []time.Duration{0, 10 * s, 20 * s, 0, 10 * s, 20 * s}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			now, r := time.Unix(1e9, 0), retry{}
			for i, run := range tt.runs {
				end := now.Add(run)
				r = r.afterEnd(now, end)
				if got := r.next.Sub(end); got != tt.want[i] {
					t.Errorf("after end %d it waits %s, want %s", i+1, got, tt.want[i])
				}
				if again := r.afterEnd(now, end); again != r {
					t.Errorf("asked again of end %d: %v, was %v", i+1, again, r)
				}
				now = r.next.Add(time.Millisecond) // never at the very moment
			}
		})
	}
}

func TestRetryAfter(t *testing.T) {
	now, r := time.Unix(1e9, 0), retry{}
	for i, want := range []time.Duration{2, 4, 8, 16, 30, 30} {
		if r = r.after(now, 2*time.Second, 30*time.Second); r.next.Sub(now) != want*time.Second {
			t.Errorf("failure %d: %s", i+1, r.next.Sub(now))
		}
	}
	for range 100 { // the shift must not overflow
		r = r.after(now, time.Second, time.Hour)
	}
	if r.next.Sub(now) != time.Hour {
		t.Error(r.next.Sub(now))
	}
}
