package image

import (
	"context"
	"sync"
)

// flights are the pieces of work on layers that are under way, by name: who wants
// the same joins it. Work goes on as long as somebody waits for it, not just the
// one who began it.
type flights struct {
	mu sync.Mutex
	by map[string]*flight
}

type flight struct {
	fs     *flights
	name   string
	cancel context.CancelFunc
	done   chan struct{}
	claims *claims // of what it made; released when the last one has left

	mu        sync.Mutex
	waiters   int                          // guarded by flights.mu
	listeners map[*byte]func(progressNote) // of those who wait; guarded by mu
	last      progressNote

	// Set before done is closed.
	out layerOut
	err error
}

type progressNote struct {
	done  int64
	state ProgressState
}

// note tells everybody who waits.
func (f *flight) note(p progressNote) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if p.state == ProgressRetrying {
		p.done = f.last.done // it goes on from there
	}
	f.last = p
	for _, fn := range f.listeners {
		fn(p)
	}
}

// join waits for the work of that name, beginning it by run if nobody has. On
// success, use is called while everything that the work made is still claimed.
func (s *Store) join(ctx context.Context, name string, listen func(progressNote), run func(context.Context, *flight) (layerOut, error), use func(layerOut) error) error {
	fs := &s.flights
	fs.mu.Lock()
	f := fs.by[name]
	if f == nil {
		fctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
		f = &flight{fs: fs, name: name, cancel: cancel, done: make(chan struct{}), claims: s.newClaims()}
		if fs.by == nil {
			fs.by = make(map[string]*flight)
		}
		fs.by[name] = f
		go func() {
			f.out, f.err = run(fctx, f)
			cancel()
			fs.mu.Lock()
			if fs.by[name] == f {
				delete(fs.by, name)
			}
			fs.mu.Unlock()
			close(f.done)
		}()
	}
	f.waiters++
	fs.mu.Unlock()
	me := new(byte)
	if listen != nil {
		f.mu.Lock()
		if f.listeners == nil {
			f.listeners = make(map[*byte]func(progressNote))
		}
		f.listeners[me] = listen
		if f.last.state != "" {
			listen(f.last)
		}
		f.mu.Unlock()
	}
	defer f.leave(me)
	select {
	case <-f.done:
	case <-ctx.Done():
		return ctx.Err()
	}
	if f.err != nil {
		return f.err
	}
	return use(f.out)
}

// leave ends the wait: whoever has left is told nothing any more. The last one to leave cancels work that is not done, waits
// for it to clean up, and gives its claims back.
func (f *flight) leave(me *byte) {
	f.mu.Lock()
	delete(f.listeners, me)
	f.mu.Unlock()
	f.fs.mu.Lock()
	f.waiters--
	last := f.waiters == 0
	if last && f.fs.by[f.name] == f {
		delete(f.fs.by, f.name) // nobody may join any more
	}
	f.fs.mu.Unlock()
	if !last {
		return
	}
	f.cancel()
	<-f.done
	f.claims.release()
}
