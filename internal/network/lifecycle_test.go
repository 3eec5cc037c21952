package network_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/network"
	"github.com/orlop-io/orlop/internal/network/networktest"
)

func itoa(n int) string { return strconv.Itoa(n) }

func TestAttachAgain(t *testing.T) {
	n := newNode(t)
	ctx := context.Background()
	a := n.pod("a", network.PortMapping{HostPort: 8080, PodPort: 80})
	conn := networktest.State()
	again := &pod{NS: a.NS}
	n.attach(again, "a", network.PortMapping{HostPort: 8080, PodPort: 80})
	if !reflect.DeepEqual(again.Attachment, a.Attachment) {
		t.Errorf("attached again: %+v, was %+v", again.Attachment, a.Attachment)
	}
	if s := networktest.State(); s != conn {
		t.Errorf("attaching again changed something:\n%s\n---\n%s", conn, s)
	}
	n.reopen()
	if s := networktest.State(); s != conn {
		t.Errorf("a restart changed something:\n%s\n---\n%s", conn, s)
	}
	n.attach(again, "a", network.PortMapping{HostPort: 8080, PodPort: 80})
	if !reflect.DeepEqual(again.Attachment, a.Attachment) {
		t.Errorf("attached again after a restart: %+v, was %+v", again.Attachment, a.Attachment)
	}
	for _, r := range []network.Request{
		{PodID: "a", Netns: a.NS}, {PodID: "a", Netns: networktest.Namespace(t), Ports: a.Ports}, {PodID: "a", Netns: a.NS, Interface: "net1", Ports: a.Ports},
	} {
		if _, err := n.Attach(ctx, r); !errors.Is(err, errs.AlreadyExists) {
			t.Errorf("%+v: %v", r, err)
		}
	}
	if all := n.List(); len(all) != 1 || !reflect.DeepEqual(all[0], a.Attachment) {
		t.Errorf("listed: %+v", all)
	}
	for range 2 {
		if err := n.Detach(ctx, "a"); err != nil {
			t.Error(err)
		}
	}
	// The same pod at once again, while its device is being removed.
	n.attach(again, "a")
	if err := networktest.Ping("", again.V4); err != nil {
		t.Error(err)
	}
}

func TestBadRequests(t *testing.T) {
	n := newNode(t)
	ctx := context.Background()
	state := networktest.State()
	taken := networktest.Namespace(t)
	networktest.In(t, taken, "ip", "link", "add", "eth0", "type", "bridge")
	file := t.TempDir() + "/file"
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		r    network.Request
		kind *errs.Kind
	}{
		{network.Request{}, errs.Invalid},
		{network.Request{PodID: "a"}, errs.Invalid},
		{network.Request{PodID: "a", Netns: "/nowhere"}, errs.NotFound},
		{network.Request{PodID: "a", Netns: file}, errs.Internal},
		{network.Request{PodID: "a", Netns: taken}, errs.AlreadyExists},
		{network.Request{PodID: "a", Netns: taken, Interface: "lo"}, errs.Invalid},
		{network.Request{PodID: "a", Netns: taken, Interface: strings.Repeat("x", 16)}, errs.Invalid},
		{network.Request{PodID: "a", Netns: taken, Interface: "a/b"}, errs.Internal},
	} {
		_, err := n.Attach(ctx, c.r)
		if errs.KindOf(err) != c.kind {
			t.Errorf("%+v: %v, want %v", c.r, err, c.kind)
		}
	}
	if len(n.List()) != 0 || networktest.State() != state {
		t.Errorf("left behind:\n%s", networktest.State())
	}
}

