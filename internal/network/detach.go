package network

import (
	"context"
	"fmt"
	"time"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/fault"
	"github.com/orlop-io/orlop/internal/network/dataplane"
)

var (
	afterLeaving   = fault.New("network.detach.intent-recorded")
	afterReleased  = fault.New("network.detach.record-deleted")
	afterForgotten = fault.New("network.teardown.records-deleted")
)

// Detach disconnects a pod. It is idempotent. It returns once the removal is recorded, the
// host ports are free and nothing reaches the pod any more; the kernel's slow removal of
// the device goes on behind, and the addresses are not given to another before that is done.
func (n *Network) Detach(ctx context.Context, podID string) error {
	unlock, err := n.locks.Lock(ctx, podID)
	if err != nil {
		return err
	}
	defer unlock()
	n.gate.RLock()
	defer n.gate.RUnlock()
	return n.detach(ctx, podID)
}

// detach does it. The caller holds the pod's lock and the gate, or the gate for writing.
func (n *Network) detach(ctx context.Context, podID string) error {
	n.mu.Lock()
	rec, under := n.records[podID], n.leaving[podID] != nil
	n.mu.Unlock()
	if rec == nil || under {
		return nil
	}
	going := *rec
	going.State = detaching
	if err := n.put(&going); err != nil {
		return err
	}
	afterLeaving.Hit()
	if err := n.plane.Release(ctx, rec.Endpoint); err != nil {
		return fmt.Errorf("detach network of %s: %w", podID, err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.leaving[podID] = make(chan struct{})
	n.queue = append(n.queue, podID)
	select {
	case n.wake <- struct{}{}:
	default:
	}
	return nil
}

// remove removes the devices of pods that were detached, those together that have gathered
// meanwhile: the kernel's grace periods are then paid once for all of them.
func (n *Network) remove(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			if err := n.removeQueued(ctx); err != nil {
				n.log.Warn("devices of pods that are gone are left to the next start", "error", err)
			}
			return
		case <-n.wake:
		}
		for wait := 100 * time.Millisecond; ; wait = min(2*wait, time.Minute) {
			err := n.removeQueued(ctx)
			if err == nil {
				break
			}
			n.log.Error("devices of pods that are gone could not be removed; trying again", "error", err, "in", wait)
			select {
			case <-ctx.Done():
				return
			case <-time.After(wait):
			}
		}
	}
}

func (n *Network) removeQueued(ctx context.Context) error {
	n.gate.RLock()
	defer n.gate.RUnlock()
	n.mu.Lock()
	ids := n.queue
	n.queue = nil
	var es []dataplane.Endpoint
	for _, id := range ids {
		if r := n.records[id]; r != nil {
			es = append(es, r.Endpoint)
		}
	}
	n.mu.Unlock()
	if len(es) == 0 {
		return nil
	}
	err := n.plane.Remove(ctx, es)
	if err == nil {
		err = n.forget(ids...)
	}
	if err != nil {
		n.mu.Lock()
		n.queue = append(ids, n.queue...)
		n.mu.Unlock()
		return err
	}
	afterReleased.Hit()
	return nil
}

// Settle waits until every device of a detached pod is gone.
func (n *Network) Settle(ctx context.Context) error {
	for {
		n.mu.Lock()
		var wait chan struct{}
		for _, wait = range n.leaving {
			break
		}
		n.mu.Unlock()
		if wait == nil {
			return nil
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return errs.As(errs.KindOf(ctx.Err()), ctx.Err())
		}
	}
}

// Reconcile detaches every pod that is not live, removes devices and rules that no record
// accounts for, and restores what is missing for those that are live. Pods that are being
// attached must be among the live ones. It waits for Attach and Detach and they for it.
func (n *Network) Reconcile(ctx context.Context, live map[string]bool) error {
	n.gate.Lock()
	defer n.gate.Unlock()
	n.mu.Lock()
	var dead []string
	for id, r := range n.records {
		if !live[id] && r.State != detaching {
			dead = append(dead, id)
		}
	}
	n.mu.Unlock()
	for _, id := range dead {
		n.log.Info("network of a pod that is gone is removed", "pod", id)
		if err := n.detach(ctx, id); err != nil {
			return err
		}
	}
	// Sync sweeps the devices of all who are leaving, now or since before.
	leaving := n.detaching()
	d, err := n.plane.Sync(ctx, n.staying())
	if err != nil {
		return err
	}
	n.report(d)
	if err := n.forget(leaving...); err != nil {
		return err
	}
	n.mu.Lock()
	n.queue = nil
	n.mu.Unlock()
	return nil
}
