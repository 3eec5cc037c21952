// Package dataplane is the border between deciding what a node's network is and telling
// the kernel. Today's implementation is package routed (veth, routes, nftables); another,
// on eBPF, is to come behind the same interface. Package dataplanetest checks that an
// implementation keeps the promises that are made here.
package dataplane

import (
	"context"
	"net"
	"net/netip"
)

// NetworkID tells apart networks whose addresses may overlap. 0 is the node's default.
type NetworkID uint32

// Key names an address of one network. Addresses are 128 bits wide: IPv4 is mapped
// (::ffff:a.b.c.d), so that one map holds both families.
type Key struct {
	Network NetworkID
	Addr    [16]byte
}

// KeyOf returns the key of an address.
func KeyOf(n NetworkID, a netip.Addr) Key { return Key{n, a.As16()} }

// IP returns the address, IPv4 unmapped.
func (k Key) IP() netip.Addr { return netip.AddrFrom16(k.Addr).Unmap() }

// Protocol is a transport protocol with ports.
type Protocol string

// The protocols that can be translated.
const (
	TCP  Protocol = "TCP"
	UDP  Protocol = "UDP"
	SCTP Protocol = "SCTP"
)

// Number returns the protocol's number (IANA), 0 for an unknown one.
func (p Protocol) Number() uint8 {
	switch p {
	case TCP:
		return 6
	case UDP:
		return 17
	case SCTP:
		return 132
	}
	return 0
}

// Port translates a port of the host to one of the endpoint, in one address family.
type Port struct {
	Protocol Protocol
	// Host is the host's address, which also says the family: 0.0.0.0 and :: are every
	// address of theirs.
	Host    netip.AddrPort
	PodPort uint16
}

// Endpoint is one pod's connection.
type Endpoint struct {
	Network NetworkID
	// ID is unique on the node.
	ID string
	// Netns is the path of the endpoint's network namespace, Interface the name inside.
	Netns, Interface string
	// HostInterface is the name on the host, from Dataplane.HostInterface.
	HostInterface string
	MAC           net.HardwareAddr
	MTU           int
	Addresses     []netip.Addr // at most one per family
	Ports         []Port
}

// Key of the address of the family of like; ok is false where the endpoint has none.
func (e *Endpoint) Key(like netip.Addr) (k Key, ok bool) {
	for _, a := range e.Addresses {
		if a.Is4() == like.Is4() {
			return KeyOf(e.Network, a), true
		}
	}
	return Key{}, false
}

// Difference says what Sync had to change; a second Sync changes nothing.
type Difference struct {
	Repaired []string // endpoints, and "host" for what all share
	Swept    []string // devices and such that belonged to no endpoint
	// Failed are endpoints that could not be repaired; those of others do not suffer.
	Failed map[string]error
}

// Dataplane programs the kernel of one node for one instance. Every method is idempotent
// and may be repeated after the process was killed at any instruction of it. Sync comes
// first. Calls for different endpoints may come at the same time; those for one endpoint
// are serialised by the caller, and Sync and Teardown run with no other call. Nothing of
// another instance, or of another program, is ever changed. Errors carry kinds of package errs.
type Dataplane interface {
	// HostInterface returns the name that the endpoint's device has on the host: unique by
	// instance and endpoint, and the same each time.
	HostInterface(endpoint string) string
	// Sync makes the kernel agree with the endpoints: prepares what all share, completes
	// what is missing of each, sweeps what is of none. An endpoint that is all right is not
	// disturbed: its connections go on.
	Sync(ctx context.Context, es []Endpoint) (Difference, error)
	// Add connects the endpoint: when it returns, addresses, ports and ways are in force in
	// both directions. What exists already is completed, not made anew. After an error
	// Release and Remove are due. A missing namespace is errs.NotFound.
	Add(ctx context.Context, e Endpoint) error
	// Release takes the endpoint's ports and routes away, quickly: when it returns nothing
	// reaches the endpoint. Its device stays, for Remove.
	Release(ctx context.Context, e Endpoint) error
	// Remove removes the devices of these released endpoints, slow as that may be. Those
	// that are gone are no error, nor is a namespace that is gone.
	Remove(ctx context.Context, es []Endpoint) error
	// Teardown removes everything of this instance and restores the host. Sync may follow.
	Teardown(ctx context.Context) error
	// Warnings say what of the host keeps the promises from being kept, and what to do.
	Warnings() []string
	// NodeAddresses are those by which endpoints always reach the host, one per family.
	NodeAddresses() []netip.Addr
	// Gateways are the endpoints' next hops, one per family.
	Gateways() []netip.Addr
}