func TestBlocks(t *testing.T) {
	out := networktest.NewOutside(t)
	_ = out
	open := func(change func(*network.Options)) error {
		dir := t.TempDir()
		n := newNode(t)
		o := n.opts
		if err := n.Teardown(context.Background()); err != nil {
			t.Fatal(err)
		}
		if err := n.Close(); err != nil {
			t.Fatal(err)
		}
		n.Network = nil
		o.Run = dir
		change(&o)
		n2, err := network.Open(context.Background(), o)
		if err == nil {
			err2 := n2.Teardown(context.Background())
			n2.Close()
			if err2 != nil {
				t.Error(err2)
			}
		}
		return err
	}
	p := netip.MustParsePrefix
	for _, c := range []struct {
		v4, v6 netip.Prefix
		kind   *errs.Kind
		words  string
	}{
		{netip.Prefix{}, netip.Prefix{}, errs.Invalid, "set network.ipv4Block"},
		{p("fd00::/64"), netip.Prefix{}, errs.Invalid, "not of IPv4"},
		{p("10.0.0.0/31"), netip.Prefix{}, errs.Invalid, "too small"},
		{p("192.0.2.0/24"), netip.Prefix{}, errs.FailedPrecondition, "overlaps the route to 192.0.2.0/24"},
		{p("192.0.0.0/16"), netip.Prefix{}, errs.FailedPrecondition, "network.ipv4Block"},
		{p("10.1.0.0/16"), p("2001:db8::/64"), errs.FailedPrecondition, "network.ipv6Block"},
		{p("10.1.0.0/16"), netip.Prefix{}, nil, ""},
		{netip.Prefix{}, p("fd00::/64"), nil, ""},
	} {
		err := open(func(o *network.Options) { o.IPv4Block, o.IPv6Block = c.v4, c.v6 })
		if c.kind == nil && err != nil || c.kind != nil && (!errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.words)) {
			t.Errorf("%v %v: %v, want %v with %q", c.v4, c.v6, err, c.kind, c.words)
		}
	}
}

func TestExhaustedBlock(t *testing.T) {
	n := newNode(t, func(o *network.Options) {
		o.IPv4Block, o.IPv6Block = netip.MustParsePrefix("10.88.0.0/29"), netip.Prefix{}
	})
	ctx := context.Background()
	seen := map[string]bool{}
	for i := range 5 { // .2 to .6
		seen[n.pod(fmt.Sprint("p", i)).V4] = true
	}
	if len(seen) != 5 {
		t.Errorf("addresses: %v", seen)
	}
	_, err := n.Attach(ctx, network.Request{PodID: "more", Netns: networktest.Namespace(t)})
	if !errors.Is(err, errs.ResourceExhausted) || !strings.Contains(err.Error(), "10.88.0.0/29") {
		t.Errorf("a sixth pod: %v", err)
	}
	if err := n.Detach(ctx, "p1"); err != nil {
		t.Fatal(err)
	}
	if err := n.Settle(ctx); err != nil {
		t.Fatal(err)
	}
	if p := n.pod("again"); p.V4 != "10.88.0.3" {
		t.Errorf("the only free address is 10.88.0.3, not %s", p.V4)
	}
}

// An address is not given out again before all others have been, also over a restart.
func TestAddressesAreNotReusedAtOnce(t *testing.T) {
	n := newNode(t, func(o *network.Options) { o.IPv4Block = netip.MustParsePrefix("10.88.0.0/28") })
	last := map[string]int{}
	for i := range 20 {
		id := fmt.Sprint("p", i)
		p := n.pod(id)
		if j, again := last[p.V4]; again && i-j < 13 {
			t.Errorf("%s was given out for pod %d and then pod %d", p.V4, j, i)
		}
		last[p.V4] = i
		if err := n.Detach(context.Background(), id); err != nil {
			t.Fatal(err)
		}
		if i%7 == 6 {
			n.reopen()
		}
	}
	if len(last) != 13 {
		t.Errorf("%d addresses were used, not 13", len(last))
	}
}

