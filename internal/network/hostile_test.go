package network_test

import (
	"context"
	"encoding/binary"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/network/networktest"
)

// A pod that is root in its namespace may do there what it likes; none of it may reach others.
func TestSpoofing(t *testing.T) {
	out := networktest.NewOutside(t)
	n := newNode(t)
	a, b := n.pod("a"), n.pod("b")
	for _, c := range []struct {
		what, from, to string
		arrives        bool
	}{
		{"its own address", a.V4, b.V4, true},
		{"its own address", a.V6, b.V6, true},
		{"another pod's address", b.V4, b.V4, false},
		{"another pod's address", b.V6, b.V6, false},
		{"an address of the block that nobody has", "10.88.77.77", b.V4, false},
		{"the node's address", "10.88.0.1", b.V4, false},
		{"the host's address", out.Host4, b.V4, false},
		{"the host's address", out.Host6, b.V6, false},
		{"an address from outside", "203.0.113.9", b.V4, false},
		{"an address from outside", "2001:db8:9::9", b.V6, false},
		{"loopback", "127.0.0.1", b.V4, false},
		{"the gateway's address", "169.254.1.1", b.V4, false},
	} {
		if got := sendRaw(t, a.NS, b.NS, c.from, c.to); got != c.arrives {
			t.Errorf("a packet with %s (%s): arrived is %v", c.what, c.from, got)
		}
	}
	// Services that the host has on its loopback only are not for pods.
	networktest.Serve(t, "", "udp4", "127.0.0.1:7777", "secret")
	networktest.Serve(t, "", "tcp4", "127.0.0.1:7777", "secret")
	networktest.In(t, a.NS, "ip", "addr", "flush", "dev", "lo")
	networktest.In(t, a.NS, "ip", "route", "add", "127.0.0.1", "via", "169.254.1.1", "dev", "eth0", "src", a.V4)
	if err := networktest.Do(a.NS, func() error {
		return os.WriteFile("/proc/sys/net/ipv4/conf/eth0/route_localnet", []byte("1"), 0)
	}); err != nil {
		t.Fatal(err)
	}
	for _, proto := range []string{"tcp4", "udp4"} {
		if name, _, err := networktest.Ask(a.NS, proto, "127.0.0.1:7777"); err == nil {
			t.Errorf("a pod reached %q on the host's loopback by %s", name, proto)
		}
	}
	// An address that no pod has is answered as unreachable, and not sent outside.
	if _, err := networktest.Dial(a.NS, "tcp", "10.88.99.99:1"); err == nil || !strings.Contains(err.Error(), "no route to host") && !strings.Contains(err.Error(), "unreachable") {
		t.Errorf("an address that no pod has: %v", err)
	}
}

// sendRaw sends a UDP packet with that source address from one namespace and tells whether
// it comes in at the other.
func sendRaw(t *testing.T, fromNS, toNS, from, to string) bool {
	t.Helper()
	src, dst := netip.MustParseAddr(from), netip.MustParseAddr(to)
	domain := unix.AF_INET
	if dst.Is6() {
		domain = unix.AF_INET6
	}
	var in, out int
	mark := make([]byte, 8)
	binary.BigEndian.PutUint64(mark, uint64(os.Getpid())<<32|uint64(len(from))<<8|uint64(to[len(to)-1]))
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(networktest.Do(toNS, func() (err error) {
		in, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, int(htons(unix.ETH_P_ALL)))
		return err
	}))
	defer unix.Close(in)
	must(networktest.Do(fromNS, func() (err error) {
		out, err = unix.Socket(domain, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		return err
	}))
	defer unix.Close(out)
	udp := make([]byte, 8, 16)
	binary.BigEndian.PutUint16(udp, 1111)
	binary.BigEndian.PutUint16(udp[2:], 2222)
	binary.BigEndian.PutUint16(udp[4:], 16)
	udp = append(udp, mark...)
	var pkt []byte
	if dst.Is4() {
		pkt = make([]byte, 20)
		pkt[0], pkt[8], pkt[9] = 0x45, 64, unix.IPPROTO_UDP
		binary.BigEndian.PutUint16(pkt[2:], uint16(20+len(udp)))
		copy(pkt[12:], src.AsSlice())
		copy(pkt[16:], dst.AsSlice())
		binary.BigEndian.PutUint16(pkt[10:], networktest.Checksum(pkt))
		must(unix.Sendto(out, append(pkt, udp...), 0, &unix.SockaddrInet4{Addr: dst.As4()}))
	} else {
		pkt = make([]byte, 40)
		pkt[0], pkt[6], pkt[7] = 0x60, unix.IPPROTO_UDP, 64
		binary.BigEndian.PutUint16(pkt[4:], uint16(len(udp)))
		copy(pkt[8:], src.AsSlice())
		copy(pkt[24:], dst.AsSlice())
		must(unix.Sendto(out, append(pkt, udp...), 0, &unix.SockaddrInet6{Addr: dst.As16()}))
	}
	// What was let through has arrived when the next packet of the same way has.
	end := []byte("END" + from + to)
	c, err := networktest.Dial(fromNS, "udp", netip.AddrPortFrom(dst, 3333).String())
	must(err)
	defer c.Close()
	_, err = c.Write(end)
	must(err)
	buf := make([]byte, 2048)
	must(unix.SetsockoptTimeval(in, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5}))
	arrived := false
	for {
		k, _, err := unix.Recvfrom(in, buf, 0)
		must(err)
		if strings.Contains(string(buf[:k]), string(mark)) {
			arrived = true
		}
		if strings.Contains(string(buf[:k]), string(end)) {
			return arrived
		}
	}
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

