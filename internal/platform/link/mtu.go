package link

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
)

// DefaultMTU returns the MTU of the interface by which the default route leads out: IPv4's
// first, then IPv6's, the least of several. A host without one has 1500.
func DefaultMTU() (int, error) {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := netlink.RouteListFiltered(family, &netlink.Route{Dst: nil}, netlink.RT_FILTER_DST)
		if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
			return 0, fmt.Errorf("list default routes: %w", err)
		}
		least := 0
		consider := func(index int) {
			if l, err := netlink.LinkByIndex(index); err == nil && (least == 0 || l.Attrs().MTU < least) {
				least = l.Attrs().MTU
			}
		}
		for _, r := range routes {
			if r.LinkIndex > 1 {
				consider(r.LinkIndex)
			}
			for _, hop := range r.MultiPath {
				consider(hop.LinkIndex)
			}
		}
		if least > 0 {
			return least, nil
		}
	}
	return 1500, nil
}
