package routed

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/fault"
	"github.com/orlop-io/orlop/internal/network/dataplane"
	"github.com/orlop-io/orlop/internal/platform/link"
	"github.com/orlop-io/orlop/internal/platform/namespace"
)

var (
	afterRecorded  = fault.New("network.setup.blocks-recorded")
	afterAddresses = fault.New("network.setup.node-addresses-set")
	afterBlocks    = fault.New("network.setup.blocks-routed")
	afterTable     = fault.New("network.setup.table-written")
	afterSwept     = fault.New("network.setup.devices-swept")
)

// Sync implements dataplane.Dataplane.
func (p *Plane) Sync(ctx context.Context, es []dataplane.Endpoint) (dataplane.Difference, error) {
	d := dataplane.Difference{Failed: map[string]error{}}
	for _, e := range es {
		if err := check(ctx, &e); err != nil {
			return d, err
		}
	}
	s, err := p.look()
	if err != nil {
		return d, err
	}
	if err := p.overlaps(s); err != nil {
		return d, err
	}
	p.bare.Store(!slices.ContainsFunc(s.local, func(a netlink.Addr) bool {
		ip := prefixOf(a.IPNet).Addr()
		return ip.Is4() && !ip.IsLoopback() && a.Scope == unix.RT_SCOPE_UNIVERSE
	}))
	changed, err := p.prepare(s)
	if err != nil {
		return d, err
	}
	forwards, err := p.forwarding()
	if err != nil {
		return d, err
	}
	rewritten, err := p.syncTable(es)
	if err != nil {
		return d, err
	}
	if changed || forwards || rewritten {
		d.Repaired = append(d.Repaired, "host")
	}
	p.complain()

	mine := map[string]bool{}
	for _, e := range es {
		mine[e.HostInterface] = true
	}
	for name, l := range s.devices {
		if !mine[name] || l.Attrs().Group&trash != 0 {
			d.Swept = append(d.Swept, name)
		}
	}
	slices.Sort(d.Swept)
	if len(d.Swept) > 0 {
		if err := p.removeDevices(d.Swept...); err != nil {
			return d, fmt.Errorf("sweep interfaces: %w", err)
		}
		afterSwept.Hit()
	}
	for _, e := range es {
		if err := ctx.Err(); err != nil {
			return d, err
		}
		if why := p.broken(s, e); why != "" {
			p.log.Info("network of a pod is incomplete and is repaired", "pod", e.ID, "missing", why)
			if err := p.Add(ctx, e); err != nil {
				d.Failed[e.ID] = err
				continue
			}
			d.Repaired = append(d.Repaired, e.ID)
		}
	}
	return d, nil
}

// seen is the kernel's state, read once.
type seen struct {
	devices map[string]netlink.Link // ours
	routes  []netlink.Route         // of the main table, both families
	neigh   map[int][]netlink.Neigh // by interface
	local   []netlink.Addr          // of the host
	onLo    map[netip.Prefix]bool
}

func (p *Plane) look() (*seen, error) {
	s := &seen{devices: map[string]netlink.Link{}, neigh: map[int][]netlink.Neigh{}, onLo: map[netip.Prefix]bool{}}
	links, err := list(netlink.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	for _, l := range links {
		if p.owns(l) {
			s.devices[l.Attrs().Name] = l
		}
	}
	for _, fam := range p.families() {
		routes, err := list(func() ([]netlink.Route, error) {
			return netlink.RouteListFiltered(fam, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		s.routes = append(s.routes, routes...)
		neigh, err := list(func() ([]netlink.Neigh, error) { return netlink.NeighList(0, fam) })
		if err != nil {
			return nil, fmt.Errorf("list neighbours: %w", err)
		}
		for _, n := range neigh {
			s.neigh[n.LinkIndex] = append(s.neigh[n.LinkIndex], n)
		}
		addrs, err := list(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, fam) })
		if err != nil {
			return nil, fmt.Errorf("list addresses: %w", err)
		}
		for _, a := range addrs {
			s.local = append(s.local, a)
			if a.LinkIndex == 1 {
				s.onLo[prefixOf(a.IPNet)] = true
			}
		}
	}
	return s, nil
}

func (p *Plane) families() (all []int) {
	for _, b := range p.o.Blocks {
		if b.Addr().Is4() {
			all = append(all, netlink.FAMILY_V4)
		} else {
			all = append(all, netlink.FAMILY_V6)
		}
	}
	return all
}

// owns tells whether a device is of this instance: name, kind and group all say so.
func (p *Plane) owns(l netlink.Link) bool {
	a := l.Attrs()
	return l.Type() == "veth" && strings.HasPrefix(a.Name, p.prefix) && len(a.Name) == len(p.prefix)+9 && a.Group&^trash == p.group
}

func prefixOf(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	a, _ := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), bits)
}

