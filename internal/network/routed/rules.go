package routed

import (
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/orlop-io/orlop/internal/platform/nft"
)

// setNames are the sets of one family.
type setNames struct {
	pods         string // intervals: what counts as pods
	ports        string // protocol . port : address . port
	addressPorts string // protocol . address . port : address . port
	hairpin      string // address . address of endpoints that have ports
	guarded      string // names of interfaces
}

var (
	names4 = setNames{"pods4", "ports4", "address-ports4", "hairpin4", "guarded4"}
	names6 = setNames{"pods6", "ports6", "address-ports6", "hairpin6", "guarded6"}
)

func names(like netip.Addr) setNames {
	if like.Is4() {
		return names4
	}
	return names6
}

// rules describes the whole table. The caller holds p.table.
func (p *Plane) rules() nft.Table {
	t := nft.Table{Name: p.o.Instance}
	byName := map[string][]nft.Element{}
	for _, set := range p.ports {
		for name, es := range set {
			byName[name] = append(byName[name], es...)
		}
	}
	for _, v6 := range []bool{false, true} {
		n, address := names4, nft.TypeAddress4
		if v6 {
			n, address = names6, nft.TypeAddress6
		}
		var pods []nft.Element
		for _, b := range p.blocks {
			if b.Addr().Is6() == v6 {
				pods = append(pods, nft.Prefix(b.Addr().AsSlice(), b.Bits())...)
			}
		}
		var guarded []nft.Element
		for _, name := range p.guarded[family(v6)] {
			guarded = append(guarded, nft.Element{Key: append([]byte(name), make([]byte, 16-len(name))...)})
		}
		type types = []nftables.SetDatatype
		t.Sets = append(t.Sets,
			nft.Set{Name: n.pods, Key: types{address}, Interval: true, Elements: pods},
			nft.Set{Name: n.ports, Key: types{nft.TypeProtocol, nft.TypePort}, Data: types{address, nft.TypePort}, Elements: byName[n.ports]},
			nft.Set{Name: n.addressPorts, Key: types{nft.TypeProtocol, address, nft.TypePort}, Data: types{address, nft.TypePort}, Elements: byName[n.addressPorts]},
			nft.Set{Name: n.hairpin, Key: types{address, address}, Elements: byName[n.hairpin]},
			nft.Set{Name: n.guarded, Key: types{nft.TypeName}, Elements: guarded},
		)
	}
	t.Chains = []nft.Chain{
		p.sources(), p.forward(),
		{Name: "host-ports", Rules: hostPorts()},
		{Name: "arriving", Type: nftables.ChainTypeNAT, Hook: nftables.ChainHookPrerouting, Priority: -100,
			Rules: []nft.Rule{{Comment: "to a host port", Exprs: nft.Rules(nft.ToHost(), nft.Jump("host-ports"))}}},
		{Name: "local", Type: nftables.ChainTypeNAT, Hook: nftables.ChainHookOutput, Priority: -100,
			Rules: []nft.Rule{{Comment: "from the host to a host port of its own", Exprs: nft.Rules(nft.ToHost(), nft.Jump("host-ports"))}}},
		p.leaving(),
	}
	return t
}

func family(v6 bool) int {
	if v6 {
		return 1
	}
	return 0
}

func familyIs(v6 bool) []expr.Any {
	if v6 {
		return nft.IPv6()
	}
	return nft.IPv4()
}

// Addresses in rules.
var (
	loopback4 = []byte{127, 0, 0, 0}
	loopback6 = netip.IPv6Loopback().AsSlice()

	linkLocal6 = gateway6.AsSlice()
)

// sources drops what pods must not send, before anything else sees it.
func (p *Plane) sources() nft.Chain {
	pods := nft.InGroup(p.group, ^uint32(trash), true)
	return nft.Chain{
		Name: "sources", Type: nftables.ChainTypeFilter, Hook: nftables.ChainHookPrerouting, Priority: -300,
		Rules: []nft.Rule{
			// Solicitations and reports that nobody here listens to; they would spoil the next count.
			{Comment: "a pod's talk on its link", Exprs: nft.Rules(pods, nft.IPv6(), nft.Source(linkLocal6, 10), nft.DropQuietly())},
			{Comment: "a pod that uses an address of another", Exprs: nft.Rules(pods, nft.Spoofed(), nft.Drop())},
			// route_localnet is on at pods' interfaces, and this is why that is safe.
			{Comment: "a pod that sends to the host's loopback", Exprs: nft.Rules(pods, nft.IPv4(), nft.Destination(loopback4, 8), nft.Drop())},
		},
	}
}

// forward keeps the host from becoming a router between others: see forwarding.go.
func (p *Plane) forward() nft.Chain {
	notToPods := nft.OutGroup(groupMagic, magicMask, false)
	return nft.Chain{
		Name: "forward", Type: nftables.ChainTypeFilter, Hook: nftables.ChainHookForward, Priority: 0,
		Rules: []nft.Rule{
			{Comment: "the host did not forward before: IPv4 not to pods", Exprs: nft.Rules(nft.IPv4(), nft.In(names4.guarded), notToPods, nft.Drop())},
			{Comment: "the host did not forward before: IPv6 not to pods", Exprs: nft.Rules(nft.IPv6(), nft.In(names6.guarded), notToPods, nft.Drop())},
		},
	}
}

// hostPorts translates what is for a host port. A port at one address goes before the same
// port at every address.
func hostPorts() []nft.Rule {
	rs := []nft.Rule{
		// IPv6 has no route_localnet: the answers could not come back to ::1. Refused at
		// once is better than no answer.
		{Comment: "not from ::1", Exprs: nft.Rules(nft.IPv6(), nft.Destination(loopback6, 128), nft.Return())},
	}
	for _, v6 := range []bool{false, true} {
		n := names4
		if v6 {
			n = names6
		}
		rs = append(rs,
			nft.Rule{Comment: "port at an address", Exprs: nft.Rules(familyIs(v6), nft.TranslateDestination(v6, true, n.addressPorts))},
			nft.Rule{Comment: "port at every address", Exprs: nft.Rules(familyIs(v6), nft.TranslateDestination(v6, false, n.ports))},
		)
	}
	return rs
}

// leaving gives packets the source address that answers can find.
func (p *Plane) leaving() nft.Chain {
	c := nft.Chain{Name: "leaving", Type: nftables.ChainTypeNAT, Hook: nftables.ChainHookPostrouting, Priority: 100}
	toPods := nft.OutGroup(p.group, ^uint32(trash), true)
	for _, b := range p.o.Blocks {
		v6 := b.Addr().Is6()
		n, node := names(b.Addr()), b.Addr().Next().AsSlice()
		if !v6 {
			c.Rules = append(c.Rules, nft.Rule{Comment: "from 127.0.0.1 by a host port",
				Exprs: nft.Rules(toPods, nft.IPv4(), nft.Source(loopback4, 8), nft.TranslateSource(node))})
		}
		c.Rules = append(c.Rules, nft.Rule{Comment: "from a pod to its own host port",
			Exprs: nft.Rules(toPods, familyIs(v6), nft.PairIn(v6, n.hairpin), nft.TranslateSource(node))})
		if p.o.Masquerade {
			c.Rules = append(c.Rules, nft.Rule{Comment: "from a pod to outside",
				Exprs: nft.Rules(familyIs(v6), nft.SourceIn(v6, n.pods, true), nft.DestinationIn(v6, n.pods, false),
					nft.OutGroup(p.group, ^uint32(trash), false), nft.Masquerade())})
		}
	}
	return c
}
