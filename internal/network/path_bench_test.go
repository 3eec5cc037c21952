package network_test

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/orlop-io/orlop/internal/network"
	"github.com/orlop-io/orlop/internal/network/networktest"
)

// Round trips of one byte, against those over a bare veth pair between two namespaces.
// docs/design/network.md has the ratios.
func BenchmarkRoundTrips(b *testing.B) {
	out := networktest.NewOutside(b)
	n := newNode(b)
	server := n.pod("server", network.PortMapping{HostPort: 8080, PodPort: 80})
	client := n.pod("client")
	networktest.Serve(b, server.NS, "tcp", ":80", "s")
	for i := range 2000 { // host ports that others have cost nothing
		if i%200 == 0 {
			var ports []network.PortMapping
			for j := range 200 {
				ports = append(ports, network.PortMapping{HostPort: uint16(20000 + i + j), PodPort: 1})
			}
			n.pod(fmt.Sprint("many", i), ports...)
		}
	}
	left, right := rawPair(b)
	networktest.Serve(b, right, "tcp", ":80", "s")

	trip := func(b *testing.B, c net.Conn) {
		buf := make([]byte, 64)
		for range b.N {
			if _, err := c.Write([]byte("?")); err != nil {
				b.Fatal(err)
			}
			if _, err := c.Read(buf); err != nil {
				b.Fatal(err)
			}
		}
	}
	for _, c := range []struct{ name, ns, to string }{
		{"veth", left, "10.1.0.2:80"},
		{"pod-pod", client.NS, netip.AddrPortFrom(netip.MustParseAddr(server.V4), 80).String()},
		{"pod-pod-IPv6", client.NS, netip.AddrPortFrom(netip.MustParseAddr(server.V6), 80).String()},
		{"outside-host-port", out.NS, out.Host4 + ":8080"},
	} {
		b.Run(c.name, func(b *testing.B) {
			conn, err := networktest.Dial(c.ns, "tcp", c.to)
			if err != nil {
				b.Fatal(err)
			}
			defer conn.Close()
			trip(b, conn)
		})
		b.Run(c.name+"-connect", func(b *testing.B) {
			for range b.N {
				conn, err := networktest.Dial(c.ns, "tcp", c.to)
				if err != nil {
					b.Fatal(err)
				}
				conn.(*net.TCPConn).SetLinger(0) // ports are not used up
				buf := make([]byte, 64)
				conn.Write([]byte("?"))
				if _, err := conn.Read(buf); err != nil {
					b.Fatal(err)
				}
				conn.Close()
			}
		})
	}
}

func rawPair(b *testing.B) (left, right string) {
	b.Helper()
	left, right = networktest.Namespace(b), networktest.Namespace(b)
	f, err := os.Open(right)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	err = networktest.Do(left, func() error {
		v := netlink.NewVeth(netlink.LinkAttrs{Name: "eth0", TxQLen: -1, NumTxQueues: 1, NumRxQueues: 1})
		v.PeerName, v.PeerNamespace = "eth0", netlink.NsFd(int(f.Fd()))
		h, err := netlink.NewHandle()
		if err != nil {
			return err
		}
		defer h.Close()
		return h.LinkAdd(v)
	})
	if err != nil {
		b.Fatal(err)
	}
	for ns, ip := range map[string]string{left: "10.1.0.1/24", right: "10.1.0.2/24"} {
		networktest.In(b, ns, "ip", "addr", "add", ip, "dev", "eth0")
		networktest.In(b, ns, "ip", "link", "set", "eth0", "up")
	}
	return left, right
}
