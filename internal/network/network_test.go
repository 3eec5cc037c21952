package network_test

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/orlop-io/orlop/internal/base/store"
	"github.com/orlop-io/orlop/internal/network"
	"github.com/orlop-io/orlop/internal/network/networktest"
)

func TestMain(m *testing.M) { networktest.Main(m) }

// node is a Network under test.
type node struct {
	*network.Network
	t    testing.TB
	opts network.Options
}

// newNode opens a network on the test's host; it is torn down after the test.
func newNode(t testing.TB, change ...func(*network.Options)) *node {
	t.Helper()
	dir := t.TempDir()
	n := &node{t: t, opts: network.Options{
		Instance: "orlop-test", Run: filepath.Join(dir, "run"),
		DB: openDB(t, filepath.Join(dir, "run/state.db"), store.Volatile), Durable: openDB(t, filepath.Join(dir, "state.db"), store.Durable),
		IPv4Block: netip.MustParsePrefix("10.88.0.0/16"), IPv6Block: netip.MustParsePrefix("fd6f:726c:6f70::/64"),
		Log: slog.New(slog.NewTextHandler(testLog{t}, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}}
	for _, c := range change {
		c(&n.opts)
	}
	n.open()
	t.Cleanup(func() {
		if n.Network == nil {
			return
		}
		if err := n.Teardown(context.Background()); err != nil {
			t.Error(err)
		}
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

func (n *node) open() {
	n.t.Helper()
	var err error
	if n.Network, err = network.Open(context.Background(), n.opts); err != nil {
		n.t.Fatal(err)
	}
}

// reopen is what a restarted daemon does.
func (n *node) reopen() {
	n.t.Helper()
	if err := n.Close(); err != nil {
		n.t.Fatal(err)
	}
	n.open()
}

type testLog struct{ t testing.TB }

func (l testLog) Write(b []byte) (int, error) {
	if os.Getenv("ORLOP_TEST_LOG") != "" {
		os.Stderr.Write(b)
	}
	return len(b), nil
}

func openDB(t testing.TB, path string, d store.Durability) *store.DB {
	t.Helper()
	db, err := store.Open(path, d)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// pod is an attached pod.
type pod struct {
	network.Attachment
	NS     string
	V4, V6 string
}

func (n *node) pod(id string, ports ...network.PortMapping) *pod {
	n.t.Helper()
	p := &pod{NS: networktest.Namespace(n.t)}
	n.attach(p, id, ports...)
	return p
}

func (n *node) attach(p *pod, id string, ports ...network.PortMapping) {
	n.t.Helper()
	a, err := n.Attach(context.Background(), network.Request{PodID: id, Netns: p.NS, Ports: ports})
	if err != nil {
		n.t.Fatal(err)
	}
	p.Attachment = a
	for _, addr := range a.Addresses {
		if addr.Addr().Is4() {
			p.V4 = addr.Addr().String()
		} else {
			p.V6 = addr.Addr().String()
		}
	}
}

func TestReach(t *testing.T) {
	before := networktest.State()
	t.Run("", func(t *testing.T) {
		out := networktest.NewOutside(t)
		n := newNode(t)
		a, b := n.pod("a"), n.pod("b")
		if a.MTU != 1400 {
			t.Errorf("MTU is %d, the default route's link has 1400", a.MTU)
		}
		for _, s := range []struct{ ns, name string }{{b.NS, "b"}, {"", "host"}, {out.NS, "out"}} {
			for _, proto := range []string{"tcp4", "tcp6", "udp4", "udp6"} {
				networktest.Serve(t, s.ns, proto, ":7", s.name)
			}
		}
		for _, c := range []struct{ what, ns, to4, to6, name, from4, from6 string }{
			{"pod to pod", a.NS, b.V4, b.V6, "b", a.V4, a.V6},
			{"host to pod", "", b.V4, b.V6, "b", out.Host4, out.Host6},
			{"pod to node address", a.NS, "10.88.0.1", "fd6f:726c:6f70::1", "host", a.V4, a.V6},
			{"pod to host's own address", a.NS, out.Host4, out.Host6, "host", a.V4, a.V6},
			{"pod to outside, masqueraded", a.NS, out.Other4, out.Other6, "out", out.Host4, out.Host6},
		} {
			for _, to := range []string{c.to4, c.to6} {
				want, v := c.from4, "4"
				if to == c.to6 {
					want, v = c.from6, "6"
				}
				if err := networktest.Ping(c.ns, to); err != nil {
					t.Errorf("%s: %v", c.what, err)
				}
				for _, proto := range []string{"tcp", "udp"} {
					if proto == "udp" && c.what == "pod to node address" {
						continue // an unbound socket answers by the host's first address
					}
					name, peer, err := networktest.Ask(c.ns, proto+v, netip.AddrPortFrom(netip.MustParseAddr(to), 7).String())
					if err != nil || name != c.name || peer.String() != want {
						t.Errorf("%s: %s to %s: answer of %q to %s, want %s to %s (%v)", c.what, proto, to, name, peer, c.name, want, err)
					}
				}
			}
		}
		for _, id := range []string{"a", "b"} {
			if err := n.Detach(context.Background(), id); err != nil {
				t.Error(err)
			}
		}
	})
	if after := networktest.State(); after != before {
		t.Errorf("left behind:\n--- before\n%s--- after\n%s", before, after)
	}
}

func ExamplePortMapping_String() {
	fmt.Println(network.PortMapping{HostPort: 80, PodPort: 8080, Protocol: network.TCP})
	// Output: *:80/TCP
}
