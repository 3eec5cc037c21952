package keylock

import (
	"context"
	"errors"
	"sync"
	"testing"
)

func TestLocks(t *testing.T) {
	var l Locks
	ctx := context.Background()
	n := map[string]*int{"a": new(int), "b": new(int)}
	var wg sync.WaitGroup
	for range 100 {
		for key, p := range n {
			wg.Go(func() {
				unlock, err := l.Lock(ctx, key)
				if err != nil {
					t.Error(err)
					return
				}
				*p++ // the race detector sees it if the lock does not hold
				unlock()
			})
		}
	}
	wg.Wait()
	if *n["a"] != 100 || *n["b"] != 100 {
		t.Errorf("counts %d %d", *n["a"], *n["b"])
	}
	if len(l.held) != 0 {
		t.Errorf("%d locks kept with no holder", len(l.held))
	}
}

func TestCanceledWaiter(t *testing.T) {
	var l Locks
	unlock, _ := l.Lock(context.Background(), "a")
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := l.Lock(ctx, "a"); !errors.Is(err, context.Canceled) {
		t.Errorf("Lock with an ended context: %v", err)
	}
	unlockB, err := l.Lock(context.Background(), "b")
	if err != nil {
		t.Fatal(err)
	}
	unlockB()
	unlock()
	if len(l.held) != 0 {
		t.Errorf("%d locks kept", len(l.held))
	}
}