// overlaps refuses blocks of which the host already knows a part elsewhere: pods there could
// not be told from what is there.
func (p *Plane) overlaps(s *seen) error {
	ours := map[int]bool{}
	for _, l := range s.devices {
		ours[l.Attrs().Index] = true
	}
	// A block that is in use stays in use: what came later must not keep a restarted daemon
	// from its pods.
	inUse := func(b netip.Prefix) bool {
		return slices.ContainsFunc(s.routes, func(r netlink.Route) bool { return isBlockRoute(r, b) })
	}
	for _, b := range p.o.Blocks {
		setting := "network.ipv4Block"
		if b.Addr().Is6() {
			setting = "network.ipv6Block"
		}
		for _, r := range s.routes {
			dst := prefixOf(r.Dst)
			if !dst.IsValid() || dst.Bits() == 0 || !dst.Overlaps(b) || ours[r.LinkIndex] || r.Protocol == routeProtocol {
				continue
			}
			if r.LinkIndex == 1 { // IPv6 shows addresses of the loopback interface as routes
				continue
			}
			if dst.Bits() < b.Bits() {
				p.warn("the block %s of pods lies within %s, to which this host has a route: addresses of the block elsewhere are out of reach; set %s to another if that matters", b, dst, setting)
				continue
			}
			if inUse(b) {
				p.warn("somebody has added a route to %s on this host, which is in the block %s of pods: pods with addresses there are out of reach; remove it, or set %s to a block that is free and apply the pods again", dst, b, setting)
				continue
			}
			return errs.New(errs.FailedPrecondition, "the block %s of pods overlaps the route to %s of this host: set %s to a block that is free", b, dst, setting)
		}
		for _, a := range s.local {
			if ip := prefixOf(a.IPNet).Addr(); b.Contains(ip) && !(a.LinkIndex == 1 && ip == b.Addr().Next()) && !ours[a.LinkIndex] && !inUse(b) {
				return errs.New(errs.FailedPrecondition, "the block %s of pods holds %s, which is an address of this host: set %s to a block that is free", b, ip, setting)
			}
		}
	}
	return nil
}

func isBlockRoute(r netlink.Route, b netip.Prefix) bool {
	return r.Type == unix.RTN_UNREACHABLE && prefixOf(r.Dst) == b && r.Protocol == routeProtocol
}

// prepare makes what all endpoints share, except the table.
func (p *Plane) prepare(s *seen) (changed bool, err error) {
	if changed, err = p.rememberBlocks(); err != nil {
		return changed, err
	}
	afterRecorded.Hit()
	var rs []link.Request
	for _, b := range p.o.Blocks {
		if a := single(b.Addr().Next()); !s.onLo[a] {
			rs = append(rs, link.AddAddress(1, a, true))
		}
	}
	if len(rs) > 0 {
		if err := p.host.Do(append(rs, link.Up(1))...); err != nil {
			return false, fmt.Errorf("node addresses: %w", err)
		}
		changed = true
	}
	afterAddresses.Hit()
	rs = nil
	for _, b := range p.o.Blocks {
		if !slices.ContainsFunc(s.routes, func(r netlink.Route) bool { return isBlockRoute(r, b) }) {
			rs = append(rs, link.SetRoute(p.blockRoute(b)))
		}
	}
	if len(rs) > 0 {
		if err := p.host.Do(rs...); err != nil {
			return changed, fmt.Errorf("routes of the blocks: %w", err)
		}
		changed = true
	}
	afterBlocks.Hit()
	return changed, nil
}

// rememberBlocks records the blocks before anything is made for them, and takes away what
// was made for blocks of a former configuration.
func (p *Plane) rememberBlocks() (changed bool, err error) {
	all, err := p.used.All()
	if err != nil {
		return false, err
	}
	for _, b := range p.o.Blocks {
		if _, ok := all[b.String()]; !ok {
			if err := p.used.Put(b.String(), b); err != nil {
				return changed, err
			}
		}
	}
	for key, b := range all {
		if slices.Contains(p.o.Blocks, b) {
			continue
		}
		if err := p.withdraw(b); err != nil {
			return changed, err
		}
		if err := p.used.Delete(key); err != nil {
			return changed, err
		}
		changed = true
	}
	return changed, nil
}

// withdraw takes away what prepare made for a block.
func (p *Plane) withdraw(b netip.Prefix) error {
	if err := p.host.Do(link.DeleteRoute(p.blockRoute(b)), link.DeleteAddress(1, single(b.Addr().Next()))); err != nil {
		return fmt.Errorf("remove route and address of block %s: %w", b, err)
	}
	return nil
}

func (p *Plane) blockRoute(b netip.Prefix) link.Route {
	return link.Route{Dst: b, Unreachable: true, Protocol: routeProtocol}
}

