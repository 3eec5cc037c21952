package link

import (
	"context"
	"fmt"

	"github.com/vishvananda/netlink"
)

// WatchRoutes sends on the channel when a route comes or goes of which want says so. Events
// that nobody has taken yet are one. The channel is closed when the subscription ends, with
// the context or because the kernel had too much to tell.
func WatchRoutes(ctx context.Context, want func(netlink.Route) bool) (<-chan struct{}, error) {
	updates := make(chan netlink.RouteUpdate, 64)
	done := make(chan struct{})
	if err := netlink.RouteSubscribe(updates, done); err != nil {
		return nil, fmt.Errorf("watch routes: %w", err)
	}
	out := make(chan struct{}, 1)
	go func() {
		<-ctx.Done()
		close(done)
	}()
	go func() {
		defer close(out)
		for u := range updates {
			if want(u.Route) {
				select {
				case out <- struct{}{}:
				default:
				}
			}
		}
	}()
	return out, nil
}
