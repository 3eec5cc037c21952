package network_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/network"
	"github.com/orlop-io/orlop/internal/network/networktest"
)

func TestHostPorts(t *testing.T) {
	out := networktest.NewOutside(t)
	n := newNode(t)
	host4 := netip.MustParseAddr(out.Host4)
	a := n.pod("a",
		network.PortMapping{HostPort: 8080, PodPort: 80},
		network.PortMapping{HostPort: 5353, PodPort: 53, Protocol: network.UDP},
		network.PortMapping{HostPort: 8081, PodPort: 81, HostIP: host4},
		network.PortMapping{HostPort: 8082, PodPort: 80, HostIP: netip.MustParseAddr("127.0.0.1")},
		network.PortMapping{HostPort: 8083, PodPort: 80, HostIP: netip.IPv4Unspecified()},
		network.PortMapping{HostPort: 8084, PodPort: 80, HostIP: netip.IPv6Unspecified()})
	b := n.pod("b")
	for _, port := range []string{"80", "81"} {
		networktest.Serve(t, a.NS, "tcp", ":"+port, "a:"+port)
	}
	networktest.Serve(t, a.NS, "udp4", ":53", "a:53")
	networktest.Serve(t, a.NS, "udp6", ":53", "a:53")

	const none = "none"
	for _, c := range []struct{ what, ns, network, to, name, from string }{
		{"from outside", out.NS, "tcp", out.Host4 + ":8080", "a:80", out.Other4},
		{"from outside", out.NS, "tcp", "[" + out.Host6 + "]:8080", "a:80", out.Other6},
		{"from outside", out.NS, "udp", out.Host4 + ":5353", "a:53", out.Other4},
		{"from outside", out.NS, "udp", "[" + out.Host6 + "]:5353", "a:53", out.Other6},
		{"from outside, one address", out.NS, "tcp", out.Host4 + ":8081", "a:81", out.Other4},
		{"from outside, other family", out.NS, "tcp", "[" + out.Host6 + "]:8081", none, ""},
		{"from outside, loopback only", out.NS, "tcp", out.Host4 + ":8082", none, ""},
		{"from outside, IPv4 only", out.NS, "tcp", out.Host4 + ":8083", "a:80", out.Other4},
		{"from outside, IPv4 only", out.NS, "tcp", "[" + out.Host6 + "]:8083", none, ""},
		{"from outside, IPv6 only", out.NS, "tcp", out.Host4 + ":8084", none, ""},
		{"from outside, IPv6 only", out.NS, "tcp", "[" + out.Host6 + "]:8084", "a:80", out.Other6},
		{"from outside, other protocol", out.NS, "tcp", out.Host4 + ":5353", none, ""},
		{"from the host by loopback", "", "tcp", "127.0.0.1:8080", "a:80", "10.88.0.1"},
		{"from the host by loopback", "", "udp", "127.0.0.1:5353", "a:53", "10.88.0.1"},
		{"from the host by loopback only", "", "tcp", "127.0.0.1:8082", "a:80", "10.88.0.1"},
		{"from the host by another of loopback", "", "tcp", "127.1.2.3:8080", "a:80", "10.88.0.1"},
		{"from the host by ::1, which is refused", "", "tcp", "[::1]:8080", none, ""},
		{"from the host by its address", "", "tcp", out.Host4 + ":8080", "a:80", out.Host4},
		{"from the host by its address", "", "tcp", "[" + out.Host6 + "]:8080", "a:80", out.Host6},
		{"from the host by its address", "", "udp", out.Host4 + ":5353", "a:53", out.Host4},
		{"from the host by the node address", "", "tcp", "10.88.0.1:8080", "a:80", "10.88.0.1"},
		{"from another pod", b.NS, "tcp", out.Host4 + ":8080", "a:80", b.V4},
		{"from another pod", b.NS, "tcp", "[" + out.Host6 + "]:8080", "a:80", b.V6},
		{"from another pod, node address", b.NS, "udp", "10.88.0.1:5353", "a:53", b.V4},
		{"from the pod itself", a.NS, "tcp", out.Host4 + ":8080", "a:80", "10.88.0.1"},
		{"from the pod itself", a.NS, "tcp", "[" + out.Host6 + "]:8080", "a:80", "fd6f:726c:6f70::1"},
		{"from the pod itself", a.NS, "udp", "10.88.0.1:5353", "a:53", "10.88.0.1"},
		{"from another pod to the host's loopback", b.NS, "tcp", "127.0.0.1:8082", none, ""},
	} {
		name, peer, err := networktest.Ask(c.ns, c.network, c.to)
		if c.name == none {
			if err == nil || !networktest.Unanswered(err) {
				t.Errorf("%s %s %s: answered by %q, %v", c.what, c.network, c.to, name, err)
			}
			continue
		}
		if err != nil || name != c.name || peer.String() != c.from {
			t.Errorf("%s %s %s: answer of %q to %s, want %s to %s (%v)", c.what, c.network, c.to, name, peer, c.name, c.from, err)
		}
	}

	if _, _, err := networktest.Ask("", "tcp", "[::1]:8080"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("::1 is not refused at once, so that clients go on to 127.0.0.1: %v", err)
	}

	// A UDP sender that never stops must follow the port to its next holder.
	conn, err := networktest.Dial(out.NS, "udp", out.Host4+":5353")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if name, _, err := networktest.AskOn(conn); err != nil || name != "a:53" {
		t.Fatalf("answer of %q, %v", name, err)
	}
	if err := n.Detach(context.Background(), "a"); err != nil {
		t.Fatal(err)
	}
	networktest.AskOn(conn) // refused, and a flow to the host itself comes of it
	c := n.pod("c", network.PortMapping{HostPort: 5353, PodPort: 53, Protocol: network.UDP})
	networktest.Serve(t, c.NS, "udp4", ":53", "c:53")
	if name, _, err := networktest.AskOn(conn); err != nil || name != "c:53" {
		t.Errorf("after the port went to another pod: answer of %q, %v", name, err)
	}
	if _, _, err := networktest.Ask(out.NS, "tcp", out.Host4+":8080"); err == nil {
		t.Error("the port of a detached pod answers")
	}
}