// A pod whose own configuration was spoiled from inside hurts itself only, and is mended.
func TestPodThatSpoilsItself(t *testing.T) {
	n := newNode(t)
	a, b := n.pod("a"), n.pod("b")
	networktest.In(t, a.NS, "ip", "addr", "add", b.V4+"/32", "dev", "eth0")
	networktest.In(t, a.NS, "ip", "addr", "flush", "dev", "eth0")
	networktest.In(t, a.NS, "ip", "link", "set", "eth0", "address", "02:00:00:00:00:99")
	if err := networktest.Ping("", b.V4); err != nil {
		t.Error(err)
	}
	if err := n.Reconcile(context.Background(), map[string]bool{"a": true, "b": true}); err != nil {
		t.Error(err)
	}
	for _, ip := range []string{a.V4, a.V6} {
		if err := networktest.Ping(b.NS, ip); err != nil {
			t.Error(err)
		}
	}
}

// The host is not to become a router for others because it has pods.
func TestGuardedForwarding(t *testing.T) {
	left := networktest.NewOutside(t)
	right := networktest.Namespace(t)
	networktest.In(t, "", "ip", "link", "add", "up1", "type", "veth", "peer", "name", "eth0", "netns", right0(t, right))
	t.Cleanup(func() { exec.Command("ip", "link", "del", "up1").Run() })
	for _, c := range [][]string{
		{"", "ip addr add 198.51.100.1/24 dev up1"}, {"", "ip addr add 2001:db8:5::1/64 dev up1 nodad"}, {"", "ip link set up1 up"},
		{right, "ip addr add 198.51.100.2/24 dev eth0"}, {right, "ip addr add 2001:db8:5::2/64 dev eth0 nodad"}, {right, "ip link set eth0 up"},
		{right, "ip route add default via 198.51.100.1"}, {right, "ip -6 route add default via 2001:db8:5::1"},
		{left.NS, "ip route add default via " + left.Host4}, {left.NS, "ip -6 route add default via " + left.Host6},
	} {
		networktest.In(t, c[0], strings.Fields(c[1])...)
	}
	n := newNode(t)
	a := n.pod("a")
	for _, ip := range []string{"198.51.100.2", "2001:db8:5::2"} {
		if err := networktest.Ping(left.NS, ip); err == nil {
			t.Errorf("the host forwards between others, to %s", ip)
		}
		if err := networktest.Ping(a.NS, ip); err != nil {
			t.Errorf("pod: %v", err)
		}
	}
	// Pods are reachable through the host, for those who have a route to it.
	for _, ip := range []string{a.V4, a.V6} {
		if err := networktest.Ping(left.NS, ip); err != nil {
			t.Errorf("pod from outside: %v", err)
		}
	}
	// Where the administrator makes the host a router, it is one.
	for _, f := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
		if err := os.WriteFile("/proc/sys/net/"+f, []byte("1"), 0); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.WriteFile("/proc/sys/net/"+f, []byte("0"), 0) })
	}
	if err := n.Reconcile(context.Background(), map[string]bool{"a": true}); err != nil {
		t.Fatal(err)
	}
	for _, ip := range []string{"198.51.100.2", "2001:db8:5::2"} {
		err := networktest.Ping(left.NS, ip)
		if _, none := os.Stat("/proc/sys/net/ipv6/conf/all/force_forwarding"); none != nil && strings.Contains(ip, ":") {
			// The setting of the whole host is ours there (Linux before 6.17): what the
			// administrator wants cannot be seen, and it stays guarded.
			if err == nil {
				t.Errorf("the host forwards between others, to %s", ip)
			}
		} else if err != nil {
			t.Errorf("the host is to be a router and is not: %v", err)
		}
	}
}

// right0 names a namespace for ip(8), which knows them by process: one that sleeps there.
func right0(t *testing.T, ns string) string {
	t.Helper()
	cmd := exec.Command("sleep", "60")
	if err := networktest.Do(ns, cmd.Start); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return itoa(cmd.Process.Pid)
}