func TestReconcileRepairs(t *testing.T) {
	out := networktest.NewOutside(t)
	n := newNode(t)
	ctx := context.Background()
	a := n.pod("a", network.PortMapping{HostPort: 8080, PodPort: 80})
	networktest.Serve(t, a.NS, "tcp", ":80", "a")
	networktest.Serve(t, out.NS, "tcp", ":80", "out")
	live := map[string]bool{"a": true}
	for _, cmd := range []string{
		"nft flush ruleset",
		"nft delete table inet orlop-test",
		"nft flush table inet orlop-test",
		"nft flush map inet orlop-test ports4",
		"nft flush chain inet orlop-test leaving",
		"nft add element inet orlop-test ports4 { tcp . 1234 : 10.88.0.9 . 80 }",
		"ip route del " + a.V4,
		"ip -6 route del " + a.V6,
		"ip neigh del " + a.V4 + " dev " + a.HostInterface,
		"ip link set " + a.HostInterface + " down",
		"ip link del " + a.HostInterface,
		"ip addr del 10.88.0.1/32 dev lo",
		"ip route del unreachable 10.88.0.0/16",
		"sysctl -q -w net.ipv4.conf.up0.forwarding=0",
		"sysctl -q -w net.ipv4.ip_forward=0",
		"@ip addr flush dev eth0",
		"@ip route del default",
		"@ip -6 route flush table main",
		"@ip link set eth0 down",
		"@ip neigh flush all nud permanent",
	} {
		ns := ""
		if c, ok := strings.CutPrefix(cmd, "@"); ok {
			ns, cmd = a.NS, c
		}
		want := networktest.State()
		networktest.In(t, ns, strings.Fields(cmd)...)
		if err := n.Reconcile(ctx, live); err != nil {
			t.Fatalf("after %s: %v", cmd, err)
		}
		for _, ip := range []string{a.V4, a.V6} {
			if err := networktest.Ping("", ip); err != nil {
				t.Errorf("after %s: %v", cmd, err)
			}
		}
		for _, to := range []string{out.Host4 + ":8080", "[" + out.Host6 + "]:8080"} {
			if name, _, err := networktest.Ask(out.NS, "tcp", to); err != nil || name != "a" {
				t.Errorf("after %s: answer of %q at %s, %v", cmd, name, to, err)
			}
		}
		if name, _, err := networktest.Ask(a.NS, "tcp", out.Other4+":80"); err != nil || name != "out" {
			t.Errorf("after %s: outside answers %q, %v", cmd, name, err)
		}
		if name, _, err := networktest.Ask("", "tcp", "127.0.0.1:8080"); err != nil || name != "a" {
			t.Errorf("after %s: 127.0.0.1 answers %q, %v", cmd, name, err)
		}
		if !strings.HasPrefix(cmd, "ip link del") && !strings.Contains(cmd, "link set") {
			if got := networktest.State(); sortLines(got) != sortLines(want) {
				t.Errorf("after %s not as before:\n%s\n---\n%s", cmd, want, got)
			}
		}
	}
	// What is right is left alone: connections go on over a Reconcile.
	conn, err := networktest.Dial(out.NS, "tcp", out.Host4+":8080")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := n.Reconcile(ctx, live); err != nil {
		t.Fatal(err)
	}
	if name, _, err := networktest.AskOn(conn); err != nil || name != "a" {
		t.Errorf("a connection over Reconcile: %q, %v", name, err)
	}
	// A pod that is not live goes, with everything.
	if err := n.Reconcile(ctx, nil); err != nil {
		t.Fatal(err)
	}
	if len(n.List()) != 0 || strings.Contains(networktest.State(), a.HostInterface) || n.Removing() != 0 {
		t.Errorf("left of a pod that is not live:\n%s", networktest.State())
	}
}

func sortLines(s string) string {
	lines := strings.Split(s, "\n")
	var keep []string
	for _, l := range lines {
		if strings.Contains(l, "handle") || strings.Contains(l, "counter packets") {
			continue
		}
		keep = append(keep, strings.TrimSpace(l))
	}
	slices.Sort(keep)
	return strings.Join(keep, "\n")
}

// A live pod whose namespace is gone does not keep others from being repaired.
func TestReconcileWithLostNamespace(t *testing.T) {
	n := newNode(t)
	a := n.pod("a")
	dir := t.TempDir() + "/gone"
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	t.Run("", func(t *testing.T) {
		m := *n
		m.t = t
		m.pod("b")
	})
	networktest.In(t, "", "ip", "route", "del", a.V4)
	if err := n.Reconcile(context.Background(), map[string]bool{"a": true, "b": true}); err != nil {
		t.Error(err)
	}
	if err := networktest.Ping("", a.V4); err != nil {
		t.Error(err)
	}
	if err := n.Detach(context.Background(), "b"); err != nil {
		t.Error(err)
	}
}

