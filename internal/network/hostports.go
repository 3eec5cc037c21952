package network

import (
	"bufio"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/network/dataplane"
)

// validPorts returns the mappings with defaults filled in, or says what is wrong with them.
func validPorts(ports []PortMapping) ([]PortMapping, error) {
	var out []PortMapping
	for _, m := range ports {
		if m.Protocol == "" {
			m.Protocol = TCP
		}
		m.HostIP = m.HostIP.Unmap()
		switch {
		case m.HostPort == 0:
			return nil, errs.New(errs.Invalid, "host port 0 of pod port %d: give a port from 1 to 65535", m.PodPort)
		case m.PodPort == 0:
			return nil, errs.New(errs.Invalid, "pod port 0 of host port %d: give a port from 1 to 65535", m.HostPort)
		case m.Protocol.Number() == 0:
			return nil, errs.New(errs.Invalid, "protocol %q of host port %d: give TCP, UDP or SCTP", m.Protocol, m.HostPort)
		case m.HostIP == netip.IPv6Loopback():
			return nil, errs.New(errs.Unsupported, "host port %d at ::1: the kernel cannot lead ::1 to a pod; give 127.0.0.1", m.HostPort)
		case m.HostIP.Zone() != "" || m.HostIP.IsLinkLocalUnicast() && m.HostIP.Is6():
			return nil, errs.New(errs.Invalid, "host port %d at %s: give an address that is not of one link only", m.HostPort, m.HostIP)
		case m.HostIP.IsMulticast():
			return nil, errs.New(errs.Invalid, "host port %d at %s: a multicast address is not the host's own", m.HostPort, m.HostIP)
		}
		for _, other := range out {
			if m == other {
				return nil, errs.New(errs.Invalid, "host port %s is given twice", m)
			}
			if collide(m, other) && m.HostIP == other.HostIP {
				return nil, errs.New(errs.Invalid, "host port %s leads to two ports of the pod, %d and %d", m, other.PodPort, m.PodPort)
			}
		}
		out = append(out, m)
	}
	return out, nil
}

// sides are the addresses of the host at which a mapping is, one per family, as the
// dataplane wants them.
func sides(m PortMapping) []netip.AddrPort {
	if m.HostIP.IsValid() {
		return []netip.AddrPort{netip.AddrPortFrom(m.HostIP, m.HostPort)}
	}
	return []netip.AddrPort{netip.AddrPortFrom(netip.IPv4Unspecified(), m.HostPort), netip.AddrPortFrom(netip.IPv6Unspecified(), m.HostPort)}
}

// collide tells whether two mappings want the same port of the host: at one address both,
// or one of them at every address of the family.
func collide(a, b PortMapping) bool {
	if a.HostPort != b.HostPort || a.Protocol != b.Protocol {
		return false
	}
	for _, x := range sides(a) {
		for _, y := range sides(b) {
			if x.Addr().Is4() == y.Addr().Is4() && (x == y || x.Addr().IsUnspecified() || y.Addr().IsUnspecified()) {
				return true
			}
		}
	}
	return false
}

func planePorts(ports []PortMapping, addresses []netip.Addr) (out []dataplane.Port) {
	for _, m := range ports {
		for _, at := range sides(m) {
			for _, a := range addresses {
				if a.Is4() == at.Addr().Is4() {
					out = append(out, dataplane.Port{Protocol: m.Protocol, Host: at, PodPort: m.PodPort})
				}
			}
		}
	}
	return out
}

// heldByHost says who of the host itself listens on the port, as an error. Translation goes
// before sockets, so without this check a service of the host would just fall silent.
func heldByHost(m PortMapping) error {
	for _, at := range sides(m) {
		err := probe(m.Protocol, at)
		if err == nil {
			continue
		}
		if errors.Is(err, unix.EADDRINUSE) {
			if listening, lerr := listens(m.Protocol, at.Port()); lerr == nil && !listening {
				continue // an outgoing connection happens to have the port
			}
			return errs.New(errs.InUse, "host port %s: a process of this host listens there; stop it (ss -lp 'sport = :%d' shows it) or give the pod another host port", m, m.HostPort)
		}
		if errors.Is(err, unix.EADDRNOTAVAIL) {
			return errs.New(errs.Invalid, "host port %s: %s is no address of this host", m, at.Addr())
		}
		return fmt.Errorf("look whether host port %s is free: %w", m, err)
	}
	return nil
}

// probe binds a socket to the address and closes it again. A protocol that the host has not
// cannot be in use.
func probe(proto Protocol, at netip.AddrPort) error {
	family, kind := unix.AF_INET, unix.SOCK_STREAM
	var addr unix.Sockaddr = &unix.SockaddrInet4{Port: int(at.Port()), Addr: [4]byte(at.Addr().AsSlice()[:4])}
	if at.Addr().Is6() {
		family, addr = unix.AF_INET6, &unix.SockaddrInet6{Port: int(at.Port()), Addr: at.Addr().As16()}
	}
	if proto == UDP {
		kind = unix.SOCK_DGRAM
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, int(proto.Number()))
	if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.ESOCKTNOSUPPORT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if family == unix.AF_INET6 {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1); err != nil {
			return err
		}
	}
	if proto == TCP {
		// Connections that have ended (TIME_WAIT) do not count, only who listens does.
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
			return err
		}
	}
	return unix.Bind(fd, addr)
}

// listens tells whether any socket of this network namespace waits for others at the port.
func listens(proto Protocol, port uint16) (bool, error) {
	files, state := []string{"tcp", "tcp6"}, "0A" // TCP_LISTEN
	if proto == UDP {
		files, state = []string{"udp", "udp6"}, "07" // not connected
	}
	for _, name := range files {
		f, err := os.Open("/proc/thread-self/net/" + name)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return false, err
		}
		found := false
		sc := bufio.NewScanner(f)
		for sc.Scan() { // sl local_address rem_address st …
			fields := strings.Fields(sc.Text())
			if len(fields) < 4 || fields[3] != state {
				continue
			}
			_, hex, _ := strings.Cut(fields[1], ":")
			if p, err := strconv.ParseUint(hex, 16, 16); err == nil && uint16(p) == port {
				found = true
			}
		}
		err = sc.Err()
		f.Close()
		if found || err != nil {
			return found, err
		}
	}
	return false, nil
}