func TestHostPortConflicts(t *testing.T) {
	out := networktest.NewOutside(t)
	n := newNode(t)
	ctx := context.Background()
	host4 := netip.MustParseAddr(out.Host4)
	n.pod("holder", network.PortMapping{HostPort: 8080, PodPort: 80}, network.PortMapping{HostPort: 8081, PodPort: 80, HostIP: host4})
	networktest.Serve(t, "", "tcp", "127.0.0.1:9000", "host")
	networktest.Serve(t, "", "udp", ":9001", "host")
	ns := networktest.Namespace(t)
	loop := netip.MustParseAddr("127.0.0.1")
	for _, c := range []struct {
		port  network.PortMapping
		kind  *errs.Kind
		words string
	}{
		{network.PortMapping{HostPort: 8080, PodPort: 1}, errs.InUse, "held by pod holder"},
		{network.PortMapping{HostPort: 8080, PodPort: 1, HostIP: host4}, errs.InUse, "held by pod holder"},
		{network.PortMapping{HostPort: 8081, PodPort: 1}, errs.InUse, "held by pod holder"},
		{network.PortMapping{HostPort: 8081, PodPort: 1, HostIP: loop}, nil, ""},
		{network.PortMapping{HostPort: 8081, PodPort: 1, HostIP: netip.IPv6Unspecified()}, nil, ""},
		{network.PortMapping{HostPort: 8080, PodPort: 1, Protocol: network.UDP}, nil, ""},
		{network.PortMapping{HostPort: 9000, PodPort: 1}, errs.InUse, "a process of this host listens"},
		{network.PortMapping{HostPort: 9000, PodPort: 1, HostIP: host4}, nil, ""},
		{network.PortMapping{HostPort: 9001, PodPort: 1, Protocol: network.UDP}, errs.InUse, "a process of this host listens"},
		{network.PortMapping{HostPort: 1, PodPort: 1, HostIP: netip.MustParseAddr("198.51.100.1")}, errs.Invalid, "no address of this host"},
		{network.PortMapping{HostPort: 1, PodPort: 1, HostIP: netip.IPv6Loopback()}, errs.Unsupported, "127.0.0.1"},
		{network.PortMapping{HostPort: 0, PodPort: 1}, errs.Invalid, "host port 0"},
		{network.PortMapping{HostPort: 1, PodPort: 0}, errs.Invalid, "pod port 0"},
		{network.PortMapping{HostPort: 1, PodPort: 1, Protocol: "ICMP"}, errs.Invalid, "TCP, UDP or SCTP"},
	} {
		_, err := n.Attach(ctx, network.Request{PodID: "other", Netns: ns, Ports: []network.PortMapping{c.port}})
		if c.kind == nil {
			if err != nil {
				t.Errorf("%v: %v", c.port, err)
			}
			if err := n.Detach(ctx, "other"); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.words) {
			t.Errorf("%v: %v, want %v with %q", c.port, err, c.kind, c.words)
		}
	}
	if _, err := n.Attach(ctx, network.Request{PodID: "other", Netns: ns, Ports: []network.PortMapping{{HostPort: 1, PodPort: 1}, {HostPort: 1, PodPort: 2}}}); !errors.Is(err, errs.Invalid) {
		t.Errorf("one host port for two pod ports: %v", err)
	}
	// A connection of the host that has the port by chance is no conflict, nor is one that has ended.
	networktest.Serve(t, out.NS, "tcp", ":99", "out")
	conn, err := networktest.Dial("", "tcp", out.Other4+":99")
	if err != nil {
		t.Fatal(err)
	}
	chance := uint16(conn.LocalAddr().(*net.TCPAddr).Port)
	if _, err := n.Attach(ctx, network.Request{PodID: "other", Netns: ns, Ports: []network.PortMapping{{HostPort: chance, PodPort: 1}}}); err != nil {
		t.Errorf("host port of an outgoing connection: %v", err)
	}
	conn.Close()
	if all := n.List(); len(all) != 2 {
		t.Errorf("%d pods are listed, want 2: %+v", len(all), all)
	}
}

