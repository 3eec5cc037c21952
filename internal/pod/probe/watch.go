package probe

import (
	"context"
	"time"
)

// Schedule says when a check is made, and how many outcomes in a row count
// (Kubernetes' Probe).
type Schedule struct {
	InitialDelay     time.Duration // from the container's start to the first check
	Period           time.Duration // between the beginnings of two checks
	Timeout          time.Duration // of one check
	SuccessThreshold int           // below 1 is 1
	FailureThreshold int           // below 1 is 1
	// Eager checks more often than each period until the first success, so that what
	// begins well is known to soon. Such a check more counts only if it succeeds: the
	// patience of FailureThreshold periods stays what it is. Kubernetes allows it
	// ("may be executed at times other than the configured periodSeconds interval").
	Eager bool
}

// The shortest time between two checks, and the longest between two eager ones.
const (
	minPeriod = 100 * time.Millisecond
	maxEager  = time.Second
)

// Outcome is what one check has found.
type Outcome struct {
	OK      bool
	Message string // why not
	// Unknown: the check could not be made, by no fault of what is checked. It counts
	// for nothing.
	Unknown bool
}

// Watch makes the check on schedule, the delay being counted from started, until ctx
// ends or decided returns false.
//
// failed is called for the first of failures in a row. decided is called when as many
// outcomes in a row as the threshold says have agreed, and again only once as many have
// agreed on the opposite. All calls come from the calling goroutine.
func Watch(ctx context.Context, s Schedule, started time.Time, check func(context.Context) Outcome, failed func(message string), decided func(ok bool, message string) bool) {
	period := max(s.Period, minPeriod)
	due := started.Add(s.InitialDelay) // of the next check that counts in any case
	if now := time.Now(); due.Before(now) {
		due = now
	}
	eager, step := time.Time{}, minPeriod // of the next one before it
	succeeded, failures := 0, 0
	var last *bool
	ever := false // succeeded
	for {
		next, extra := due, false
		if s.Eager && !ever && s.SuccessThreshold <= 1 && !eager.IsZero() && eager.Before(due) {
			next, extra = eager, true
		}
		if !sleep(ctx, time.Until(next)) {
			return
		}
		begun := time.Now()
		if !extra {
			due = begun.Add(period)
		}
		once, cancel := context.WithTimeout(ctx, max(s.Timeout, minPeriod))
		o := check(once)
		cancel()
		if ctx.Err() != nil {
			return
		}
		eager, step = time.Now().Add(step), min(2*step, maxEager)
		var decision bool
		switch {
		case o.Unknown || extra && !o.OK:
			continue
		case o.OK:
			if succeeded, failures = succeeded+1, 0; succeeded < s.SuccessThreshold {
				continue
			}
			decision, ever = true, true
		default:
			if succeeded, failures = 0, failures+1; failures == 1 {
				failed(o.Message)
			}
			if failures < s.FailureThreshold {
				continue
			}
		}
		if last != nil && *last == decision {
			continue
		}
		if last = &decision; !decided(decision, o.Message) {
			return
		}
	}
}

// sleep returns false if ctx ends first.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
