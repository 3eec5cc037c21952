package probe

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// watched runs a Watch on a clock of its own for a minute. outcomes says what the checks
// find, the last one again and again: "." succeeds, "x" fails, "?" is unknown, "t" hangs
// until its time is over. It returns when the checks were made and what was said of them.
func watched(t *testing.T, s Schedule, since time.Duration, outcomes string, end string) (checks, said []string) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute-time.Second)
		defer cancel()
		begin := time.Now()
		at := func() string { return fmt.Sprintf("%g", time.Since(begin).Seconds()) }
		n := 0
		Watch(ctx, s, begin.Add(-since),
			func(ctx context.Context) Outcome {
				checks = append(checks, at())
				c := outcomes[min(n, len(outcomes)-1)]
				n++
				switch c {
				case 't':
					<-ctx.Done()
					return Outcome{Message: "time"}
				case '?':
					return Outcome{Unknown: true}
				}
				return Outcome{OK: c == '.', Message: fmt.Sprint("no ", n)}
			},
			func(message string) { said = append(said, at()+" failed "+message) },
			func(ok bool, message string) bool {
				said = append(said, fmt.Sprintf("%s %v", at(), ok))
				return end == "" || fmt.Sprint(ok) != end
			})
	})
	return checks, said
}

func TestWatch(t *testing.T) {
	const s = time.Second
	usual := Schedule{Period: 10 * s, Timeout: s, SuccessThreshold: 1, FailureThreshold: 3}
	with := func(change func(*Schedule)) Schedule { c := usual; change(&c); return c }
	for _, tt := range []struct {
		name     string
		s        Schedule
		since    time.Duration // that the container has run
		outcomes string
		end      string // the decision with which it ends; "": goes on
		checks   string
		said     string
	}{
		{"good", usual, 0, ".", "", "0 10 20 30 40 50", "0 true"},
		{"initial delay", with(func(c *Schedule) { c.InitialDelay = 15 * s }), 0, ".", "", "15 25 35 45 55", "15 true"},
		{"initial delay counts from the start", with(func(c *Schedule) { c.InitialDelay = 15 * s }), 10 * s, ".", "", "5 15 25 35 45 55", "5 true"},
		{"initial delay is over", with(func(c *Schedule) { c.InitialDelay = 15 * s }), time.Hour, ".", "", "0 10 20 30 40 50", "0 true"},
		{"dies at the third failure", usual, 0, ".xxx", "false", "0 10 20 30", "0 true; 10 failed no 2; 30 false"},
		{"failures that are not in a row", usual, 0, "xx.xx.", "", "0 10 20 30 40 50", "0 failed no 1; 20 true; 30 failed no 4"},
		{"one failure is enough", with(func(c *Schedule) { c.FailureThreshold = 1 }), 0, "x", "false", "0", "0 failed no 1; 0 false"},
		{"thresholds unset", Schedule{Period: 20 * s}, 0, "x.", "", "0 20 40", "0 failed no 1; 0 false; 20 true"},
		{"comes and goes", with(func(c *Schedule) { c.FailureThreshold = 2 }), 0, ".xx.", "", "0 10 20 30 40 50", "0 true; 10 failed no 2; 20 false; 30 true"},
		{"must succeed twice", with(func(c *Schedule) { c.SuccessThreshold = 2 }), 0, ".x..", "", "0 10 20 30 40 50", "10 failed no 2; 30 true"},
		{"what is unknown does not count", usual, 0, "x?x?x", "false", "0 10 20 30 40", "0 failed no 1; 40 false"},
		{"time-out", with(func(c *Schedule) { c.Timeout = 4 * s }), 0, "t", "false", "0 10 20", "4 failed time; 24 false"},
		{"time-out above the period", with(func(c *Schedule) { c.Timeout = 15 * s }), 0, "t", "false", "0 15 30", "15 failed time; 45 false"},
		{"startup", with(func(c *Schedule) { c.Eager = true }), 0, "xxxxx.", "true", "0 0.1 0.3 0.7 1.5 2.5", "0 failed no 1; 2.5 true"},
		{"eager checks take nothing of the patience", with(func(c *Schedule) { c.Period = 2 * s; c.Eager = true }), 0, "x", "false",
			"0 0.1 0.3 0.7 1.5 2 3 4", "0 failed no 1; 4 false"},
		{"eager until the first success", with(func(c *Schedule) { c.Eager = true; c.FailureThreshold = 1 }), 0, "xx.", "", "0 0.1 0.3 10 20 30 40 50", "0 failed no 1; 0 false; 0.3 true"},
		{"eager with two successes", with(func(c *Schedule) { c.Eager = true; c.SuccessThreshold = 2 }), 0, ".", "", "0 10 20 30 40 50", "10 true"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			checks, said := watched(t, tt.s, tt.since, tt.outcomes, tt.end)
			if got := strings.Join(said, "; "); got != tt.said {
				t.Errorf("said %s, want %s", got, tt.said)
			}
			if got := strings.Join(checks, " "); got != tt.checks {
				t.Errorf("checks at %s, want %s", got, tt.checks)
			}
		})
	}
}

// A watch whose context ends in the middle of a check says nothing of that check.
func TestWatchEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var said []string
		Watch(ctx, Schedule{FailureThreshold: 1, Timeout: time.Hour}, time.Now(),
			func(context.Context) Outcome { cancel(); return Outcome{} },
			func(m string) { said = append(said, m) },
			func(ok bool, m string) bool { said = append(said, m); return true })
		if len(said) > 0 {
			t.Errorf("%q", slices.Clone(said))
		}
	})
}
