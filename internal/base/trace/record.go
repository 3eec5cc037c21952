package trace

import (
	"context"
	"sync"
	"time"
	"unicode/utf8"
)

const (
	// maxTimings bounds what one request records; further spans are left out.
	maxTimings = 64
	// maxText bounds an error and the value of an attribute, in bytes.
	maxText = 256
)

// Timing is a span that has ended, or that was under way when the Recorder was read. It
// travels as JSON in the keeper's protocol.
type Timing struct {
	Name string `json:"n"`
	// Parent is the index of the span above in the list; the first has -1.
	Parent int `json:"p"`
	// Begin and End are nanoseconds since 1970.
	Begin int64             `json:"b"`
	End   int64             `json:"e"`
	Attrs map[string]string `json:"a,omitempty"`
	Err   string            `json:"err,omitempty"`
}

// Recorder collects the spans of one request for the process that has asked for it.
type Recorder struct {
	mu      sync.Mutex
	parent  Parent
	timings []Timing
}

// Record returns a context in which spans are recorded, below one of this name, and what
// records them: nil where the parent names no span that is sampled.
func Record(ctx context.Context, name string, parent Parent) (context.Context, *Recorder) {
	if id, ok := parent.Decode(); !ok || !id.Sampled {
		return ctx, nil
	}
	r := &Recorder{parent: parent}
	ctx, _ = with(ctx, r.start(name, -1, time.Now()))
	return ctx, r
}

// Timings ends what is under way, the first span with err, and returns all, those above
// before those below.
func (r *Recorder) Timings(err error) []Timing {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil && len(r.timings) > 0 {
		r.timings[0].Err = cut(err.Error())
	}
	now := time.Now().UnixNano()
	for i := range r.timings {
		if r.timings[i].End == 0 {
			r.timings[i].End = now
		}
	}
	list := r.timings
	r.timings = nil // what comes later is nobody's
	return list
}

func (r *Recorder) start(name string, parent int, at time.Time) Backend {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.timings == nil && parent >= 0 || len(r.timings) >= maxTimings {
		return recorded{r, -1}
	}
	r.timings = append(r.timings, Timing{Name: name, Parent: parent, Begin: at.UnixNano()})
	return recorded{r, len(r.timings) - 1}
}

// recorded is one span of a recorder; i is negative where there was no room for it.
type recorded struct {
	r *Recorder
	i int
}

func (s recorded) change(fn func(*Timing)) {
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	if s.i >= 0 && s.i < len(s.r.timings) {
		fn(&s.r.timings[s.i])
	}
}

func (s recorded) Start(name string, at time.Time) Backend {
	if s.i < 0 {
		return s
	}
	return s.r.start(name, s.i, at)
}

func (s recorded) Set(key, value string) {
	s.change(func(t *Timing) {
		if t.Attrs == nil {
			t.Attrs = make(map[string]string)
		}
		t.Attrs[key] = cut(value)
	})
}

func (s recorded) End(at time.Time, err error) {
	s.change(func(t *Timing) {
		t.End = at.UnixNano()
		if err != nil {
			t.Err = cut(err.Error())
		}
	})
}

func (s recorded) Parent() Parent { return s.r.parent }

// cut shortens a text, to whole characters.
func cut(s string) string {
	if len(s) <= maxText {
		return s
	}
	n := maxText
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}

// failure is the error of a span that was recorded elsewhere.
type failure string

func (f failure) Error() string { return string(f) }

// Replay makes spans below this one of what another process has recorded. Those of an
// impossible shape are left out, with what is below them.
func (s *Span) Replay(list []Timing) {
	if s == nil {
		return
	}
	made := make([]Backend, len(list))
	for i, t := range list[:min(len(list), maxTimings)] {
		above := s.to
		if t.Parent != -1 {
			if t.Parent < 0 || t.Parent >= i || made[t.Parent] == nil {
				continue
			}
			above = made[t.Parent]
		}
		if t.End < t.Begin {
			continue
		}
		made[i] = above.Start(t.Name, time.Unix(0, t.Begin))
		for k, v := range t.Attrs {
			made[i].Set(k, v)
		}
	}
	for i, b := range made {
		if b == nil {
			continue
		}
		var err error
		if list[i].Err != "" {
			err = failure(list[i].Err)
		}
		b.End(time.Unix(0, list[i].End), err)
	}
}
