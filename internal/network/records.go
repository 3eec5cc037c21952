package network

import (
	"net/netip"

	"github.com/orlop-io/orlop/internal/network/dataplane"
)

// state says how far a pod's record is.
type state string

const (
	attaching state = "attaching" // some of it may be there
	attached  state = "attached"
	detaching state = "detaching" // some of it may be left; the address is not free yet
)

// record is what the volatile state keeps of a pod, in bucket network.endpoints by pod ID.
type record struct {
	State    state
	Endpoint dataplane.Endpoint
	Ports    []PortMapping `json:",omitempty"`
}

// cursor is where the search for a free address goes on, in bucket network.cursors by block.
type cursor struct{ Next uint64 }

func (n *Network) attachment(r *record) Attachment {
	e := &r.Endpoint
	a := Attachment{
		PodID: e.ID, Interface: e.Interface, HostInterface: e.HostInterface,
		MAC: e.MAC.String(), MTU: e.MTU, Ports: r.Ports,
		Gateways: n.plane.Gateways(), NodeAddresses: n.plane.NodeAddresses(),
	}
	for _, ip := range e.Addresses {
		a.Addresses = append(a.Addresses, netip.PrefixFrom(ip, ip.BitLen()))
	}
	return a
}