// Two instances on one host do not see each other.
func TestSideBySide(t *testing.T) {
	out := networktest.NewOutside(t)
	one := newNode(t)
	networktest.In(t, "", "nft", "add table inet foreign; add chain inet foreign c { type filter hook forward priority 0; }; add rule inet foreign c counter")
	t.Cleanup(func() { networktest.Try("", "nft", "delete", "table", "inet", "foreign") })
	two := newNode(t, func(o *network.Options) {
		o.Instance, o.IPv4Block, o.IPv6Block = "orlop-two", netip.MustParsePrefix("10.99.0.0/16"), netip.MustParsePrefix("fd99::/64")
	})
	a := one.pod("same", network.PortMapping{HostPort: 8080, PodPort: 80})
	b := two.pod("same", network.PortMapping{HostPort: 8081, PodPort: 80})
	networktest.Serve(t, a.NS, "tcp", ":80", "one")
	networktest.Serve(t, b.NS, "tcp", ":80", "two")
	both := func() {
		t.Helper()
		for port, want := range map[string]string{"8080": "one", "8081": "two"} {
			if name, _, err := networktest.Ask(out.NS, "tcp", out.Host4+":"+port); err != nil || name != want {
				t.Errorf("port %s: %q, %v", port, name, err)
			}
		}
		for _, ip := range []string{b.V4, b.V6} {
			if err := networktest.Ping(a.NS, ip); err != nil {
				t.Error(err)
			}
		}
	}
	both()
	state := networktest.State()
	for _, n := range []*node{one, two} {
		if err := n.Reconcile(context.Background(), map[string]bool{"same": true}); err != nil {
			t.Fatal(err)
		}
		n.reopen()
	}
	if got := networktest.State(); sortLines(got) != sortLines(state) {
		t.Errorf("one changed the other:\n%s\n---\n%s", state, got)
	}
	both()
	if err := one.Teardown(context.Background()); err != nil {
		t.Fatal(err)
	}
	// The first restored the settings that it had changed; the second wants them.
	if err := two.Reconcile(context.Background(), map[string]bool{"same": true}); err != nil {
		t.Fatal(err)
	}
	if name, _, err := networktest.Ask(out.NS, "tcp", out.Host4+":8081"); err != nil || name != "two" {
		t.Errorf("after the other's teardown: %q, %v", name, err)
	}
	if s := networktest.In(t, "", "nft", "list", "tables"); !strings.Contains(s, "foreign") {
		t.Errorf("a foreign table is gone: %s", s)
	}
}

// Docker's habit: what is forwarded is dropped unless it says otherwise.
func TestWarnsOfDroppingFirewall(t *testing.T) {
	networktest.In(t, "", "nft", "add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }")
	t.Cleanup(func() { networktest.Try("", "nft", "delete", "table", "ip", "filter") })
	n := newNode(t)
	if w := strings.Join(n.Warnings(), "\n"); !strings.Contains(w, "ip filter FORWARD") || !strings.Contains(w, "DOCKER-USER") {
		t.Errorf("warnings: %s", w)
	}
}

// A host with neither address nor uplink still has pods that reach each other and it.
func TestLonelyHost(t *testing.T) {
	n := newNode(t)
	a, b := n.pod("a", network.PortMapping{HostPort: 8080, PodPort: 80}), n.pod("b")
	networktest.Serve(t, a.NS, "tcp", ":80", "a")
	networktest.Serve(t, "", "tcp", ":81", "host")
	for _, c := range [][2]string{{b.NS, a.V4 + ":80"}, {b.NS, "[" + a.V6 + "]:80"}, {"", a.V4 + ":80"}, {"", "[" + a.V6 + "]:80"},
		{b.NS, "10.88.0.1:8080"}, {"", "127.0.0.1:8080"}} {
		if name, _, err := networktest.Ask(c[0], "tcp", c[1]); err != nil || name != "a" {
			t.Errorf("%s: %q, %v", c[1], name, err)
		}
	}
	for _, to := range []string{"10.88.0.1:81", "[fd6f:726c:6f70::1]:81"} {
		if name, _, err := networktest.Ask(a.NS, "tcp", to); err != nil || name != "host" {
			t.Errorf("%s: %q, %v", to, name, err)
		}
	}
	if a.MTU != 1500 {
		t.Errorf("MTU %d", a.MTU)
	}
}