// syncTable makes the firewall table say what these endpoints need.
func (p *Plane) syncTable(es []dataplane.Endpoint) (changed bool, err error) {
	p.table.Lock()
	defer p.table.Unlock()
	p.ports = map[string]portSet{}
	p.blocks = slices.Clone(p.o.Blocks)
	for _, e := range es {
		if set := elements(&e); len(set) > 0 {
			p.ports[e.ID] = set
		}
		for _, a := range e.Addresses {
			if !slices.ContainsFunc(p.blocks, func(b netip.Prefix) bool { return b.Contains(a) }) {
				p.blocks = append(p.blocks, single(a))
			}
		}
	}
	t := p.rules()
	why, err := p.nft.Differs(t)
	if err != nil || why == "" {
		return false, err
	}
	if err := p.nft.Replace(t); err != nil {
		return false, err
	}
	afterTable.Hit()
	p.log.Info("firewall table written", "table", "inet "+t.Name, "because", why)
	return true, nil
}

// broken says what is missing of an endpoint, or "".
func (p *Plane) broken(s *seen, e dataplane.Endpoint) string {
	l := s.devices[e.HostInterface]
	if l == nil {
		return "interface"
	}
	a := l.Attrs()
	if a.Group != p.group || a.RawFlags&unix.IFF_UP == 0 {
		return "interface is down"
	}
	for _, addr := range e.Addresses {
		if !slices.ContainsFunc(s.routes, func(r netlink.Route) bool {
			src, _ := netip.AddrFromSlice(r.Src)
			return prefixOf(r.Dst) == single(addr) && r.LinkIndex == a.Index && src.Unmap() == p.way(addr, a.Index).Source
		}) {
			return "route to " + addr.String()
		}
		if !slices.ContainsFunc(s.neigh[a.Index], func(n netlink.Neigh) bool {
			ip, _ := netip.AddrFromSlice(n.IP)
			return ip.Unmap() == addr && n.State&unix.NUD_PERMANENT != 0 && slices.Equal(n.HardwareAddr, e.MAC)
		}) {
			return "neighbour entry of " + addr.String()
		}
	}
	why := ""
	err := namespace.Do(e.Netns, func() error {
		var err error
		why, err = brokenInside(e, a.Index)
		return err
	})
	if err != nil {
		return err.Error()
	}
	return why
}

// brokenInside is called in the endpoint's namespace.
func brokenInside(e dataplane.Endpoint, host int) (string, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return "", err
	}
	defer h.Close()
	l, err := h.LinkByName(e.Interface)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return "interface in the pod", nil
	}
	if err != nil {
		return "", err
	}
	if l.Attrs().ParentIndex != host || l.Attrs().RawFlags&unix.IFF_UP == 0 {
		return "interface in the pod is another or down", nil
	}
	if !slices.Equal(l.Attrs().HardwareAddr, e.MAC) {
		return "hardware address in the pod", nil
	}
	for _, want := range e.Addresses {
		fam := netlink.FAMILY_V4
		if want.Is6() {
			fam = netlink.FAMILY_V6
		}
		as, err := list(func() ([]netlink.Addr, error) { return h.AddrList(l, fam) })
		if err != nil {
			return "", err
		}
		if !slices.ContainsFunc(as, func(a netlink.Addr) bool { return prefixOf(a.IPNet) == single(want) }) {
			return "address in the pod", nil
		}
		rs, err := list(func() ([]netlink.Route, error) { return h.RouteList(l, fam) })
		if err != nil {
			return "", err
		}
		if !slices.ContainsFunc(rs, func(r netlink.Route) bool {
			via, _ := netip.AddrFromSlice(r.Gw)
			return (r.Dst == nil || prefixOf(r.Dst).Bits() == 0) && via.Unmap() == gateway(want)
		}) {
			return "default route in the pod", nil
		}
		ns, err := list(func() ([]netlink.Neigh, error) { return h.NeighList(l.Attrs().Index, fam) })
		if err != nil {
			return "", err
		}
		if !slices.ContainsFunc(ns, func(n netlink.Neigh) bool {
			ip, _ := netip.AddrFromSlice(n.IP)
			return ip.Unmap() == gateway(want) && n.State&unix.NUD_PERMANENT != 0
		}) {
			return "gateway's neighbour entry in the pod", nil
		}
	}
	return "", nil
}

// complain looks for what of the host keeps packets from pods.
func (p *Plane) complain() {
	chains, err := p.nft.Dropping(p.o.Instance)
	if err != nil {
		p.log.Debug("look for chains that drop what is forwarded", "error", err)
	}
	for _, c := range chains {
		p.warn("the firewall chain %q of this host drops what it is not told to forward, so pods may reach nothing outside and not be reached; let them through, "+
			"for Docker's chain with: iptables -I DOCKER-USER -i %[2]s+ -j ACCEPT; iptables -I DOCKER-USER -o %[2]s+ -j ACCEPT (and ip6tables), for others with rules like these", c, p.prefix)
	}
}
