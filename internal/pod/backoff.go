package pod

import (
	"fmt"
	"time"
)

// Back-off of a container that ends again and again, as Kubernetes has it.
const (
	backOffFirst = 10 * time.Second
	backOffMost  = 5 * time.Minute
	backOffReset = 10 * time.Minute
)

// retry is how often something failed, and when it may be tried again.
type retry struct {
	n    int
	next time.Time
}

// after returns the next try of something that failed at the time given: after first,
// and then twice as long each time, up to most.
func (r retry) after(failed time.Time, first, most time.Duration) retry {
	return retry{r.n + 1, failed.Add(min(most, first<<min(r.n, 20)))}
}

// afterEnd returns when a container that ended may start again: at once the first time,
// then backOffFirst after its end, twice as long each time up to backOffMost, and from
// the beginning once it has run for longer than backOffReset. Asked again of the same
// end it says the same.
func (r retry) afterEnd(started, finished time.Time) retry {
	if !r.next.IsZero() && !r.next.Before(finished) {
		return r
	}
	if finished.Sub(started) > backOffReset {
		r = retry{}
	}
	if r.n == 0 {
		return retry{1, finished}
	}
	again := retry{r.n - 1, time.Time{}}.after(finished, backOffFirst, backOffMost)
	return retry{r.n + 1, again.next}
}

// later notes a failure and returns how long to wait before the next try: first,
// then twice as long each time, up to most.
func (w *worker) later(what string, first, most time.Duration) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.tries[what] = w.tries[what].after(time.Now(), first, most)
	return time.Until(w.tries[what].next)
}

// waiting returns how long a failure before still holds back the next try.
func (w *worker) waiting(what string) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	return time.Until(w.tries[what].next)
}

func (w *worker) succeeded(what string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.tries, what)
}

// backOff returns how long to wait before the next incarnation of a container that
// has ended.
func (w *worker) backOff(c *Container, st *ContainerStatus) time.Duration {
	w.mu.Lock()
	r := w.tries["crash/"+c.Name].afterEnd(st.StartedAt, st.FinishedAt)
	w.tries["crash/"+c.Name] = r
	wait := time.Until(r.next)
	w.mu.Unlock()
	if wait > 0 && st.Reason != "CrashLoopBackOff" {
		w.note(c.Name, true, "BackOff", "back-off restarting the failed container")
		w.updateContainer(c.Name, func(s *ContainerStatus) {
			s.Last = s.termination()
			s.State, s.Reason, s.Message = Terminated, "CrashLoopBackOff", fmt.Sprintf("back-off %s restarting the failed container", wait.Round(time.Second))
		})
	}
	return wait
}
