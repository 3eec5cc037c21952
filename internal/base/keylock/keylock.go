// Package keylock gives one lock per key: operations on the same object wait for
// each other, operations on different objects do not. The zero value is ready to use.
package keylock

import (
	"context"
	"sync"

	"github.com/orlop-io/orlop/internal/base/trace"
)

// Locks is a set of locks by key. It keeps nothing for a key that nobody holds
// or waits for.
type Locks struct {
	mu   sync.Mutex
	held map[string]*lock
}

type lock struct {
	sem  chan struct{} // holds one token while locked
	refs int           // holder and waiters, guarded by Locks.mu
}

// Lock waits for the key's lock and returns the function that releases it, or
// the context's error if that ends first.
func (l *Locks) Lock(ctx context.Context, key string) (unlock func(), err error) {
	l.mu.Lock()
	if l.held == nil {
		l.held = make(map[string]*lock)
	}
	k := l.held[key]
	if k == nil {
		k = &lock{sem: make(chan struct{}, 1)}
		l.held[key] = k
	}
	k.refs++
	l.mu.Unlock()

	release := func() { <-k.sem; l.unref(key, k) }
	select {
	case k.sem <- struct{}{}:
		return release, nil
	default:
	}
	ctx, span := trace.Start(ctx, "wait for lock")
	defer span.End(&err)
	span.Set("lock", key)
	select {
	case k.sem <- struct{}{}:
		return release, nil
	case <-ctx.Done():
		l.unref(key, k)
		return nil, ctx.Err()
	}
}

func (l *Locks) unref(key string, k *lock) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if k.refs--; k.refs == 0 {
		delete(l.held, key)
	}
}