// What somebody adds to the host later keeps no daemon from its pods; only where nothing is
// begun yet is a block refused.
func TestBlockTakenLater(t *testing.T) {
	out := networktest.NewOutside(t)
	before := networktest.State()
	n := newNode(t)
	a := n.pod("a")
	networktest.In(t, "", "ip", "route", "add", "10.88.128.0/24", "dev", out.Link)
	n.reopen()
	if err := networktest.Ping("", a.V4); err != nil {
		t.Error(err)
	}
	if w := strings.Join(n.Warnings(), "\n"); !strings.Contains(w, "10.88.128.0/24") {
		t.Errorf("warnings: %q", w)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	n.Network = nil
	networktest.In(t, "", "ip", "route", "del", "unreachable", "10.88.0.0/16")
	if _, err := network.Open(context.Background(), n.opts); !errors.Is(err, errs.FailedPrecondition) {
		t.Errorf("a block of which the host has a part: %v", err)
	}
	for range 2 { // where Open fails, this does not
		if err := network.Teardown(context.Background(), n.opts); err != nil {
			t.Fatal(err)
		}
	}
	networktest.In(t, "", "ip", "route", "del", "10.88.128.0/24")
	if after := networktest.State(); after != before {
		t.Errorf("left behind:\n%s\n---\n%s", before, after)
	}
}

// An uplink that comes later is found without anybody's doing.
func TestUplinkComesLater(t *testing.T) {
	n := newNode(t)
	a := n.pod("a", network.PortMapping{HostPort: 8080, PodPort: 80})
	networktest.Serve(t, a.NS, "tcp", ":80", "a")
	out := networktest.NewOutside(t)
	networktest.WaitFor(t, "host port from the new uplink", func() bool {
		for _, to := range []string{out.Host4 + ":8080", "[" + out.Host6 + "]:8080"} {
			if name, _, err := networktest.Ask(out.NS, "tcp", to); err != nil || name != "a" {
				return false
			}
		}
		return true
	})
	for _, ip := range []string{out.Other4, out.Other6} {
		if err := networktest.Ping(a.NS, ip); err != nil {
			t.Error(err)
		}
	}
}

func TestConcurrent(t *testing.T) {
	n := newNode(t)
	ctx := context.Background()
	var spaces []string
	for range 24 {
		spaces = append(spaces, networktest.Namespace(t))
	}
	stop := make(chan struct{})
	var rec sync.WaitGroup
	live := map[string]bool{}
	for i := range spaces {
		live[fmt.Sprint("p", i)] = true
	}
	rec.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if err := n.Reconcile(ctx, live); err != nil {
				t.Error(err)
			}
			time.Sleep(5 * time.Millisecond)
		}
	})
	var wg sync.WaitGroup
	for i, ns := range spaces {
		wg.Go(func() {
			id := fmt.Sprint("p", i)
			for range 5 {
				a, err := n.Attach(ctx, network.Request{PodID: id, Netns: ns, Ports: []network.PortMapping{{HostPort: uint16(10000 + i), PodPort: 1}}})
				if err != nil {
					t.Error(err)
					return
				}
				for _, p := range a.Addresses {
					if err := networktest.Ping("", p.Addr().String()); err != nil {
						t.Error(err)
					}
				}
				if err := n.Detach(ctx, id); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	close(stop)
	rec.Wait()
	if err := n.Settle(ctx); err != nil {
		t.Error(err)
	}
	if n.Removing() != 0 || len(n.List()) != 0 {
		t.Errorf("%d removing, %d listed", n.Removing(), len(n.List()))
	}
}
