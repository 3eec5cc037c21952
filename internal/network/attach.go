package network

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/fault"
	"github.com/orlop-io/orlop/internal/base/store"
	"github.com/orlop-io/orlop/internal/network/dataplane"
	"github.com/orlop-io/orlop/internal/platform/link"
)

var (
	afterIntent   = fault.New("network.attach.intent-recorded")
	afterAttached = fault.New("network.attach.done-recorded")
)

// Attach connects a pod. It is idempotent: repeated for a pod, also by another process
// after a crash, it completes what is missing and returns the same addresses.
//
// Errors: errs.Invalid (request), errs.AlreadyExists (attached otherwise), errs.InUse (a
// host port is taken), errs.ResourceExhausted (no address left), errs.NotFound (no such
// namespace). After an error nothing is left of a pod that was not attached before.
func (n *Network) Attach(ctx context.Context, r Request) (Attachment, error) {
	if r.PodID == "" || r.Netns == "" {
		return Attachment{}, errs.New(errs.Invalid, "attach network: pod ID and network namespace must be given")
	}
	if r.Interface == "" {
		r.Interface = "eth0"
	}
	if len(r.Interface) > 15 || r.Interface == "lo" {
		return Attachment{}, errs.New(errs.Invalid, "attach network of %s: interface name %q must have 1 to 15 letters and not be lo", r.PodID, r.Interface)
	}
	var err error
	if r.Ports, err = validPorts(r.Ports); err != nil {
		return Attachment{}, fmt.Errorf("attach network of %s: %w", r.PodID, err)
	}
	unlock, err := n.locks.Lock(ctx, r.PodID)
	if err != nil {
		return Attachment{}, err
	}
	defer unlock()
	if err := n.gone(ctx, r.PodID); err != nil {
		return Attachment{}, err
	}
	n.gate.RLock()
	defer n.gate.RUnlock()
	if n.torn {
		return Attachment{}, errs.New(errs.FailedPrecondition, "attach network of %s: the network has been torn down", r.PodID)
	}

	rec, err := n.intend(r)
	if err != nil {
		return Attachment{}, fmt.Errorf("attach network of %s: %w", r.PodID, err)
	}
	afterIntent.Hit()
	if err := n.plane.Add(ctx, rec.Endpoint); err != nil {
		err = fmt.Errorf("attach network of %s: %w", r.PodID, err)
		if rec.State == attaching {
			if uerr := n.undo(rec); uerr != nil {
				n.log.Error("a failed attachment could not be undone and is kept until the pod is detached", "pod", r.PodID, "error", uerr)
			}
		}
		return Attachment{}, err
	}
	if rec.State != attached {
		done := *rec
		done.State = attached
		if err := n.put(&done); err != nil {
			return Attachment{}, err
		}
		rec = &done
	}
	afterAttached.Hit()
	return n.attachment(rec), nil
}

// gone waits until the device of a pod that was detached is removed: the same pod is being
// attached again.
func (n *Network) gone(ctx context.Context, id string) error {
	n.mu.Lock()
	wait := n.leaving[id]
	n.mu.Unlock()
	if wait == nil {
		return nil
	}
	select {
	case <-wait:
		return nil
	case <-ctx.Done():
		return errs.New(errs.Unavailable, "the pod's former network is still being removed: %w", ctx.Err())
	}
}

// intend returns the pod's record, making it if there is none: its addresses and host
// ports are its own from then on.
func (n *Network) intend(r Request) (*record, error) {
	// Sockets are looked at before the lock is taken; the pod's own translation does not show there.
	n.mu.Lock()
	old := n.records[r.PodID]
	n.mu.Unlock()
	if old == nil {
		for _, m := range r.Ports {
			if err := heldByHost(m); err != nil {
				return nil, err
			}
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if old != nil {
		e := old.Endpoint
		if old.State == detaching {
			return nil, errs.New(errs.Unavailable, "its former network is not yet removed")
		}
		if e.Netns == r.Netns && e.Interface == r.Interface && slices.Equal(old.Ports, r.Ports) {
			return old, nil
		}
		return nil, errs.New(errs.AlreadyExists, "it is attached already, with another namespace, interface or host ports: detach it first")
	}
	for id, other := range n.records {
		for _, a := range other.Ports {
			for _, b := range r.Ports {
				if other.State != detaching && collide(a, b) {
					return nil, errs.New(errs.InUse, "host port %s is held by pod %s: delete that pod or give another host port", b, id)
				}
			}
		}
	}
	mtu := n.opts.MTU
	if mtu == 0 {
		var err error
		if mtu, err = link.DefaultMTU(); err != nil {
			return nil, err
		}
	}
	rec := &record{State: attaching, Ports: r.Ports, Endpoint: dataplane.Endpoint{
		ID: r.PodID, Netns: r.Netns, Interface: r.Interface,
		HostInterface: n.plane.HostInterface(r.PodID), MAC: n.plane.MAC(r.PodID), MTU: mtu,
	}}
	for id, other := range n.records {
		if other.Endpoint.HostInterface == rec.Endpoint.HostInterface {
			return nil, errs.New(errs.Unavailable, "its interface would be named as that of pod %s: try again under another ID", id)
		}
	}
	var nexts []uint64
	for _, p := range n.pools {
		a, next, err := p.take()
		if err != nil {
			return nil, err
		}
		rec.Endpoint.Addresses = append(rec.Endpoint.Addresses, a)
		nexts = append(nexts, next)
	}
	rec.Endpoint.Ports = planePorts(r.Ports, rec.Endpoint.Addresses)
	err := n.opts.DB.Update(func(tx store.Tx) error {
		for i, p := range n.pools {
			if err := n.cursors.PutTx(tx, p.block.String(), cursor{nexts[i]}); err != nil {
				return err
			}
		}
		return n.endpoints.PutTx(tx, r.PodID, *rec)
	})
	if err != nil {
		return nil, err
	}
	n.keep(r.PodID, rec)
	for i, p := range n.pools {
		p.mark(rec.Endpoint.Addresses[i], nexts[i])
	}
	return rec, nil
}

// undo takes back what a failed Attach did.
func (n *Network) undo(rec *record) error {
	ctx := context.Background() // also when the caller has given up
	if err := n.plane.Release(ctx, rec.Endpoint); err != nil {
		return err
	}
	if err := n.plane.Remove(ctx, []dataplane.Endpoint{rec.Endpoint}); err != nil {
		return err
	}
	return n.forget(rec.Endpoint.ID)
}

// put writes a record and notes it.
func (n *Network) put(r *record) error {
	if err := n.endpoints.Put(r.Endpoint.ID, *r); err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.records[r.Endpoint.ID] = r
	return nil
}

// forget deletes records and frees their addresses.
func (n *Network) forget(ids ...string) error {
	if len(ids) == 0 {
		return nil
	}
	err := n.opts.DB.Update(func(tx store.Tx) error {
		for _, id := range ids {
			if err := n.endpoints.DeleteTx(tx, id); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, id := range ids {
		if r := n.records[id]; r != nil {
			for _, a := range r.Endpoint.Addresses {
				n.free(a)
			}
			delete(n.records, id)
		}
		if done := n.leaving[id]; done != nil {
			close(done)
			delete(n.leaving, id)
		}
	}
	return nil
}

func (n *Network) free(a netip.Addr) {
	for _, p := range n.pools {
		p.free(a)
	}
}
