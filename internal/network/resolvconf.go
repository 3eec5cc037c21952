package network

import "net/netip"

// DNS is what a pod asks of its resolver configuration.
type DNS struct {
	// Policy is Default or ClusterFirst (the host's, with what follows merged over it), or
	// None (only what follows). "" is Default.
	Policy   string
	Servers  []netip.Addr
	Searches []string
	Options  []string // name or name:value
}

// ResolvConf returns the pod's resolv.conf(5). host is the content of the host's
// (HostResolvConf finds it). Warnings tell what was left out and why. Errors are errs.Invalid.
func ResolvConf(d DNS, host []byte) (conf []byte, warnings []string, err error) {
	return nil, nil, errNotYet
}

// HostResolvConf returns the content of the host's resolver configuration that is of use to
// a pod: where /etc/resolv.conf names only a resolver on a loopback address, that of
// systemd-resolved's upstream servers, if there is one.
func HostResolvConf() ([]byte, error) { return nil, errNotYet }
