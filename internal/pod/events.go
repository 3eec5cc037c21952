package pod

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/orlop-io/orlop/internal/base/store"
)

// maxEvents is how many are kept.
const maxEvents = 1000

// events is a ring of what happened, kept over restarts of the daemon in the
// volatile state, that can be watched.
type events struct {
	bucket store.Bucket[Event]

	mu      sync.Mutex
	ring    []Event // oldest first
	next    uint64
	changed chan struct{} // closed, and made anew, when something is added
}

func openEvents(db *store.DB) (*events, error) {
	e := &events{changed: make(chan struct{})}
	var err error
	if e.bucket, err = store.NewBucket[Event](db, "pod.events"); err != nil {
		return nil, err
	}
	all, err := e.bucket.All()
	if err != nil {
		return nil, err
	}
	for n := uint64(0); len(e.ring) < len(all); n++ {
		if len(e.ring) == 0 { // the keys are a run of numbers; find its beginning
			n = ^uint64(0)
			for _, ev := range all {
				n = min(n, ev.Seq)
			}
		}
		if ev, ok := all[key(n)]; ok {
			e.ring = append(e.ring, ev)
			e.next = n + 1
		} else if n > e.next+maxEvents {
			break
		}
	}
	return e, nil
}

func key(seq uint64) string { return fmt.Sprintf("%020d", seq) }

// add records an event. One that says the same as the last of its pod is counted.
func (e *events) add(ev Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	ev.At, ev.Count = time.Now(), 1
	for i := len(e.ring) - 1; i >= 0; i-- {
		old := &e.ring[i]
		if old.PodID != ev.PodID {
			continue
		}
		if old.Reason == ev.Reason && old.Message == ev.Message && old.Container == ev.Container {
			ev.Count = old.Count + 1
			e.bucket.Delete(key(old.Seq))
			e.ring = append(e.ring[:i], e.ring[i+1:]...)
		}
		break
	}
	ev.Seq = e.next
	e.next++
	e.ring = append(e.ring, ev)
	e.bucket.Put(key(ev.Seq), ev) // losing one is no harm
	if len(e.ring) > maxEvents {
		e.bucket.Delete(key(e.ring[0].Seq))
		e.ring = e.ring[1:]
	}
	close(e.changed)
	e.changed = make(chan struct{})
}

// after returns the events from seq on, and what is closed when there are more.
func (e *events) after(seq uint64) (list []Event, next uint64, more <-chan struct{}) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, ev := range e.ring {
		if ev.Seq >= seq {
			list = append(list, ev)
		}
	}
	return list, e.next, e.changed
}

// Note records an event of the node itself, which belongs to no pod and is shown in
// every namespace.
func (p *Pods) Note(warning bool, reason, message string) {
	p.events.add(Event{Warning: warning, Reason: reason, Message: message})
}

// Events calls fn for every event that the filter lets through, oldest first, and
// with Watch goes on until ctx ends or fn returns an error, which is returned.
func (p *Pods) Events(ctx context.Context, f EventFilter, fn func(Event) error) error {
	seq := uint64(0)
	for {
		list, next, more := p.events.after(seq)
		for _, ev := range list {
			if f.Namespace != "" && ev.Pod != (Key{}) && ev.Pod.Namespace != f.Namespace || f.Pod != "" && ev.Pod.Name != f.Pod || ev.At.Before(f.Since) {
				continue
			}
			if err := fn(ev); err != nil {
				return err
			}
		}
		if seq = next; !f.Watch {
			return nil
		}
		select {
		case <-more:
		case <-ctx.Done():
			return nil
		case <-p.stopped():
			return nil
		}
	}
}

func (p *Pods) stopped() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ctx == nil {
		return nil
	}
	return p.ctx.Done()
}