// This machine may have no SCTP sockets, so the packets are made by hand: an INIT from
// outside must come to the pod, and the pod's answer back from the host's address.
func TestHostPortSCTP(t *testing.T) {
	out := networktest.NewOutside(t)
	n := newNode(t)
	a := n.pod("a", network.PortMapping{HostPort: 3868, PodPort: 3869, Protocol: network.SCTP})
	pod, other := rawSCTP(t, a.NS), rawSCTP(t, out.NS)

	send := func(fd int, to string, src, dst uint16, tag uint32, kind byte) {
		t.Helper()
		addr := unix.SockaddrInet4{Addr: netip.MustParseAddr(to).As4()}
		if err := unix.Sendto(fd, sctpInit(src, dst, tag, kind), 0, &addr); err != nil {
			t.Fatal(err)
		}
	}
	receive := func(fd int) (from netip.Addr, src, dst uint16) {
		t.Helper()
		buf := make([]byte, 1500)
		k, _, err := unix.Recvfrom(fd, buf, 0)
		if err != nil {
			t.Fatalf("nothing came: %v", err)
		}
		ihl := int(buf[0]&15) * 4
		if k < ihl+4 {
			t.Fatalf("%d bytes came", k)
		}
		return netip.AddrFrom4([4]byte(buf[12:16])), binary.BigEndian.Uint16(buf[ihl:]), binary.BigEndian.Uint16(buf[ihl+2:])
	}
	send(other, out.Host4, 5000, 3868, 0, 1)
	from, src, dst := receive(pod)
	if from.String() != out.Other4 || src != 5000 || dst != 3869 {
		t.Errorf("the pod got a packet from %s:%d to port %d", from, src, dst)
	}
	send(pod, out.Other4, 3869, 5000, 1, 2)
	if from, src, dst := receive(other); from.String() != out.Host4 || src != 3868 || dst != 5000 {
		t.Errorf("outside got a packet from %s:%d to port %d", from, src, dst)
	}
}

func rawSCTP(t *testing.T, ns string) (fd int) {
	t.Helper()
	err := networktest.Do(ns, func() (err error) {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_SCTP)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 2}); err != nil {
		t.Fatal(err)
	}
	return fd
}

// sctpInit makes an INIT (1) or INIT ACK (2) chunk (RFC 9260, section 3.3.2).
func sctpInit(src, dst uint16, tag uint32, kind byte) []byte {
	b := make([]byte, 12+20)
	binary.BigEndian.PutUint16(b, src)
	binary.BigEndian.PutUint16(b[2:], dst)
	binary.BigEndian.PutUint32(b[4:], tag)
	b[12] = kind
	binary.BigEndian.PutUint16(b[14:], 20)
	binary.BigEndian.PutUint32(b[16:], 1) // initiate tag
	binary.BigEndian.PutUint32(b[20:], 65536)
	binary.BigEndian.PutUint16(b[24:], 1)
	binary.BigEndian.PutUint16(b[26:], 1)
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return b
}

// Ports cost nothing per packet, and many in one pod are one transaction.
func TestManyHostPorts(t *testing.T) {
	out := networktest.NewOutside(t)
	n := newNode(t)
	var ports []network.PortMapping
	for i := range 1000 {
		ports = append(ports, network.PortMapping{HostPort: uint16(20000 + i), PodPort: uint16(1000 + i)})
	}
	start := time.Now()
	a := n.pod("a", ports...)
	t.Logf("attach with 1000 host ports: %v", time.Since(start))
	networktest.Serve(t, a.NS, "tcp", ":1999", "a")
	if name, _, err := networktest.Ask(out.NS, "tcp", fmt.Sprint(out.Host4, ":20999")); err != nil || name != "a" {
		t.Errorf("answer of %q, %v", name, err)
	}
	if err := n.Reconcile(context.Background(), map[string]bool{"a": true}); err != nil {
		t.Error(err)
	}
	if err := n.Detach(context.Background(), "a"); err != nil {
		t.Error(err)
	}
}
