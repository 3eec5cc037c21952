package routed

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/network/dataplane"
	"github.com/orlop-io/orlop/internal/platform/nft"
)

// portSet is what an endpoint has in the table's sets, by name of set.
type portSet map[string][]nft.Element

// elements returns the entries for the endpoint's ports.
func elements(e *dataplane.Endpoint) portSet {
	set := portSet{}
	for _, port := range e.Ports {
		key, ok := e.Key(port.Host.Addr())
		if !ok {
			continue // of a family that the endpoint has not
		}
		proto, number := []byte{port.Protocol.Number()}, binary.BigEndian.AppendUint16(nil, port.Host.Port())
		el := nft.Element{Value: nft.Key(key.IP().AsSlice(), binary.BigEndian.AppendUint16(nil, port.PodPort))}
		name := names(port.Host.Addr())
		if port.Host.Addr().IsUnspecified() {
			el.Key = nft.Key(proto, number)
			set[name.ports] = append(set[name.ports], el)
		} else {
			el.Key = nft.Key(proto, port.Host.Addr().AsSlice(), number)
			set[name.addressPorts] = append(set[name.addressPorts], el)
		}
		if ip := key.IP().AsSlice(); len(set[name.hairpin]) == 0 {
			set[name.hairpin] = append(set[name.hairpin], nft.Element{Key: nft.Key(ip, ip)})
		}
	}
	return set
}

// addPorts puts the endpoint's ports in force.
func (p *Plane) addPorts(e dataplane.Endpoint) error {
	set := elements(&e)
	p.table.Lock()
	defer p.table.Unlock()
	old, known := p.ports[e.ID]
	if len(set) == 0 && (!known || len(old) == 0) {
		return nil
	}
	p.ports[e.ID] = set
	err := p.nft.Change(p.rules(), set, nil)
	if errors.Is(err, errs.NotFound) || errors.Is(err, errs.AlreadyExists) {
		// The table is gone, or holds what it should not: put it right as a whole.
		err = p.nft.Replace(p.rules())
	}
	if err != nil {
		delete(p.ports, e.ID)
		return fmt.Errorf("host ports of %s: %w", e.ID, err)
	}
	return p.forgetFlows(&e)
}

// removePorts takes the endpoint's ports back.
func (p *Plane) removePorts(e dataplane.Endpoint) error {
	p.table.Lock()
	defer p.table.Unlock()
	set, known := p.ports[e.ID]
	if !known {
		set = elements(&e)
	}
	if len(set) == 0 {
		return nil
	}
	delete(p.ports, e.ID)
	err := p.nft.Change(p.rules(), nil, set)
	if errors.Is(err, errs.NotFound) {
		// Some element, or all of the table, is gone already.
		var differs string
		if differs, err = p.nft.Differs(p.rules()); err == nil && differs != "" {
			err = p.nft.Replace(p.rules())
		}
	}
	if err != nil {
		p.ports[e.ID] = set
		return fmt.Errorf("host ports of %s: %w", e.ID, err)
	}
	return p.forgetFlows(&e)
}

// forgetFlows drops the tracked flows to the endpoint's ports that have no end of their own:
// a sender that goes on would be led to the former holder of the port for ever. TCP flows
// end by themselves; those that are alive must not be cut when an endpoint is completed.
func (p *Plane) forgetFlows(e *dataplane.Endpoint) error {
	for _, v6 := range []bool{false, true} {
		f := flows{to: map[flow]netip.Addr{}}
		for _, port := range e.Ports {
			if key, ok := e.Key(port.Host.Addr()); ok && port.Protocol != dataplane.TCP && port.Host.Addr().Is6() == v6 {
				f.to[flow{port.Protocol.Number(), port.Host.Port()}] = key.IP()
			}
		}
		if len(f.to) == 0 {
			continue
		}
		family := netlink.InetFamily(unix.AF_INET)
		if v6 {
			family = unix.AF_INET6
		}
		f.current = p.holds(e.ID)
		if _, err := netlink.ConntrackDeleteFilters(netlink.ConntrackTable, family, f); err != nil {
			return fmt.Errorf("forget flows to host ports of %s: %w", e.ID, err)
		}
	}
	return nil
}

func (p *Plane) holds(id string) bool { return len(p.ports[id]) > 0 }

type flow struct {
	protocol uint8
	port     uint16
}

// flows selects tracked flows to host ports. While the endpoint holds its ports, those that
// lead to it are right and stay.
type flows struct {
	to      map[flow]netip.Addr
	current bool
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (f flows) MatchConntrackFlow(c *netlink.ConntrackFlow) bool {
	pod, ok := f.to[flow{c.Forward.Protocol, c.Forward.DstPort}]
	if !ok {
		return false
	}
	source, _ := netip.AddrFromSlice(c.Reverse.SrcIP)
	destination, _ := netip.AddrFromSlice(c.Forward.DstIP)
	source, destination = source.Unmap(), destination.Unmap()
	if f.current {
		// Led elsewhere, or to a port of the host that nobody translated.
		return source != pod && destination != pod
	}
	return source == pod && destination != pod
}
