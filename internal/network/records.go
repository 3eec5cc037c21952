package network

import (
	"net/netip"

	"github.com/orlop-io/orlop/internal/network/dataplane"
)

// state says how far a pod's record is.
type state string

const (
	attaching state = "attaching"
	attached  state = "attached"
	detaching state = "detaching"
)

// record is what the volatile state keeps of a pod.
type record struct {
	State    state
	Endpoint dataplane.Endpoint
	Ports    []PortMapping `json:",omitempty"`
}

// cursor is where the search for a free address goes on, per block.
type cursor struct {
	Block netip.Prefix
	Next  uint64
}

// pool hands out addresses of one block.
type pool struct{}
