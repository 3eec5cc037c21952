package network

import "net/netip"

// HostsFile is what a pod's hosts(5) file says.
type HostsFile struct {
	Hostname string
	// Domain is appended to the host name for its full name; "" is none.
	Domain    string
	Addresses []netip.Addr // of the pod
	Aliases   []HostAlias
	// Base, if not nil, is the host's own file, for a pod on the host's network: it takes the
	// place of the loopback entries, and of the pod's own name.
	Base []byte
}

// HostAlias gives an address further names.
type HostAlias struct {
	IP    netip.Addr
	Names []string
}

// Hosts returns the content of the file. Errors are errs.Invalid.
func Hosts(h HostsFile) ([]byte, error) { return nil, errNotYet }
