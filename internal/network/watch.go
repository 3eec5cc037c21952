package network

import (
	"context"
	"errors"
	"time"

	"github.com/orlop-io/orlop/internal/platform/link"
)

const (
	// settleTime is how long routes of the host must rest before we follow them: a network
	// that comes up changes many.
	settleTime = 300 * time.Millisecond
	// checkEvery is how often kernel and records are compared without any event: a firewall
	// that was flushed by another tool is whole again after this time at most.
	checkEvery = time.Minute
)

// watch makes the kernel agree with the records again when routes of the host change (an
// uplink came that must forward to pods), and from time to time.
func (n *Network) watch(ctx context.Context) {
	changes, err := link.WatchRoutes(ctx, n.plane.ForeignRoute)
	if err != nil {
		n.log.Warn("changes of the host's routes are not noticed at once", "error", err)
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(checkEvery):
		case _, ok := <-changes:
			if !ok {
				changes = nil // the subscription is broken; time goes on
				continue
			}
			rest := time.NewTimer(settleTime)
			for resting := false; !resting; {
				select {
				case <-ctx.Done():
					rest.Stop()
					return
				case _, ok := <-changes:
					if !ok {
						changes = nil
					}
				case <-rest.C:
					resting = true
				}
			}
		}
		if err := n.resync(ctx); err != nil && !errors.Is(err, context.Canceled) {
			n.log.Warn("network could not be compared with what it should be", "error", err)
		}
	}
}

// resync repairs and sweeps, by the records alone.
func (n *Network) resync(ctx context.Context) error {
	n.gate.Lock()
	defer n.gate.Unlock()
	if n.torn {
		return nil
	}
	d, err := n.plane.Sync(ctx, n.staying())
	if err != nil {
		return err
	}
	n.report(d)
	return nil
}
