package network

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// HostsFile is what a pod's hosts(5) file says.
type HostsFile struct {
	Hostname string
	// Domain is appended to the host name for its full name; "" is none.
	Domain    string
	Addresses []netip.Addr // of the pod
	Aliases   []HostAlias
	// Base, if not nil, is the host's own file, for a pod on the host's network: it takes the
	// place of the loopback entries and of the pod's own names.
	Base []byte
}

// HostAlias gives an address further names.
type HostAlias struct {
	IP    netip.Addr
	Names []string
}

const loopbackHosts = `127.0.0.1	localhost
::1	localhost ip6-localhost ip6-loopback
fe00::	ip6-localnet
fe00::	ip6-mcastprefix
fe00::1	ip6-allnodes
fe00::2	ip6-allrouters
`

// Hosts returns the content of the file. Errors are errs.Invalid.
func Hosts(h HostsFile) ([]byte, error) {
	var b bytes.Buffer
	b.WriteString("# Written by Orlop for this pod; changes are lost when it is made anew.\n")
	if h.Base != nil {
		b.Write(h.Base)
		if n := len(h.Base); n > 0 && h.Base[n-1] != '\n' {
			b.WriteByte('\n')
		}
	} else {
		b.WriteString(loopbackHosts)
		names := []string{h.Hostname}
		if h.Domain != "" {
			names = []string{h.Hostname + "." + h.Domain, h.Hostname}
		}
		for _, a := range h.Addresses {
			if err := hostLine(&b, a, names); err != nil {
				return nil, err
			}
		}
	}
	for i, a := range h.Aliases {
		if i == 0 {
			b.WriteString("\n# From the pod's hostAliases.\n")
		}
		if err := hostLine(&b, a.IP, a.Names); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), nil
}

func hostLine(b *bytes.Buffer, a netip.Addr, names []string) error {
	if !a.IsValid() {
		return errs.New(errs.Invalid, "hosts file: names %q have no address", names)
	}
	if len(names) == 0 {
		return errs.New(errs.Invalid, "hosts file: address %s has no name", a)
	}
	for _, n := range names {
		if err := plainWord(n); err != nil {
			return errs.New(errs.Invalid, "hosts file: name %q of %s: %w", n, a, err)
		}
	}
	fmt.Fprintf(b, "%s\t%s\n", a, strings.Join(names, " "))
	return nil
}

// plainWord refuses what would be read as something else in a file of words and lines.
func plainWord(s string) error {
	if s == "" {
		return fmt.Errorf("is empty")
	}
	for _, r := range s {
		if r <= ' ' || r >= 0x7f || r == '#' || r == ';' {
			return fmt.Errorf("has a character that is not of a name: %q (names in other scripts have an ASCII form, xn--…)", r)
		}
	}
	return nil
}
