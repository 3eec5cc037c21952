package routed

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A host that did not forward packets should not become a router for everybody because it
// has pods. IPv4 forwards by the interface on which a packet comes in, so only pods'
// interfaces and those that lead somewhere are switched on. Those that were off before are
// "guarded": the table's forward chain lets what comes in by them go to pods only. Where
// somebody has switched the whole host to forwarding (net.ipv4.ip_forward), before or since,
// nothing is guarded: it is to be a router.
//
// IPv6 has that by interface since 6.17 (force_forwarding). Before, only the whole host can
// forward (ipv6/conf/all/forwarding), and a host that does no longer takes its default route
// from router advertisements unless accept_ra is 2, so that is set first where it was 1.

var hasForceForwarding = sync.OnceValue(func() bool {
	_, err := os.Stat("/proc/sys/net/ipv6/conf/all/force_forwarding")
	return err == nil
})

// forwarding switches on what pods need. It says whether anything changed.
func (p *Plane) forwarding() (changed bool, err error) {
	for _, b := range p.o.Blocks {
		v6 := b.Addr().Is6()
		names, err := p.uplinks(v6)
		if err != nil {
			return changed, err
		}
		var c bool
		switch {
		case !v6:
			c, err = p.switchOn("net/ipv4/conf", "forwarding", names)
		case hasForceForwarding():
			c, err = p.switchOn("net/ipv6/conf", "force_forwarding", names)
		default:
			c, err = p.forwardAll6(names)
		}
		changed = changed || c
		if err != nil {
			return changed, err
		}
		guarded, err := p.toGuard(v6)
		if err != nil {
			return changed, err
		}
		p.table.Lock()
		p.guarded[family(v6)] = guarded
		p.table.Unlock()
	}
	return changed, nil
}

func (p *Plane) switchOn(dir, file string, names []string) (changed bool, err error) {
	for _, name := range names {
		c, err := p.change(filepath.Join(dir, name, file), "1")
		if err != nil && !errors.Is(err, os.ErrNotExist) { // it may just have gone
			return changed, err
		}
		changed = changed || c
	}
	return changed, nil
}

// forwardAll6 is for kernels before 6.17.
func (p *Plane) forwardAll6(names []string) (changed bool, err error) {
	for _, name := range names {
		key := filepath.Join("net/ipv6/conf", name, "accept_ra")
		if v, err := read(key); err == nil && v == "1" {
			if _, err := p.change(key, "2"); err != nil {
				return changed, err
			}
			changed = true
		}
	}
	c, err := p.change("net/ipv6/conf/all/forwarding", "1")
	return changed || c, err
}

// toGuard returns the interfaces that forward only because of us, sorted.
func (p *Plane) toGuard(v6 bool) ([]string, error) {
	whole, dir, file := "net/ipv4/ip_forward", "net/ipv4/conf/", "/forwarding"
	if v6 {
		whole, dir, file = "net/ipv6/conf/all/forwarding", "net/ipv6/conf/", "/force_forwarding"
	}
	all, err := p.former.All()
	if err != nil {
		return nil, err
	}
	if v6 && !hasForceForwarding() {
		// The whole host forwards because of us: guard every interface that we know.
		if _, ours := all[whole]; !ours {
			return nil, nil
		}
		names, err := p.uplinks(true)
		slices.Sort(names)
		return names, err
	}
	if v, err := read(whole); err != nil || v != "0" {
		return nil, err
	}
	var names []string
	for key := range all {
		name, ok := strings.CutSuffix(key, file)
		if name, ok2 := strings.CutPrefix(name, dir); ok && ok2 {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names, nil
}

// uplinks are the interfaces by which the host reaches others, except by our own: packets
// for pods may come in by any of them.
func (p *Plane) uplinks(v6 bool) ([]string, error) {
	fam := netlink.FAMILY_V4
	if v6 {
		fam = netlink.FAMILY_V6
	}
	links, err := list(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	routes, err := list(func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(fam, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	used := map[int]bool{}
	for _, r := range routes {
		if r.Dst != nil && (r.Dst.IP.IsLinkLocalUnicast() && v6 || r.Dst.IP.IsMulticast()) {
			continue
		}
		used[r.LinkIndex] = true
		for _, hop := range r.MultiPath {
			used[hop.LinkIndex] = true
		}
	}
	var names []string
	for _, l := range links {
		a := l.Attrs()
		if used[a.Index] && a.RawFlags&unix.IFF_LOOPBACK == 0 && a.Group&magicMask != groupMagic {
			names = append(names, a.Name)
		}
	}
	return names, nil
}

// ForeignRoute tells whether a route is of somebody else and may make an uplink of an interface.
func (p *Plane) ForeignRoute(r netlink.Route) bool {
	return r.Table == unix.RT_TABLE_MAIN && r.Protocol != routeProtocol && r.LinkIndex != 1
}

// list repeats a dump that the kernel says was disturbed by a change.
func list[T any](dump func() ([]T, error)) (all []T, err error) {
	for range 20 {
		if all, err = dump(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return all, err
		}
	}
	return all, err
}
