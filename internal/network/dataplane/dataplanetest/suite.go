// Package dataplanetest checks that a dataplane keeps the promises of package dataplane, by
// packets only: it asks nothing about how.
package dataplanetest

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/network/dataplane"
	"github.com/orlop-io/orlop/internal/network/networktest"
)

// Open makes the dataplane under test, for an instance and its blocks; the test closes it.
// dir is the same for one instance each time in a test.
type Open func(t testing.TB, instance, dir string, blocks []netip.Prefix) dataplane.Dataplane

var (
	blocks      = []netip.Prefix{netip.MustParsePrefix("10.44.0.0/16"), netip.MustParsePrefix("fd44::/64")}
	otherBlocks = []netip.Prefix{netip.MustParsePrefix("10.45.0.0/16"), netip.MustParsePrefix("fd45::/64")}
)

// Run runs the suite. The package's tests must run under networktest.Main.
func Run(t *testing.T, open Open) {
	for _, c := range []struct {
		name string
		fn   func(*suite)
	}{
		{"Connects", (*suite).connects}, {"AddTwice", (*suite).addTwice}, {"Release", (*suite).release},
		{"RemoveTwice", (*suite).removeTwice}, {"NoNamespace", (*suite).noNamespace}, {"OtherNetwork", (*suite).otherNetwork},
		{"SyncCompletes", (*suite).syncCompletes}, {"SyncSweeps", (*suite).syncSweeps}, {"SyncDisturbsNobody", (*suite).syncDisturbsNobody},
		{"Failed", (*suite).failed}, {"Names", (*suite).names}, {"OtherInstance", (*suite).otherInstance},
		{"Teardown", (*suite).teardown}, {"Canceled", (*suite).canceled},
	} {
		before := networktest.State()
		t.Run(c.name, func(t *testing.T) {
			s := &suite{t: t, open: open, outside: networktest.NewOutside(t)}
			s.Dataplane = s.plane("one", blocks)
			s.sync()
			c.fn(s)
		})
		if after := networktest.State(); after != before {
			t.Errorf("%s left behind:\n%s\n---\n%s", c.name, before, after)
		}
	}
}

type suite struct {
	t       *testing.T
	open    Open
	outside *networktest.Outside
	dataplane.Dataplane
	n int
}

func (s *suite) plane(instance string, blocks []netip.Prefix) dataplane.Dataplane {
	p := s.open(s.t, instance, filepath.Join(s.t.TempDir(), instance), blocks)
	s.t.Cleanup(func() { s.must(p.Teardown(context.Background())) })
	return p
}

func (s *suite) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

func (s *suite) sync(es ...dataplane.Endpoint) dataplane.Difference {
	s.t.Helper()
	d, err := s.Sync(s.t.Context(), es)
	s.must(err)
	return d
}

// endpoint describes one with the next addresses of the blocks, whose port 80 is at 8000 and
// following of the host; it serves its ID there.
func (s *suite) endpoint(id string, of ...netip.Prefix) dataplane.Endpoint {
	s.t.Helper()
	if of == nil {
		of = blocks
	}
	s.n++
	e := dataplane.Endpoint{ID: id, Netns: networktest.Namespace(s.t), Interface: "eth0", HostInterface: s.HostInterface(id),
		MAC: []byte{2, 0, 0, 0, 0, byte(s.n)}, MTU: 1400}
	for _, b := range of {
		a := b.Addr().Next()
		for range s.n {
			a = a.Next()
		}
		e.Addresses = append(e.Addresses, a)
		any := netip.IPv4Unspecified()
		if a.Is6() {
			any = netip.IPv6Unspecified()
		}
		e.Ports = append(e.Ports, dataplane.Port{Protocol: dataplane.TCP, Host: netip.AddrPortFrom(any, uint16(8000+s.n)), PodPort: 80})
	}
	networktest.Serve(s.t, e.Netns, "tcp", ":80", id)
	return e
}

func (s *suite) added(id string) dataplane.Endpoint {
	s.t.Helper()
	e := s.endpoint(id)
	s.must(s.Add(s.t.Context(), e))
	return e
}

// works tells whether everything of an endpoint does: from the host, from outside by its
// ports, and from it to the outside.
func (s *suite) works(e dataplane.Endpoint) error {
	for _, a := range e.Addresses {
		if name, _, err := networktest.Ask("", "tcp", netip.AddrPortFrom(a, 80).String()); err != nil || name != e.ID {
			return fmt.Errorf("%s at %s: %q, %w", e.ID, a, name, err)
		}
		out := s.outside.Other4
		if a.Is6() {
			out = s.outside.Other6
		}
		if err := networktest.Ping(e.Netns, out); err != nil {
			return err
		}
	}
	return s.ports(e)
}

func (s *suite) ports(e dataplane.Endpoint) error {
	for _, p := range e.Ports {
		host := s.outside.Host4
		if p.Host.Addr().Is6() {
			host = s.outside.Host6
		}
		if name, _, err := networktest.Ask(s.outside.NS, "tcp", netip.AddrPortFrom(netip.MustParseAddr(host), p.Host.Port()).String()); err != nil || name != e.ID {
			return fmt.Errorf("%s at host port %s: %q, %w", e.ID, p.Host, name, err)
		}
	}
	return nil
}

func (s *suite) unreachable(e dataplane.Endpoint) {
	s.t.Helper()
	for _, a := range e.Addresses {
		if _, _, err := networktest.Ask("", "tcp", netip.AddrPortFrom(a, 80).String()); err == nil {
			s.t.Errorf("%s is reached at %s", e.ID, a)
		}
	}
	if s.ports(e) == nil {
		s.t.Errorf("%s is reached by its host ports", e.ID)
	}
}

func (s *suite) connects() {
	a, b := s.added("a"), s.added("b")
	for _, e := range []dataplane.Endpoint{a, b} {
		s.must(s.works(e))
	}
	for i, ip := range b.Addresses {
		name, peer, err := networktest.Ask(a.Netns, "tcp", netip.AddrPortFrom(ip, 80).String())
		if err != nil || name != "b" || peer != a.Addresses[i] {
			s.t.Errorf("from a to b at %s: %q sees %s, %v", ip, name, peer, err)
		}
	}
	for _, node := range s.NodeAddresses() {
		s.must(networktest.Ping(a.Netns, node.String()))
	}
}

func (s *suite) addTwice() {
	a := s.added("a")
	state := networktest.State()
	s.must(s.Add(s.t.Context(), a))
	if networktest.State() != state {
		s.t.Error("adding again changed the host")
	}
	s.must(s.works(a))
}

func (s *suite) release() {
	a, b := s.added("a"), s.added("b")
	for range 2 {
		s.must(s.Release(s.t.Context(), a))
	}
	s.unreachable(a)
	s.must(s.works(b))
	s.must(s.Add(s.t.Context(), a)) // and back
	s.must(s.works(a))
}

func (s *suite) removeTwice() {
	state := networktest.State()
	a, b := s.added("a"), s.added("b")
	for _, e := range []dataplane.Endpoint{a, b} {
		s.must(s.Release(s.t.Context(), e))
	}
	for range 2 {
		s.must(s.Remove(s.t.Context(), []dataplane.Endpoint{a, b}))
	}
	if after := networktest.State(); after != state {
		s.t.Errorf("left behind:\n%s\n---\n%s", state, after)
	}
	s.must(s.Release(s.t.Context(), s.endpoint("never-added")))
}

func (s *suite) noNamespace() {
	e := s.endpoint("a")
	e.Netns += "-not"
	if err := s.Add(s.t.Context(), e); !errors.Is(err, errs.NotFound) {
		s.t.Errorf("a namespace that is not there: %v", err)
	}
	s.must(s.Release(s.t.Context(), e))
	s.must(s.Remove(s.t.Context(), []dataplane.Endpoint{e}))
}

// A dataplane that knows one network only says so; one that knows more keeps them apart.
func (s *suite) otherNetwork() {
	a, b := s.added("a"), s.endpoint("b")
	b.Network, b.Addresses, b.Ports = 7, a.Addresses, nil
	err := s.Add(s.t.Context(), b)
	if err != nil && !errors.Is(err, errs.Unsupported) {
		s.t.Error(err)
	}
	s.must(s.works(a))
}

func (s *suite) syncCompletes() {
	a := s.endpoint("a")
	d := s.sync(a) // it was recorded, and the process was killed before Add
	if len(d.Failed) != 0 || len(d.Repaired) == 0 {
		s.t.Errorf("%+v", d)
	}
	s.must(s.works(a))
	// Another process goes on with it.
	s.Dataplane = s.plane("one", blocks)
	if d := s.sync(a); len(d.Repaired)+len(d.Swept)+len(d.Failed) != 0 {
		s.t.Errorf("nothing was to be done: %+v", d)
	}
	s.must(s.works(a))
}

func (s *suite) syncSweeps() {
	a, b := s.added("a"), s.added("b")
	d := s.sync(b)
	if len(d.Swept) != 1 || d.Swept[0] != a.HostInterface {
		s.t.Errorf("%+v", d)
	}
	s.unreachable(a)
	s.must(s.works(b))
	if d := s.sync(b); len(d.Repaired)+len(d.Swept)+len(d.Failed) != 0 {
		s.t.Errorf("a second time: %+v", d)
	}
}

func (s *suite) syncDisturbsNobody() {
	a, b := s.added("a"), s.added("b")
	c, err := networktest.Dial(s.outside.NS, "tcp", netip.AddrPortFrom(netip.MustParseAddr(s.outside.Host4), a.Ports[0].Host.Port()).String())
	s.must(err)
	defer c.Close()
	_, _, err = networktest.AskOn(c)
	s.must(err)
	s.sync(a) // b is swept
	_ = b
	if name, _, err := networktest.AskOn(c); err != nil || name != "a" {
		s.t.Errorf("a connection over Sync: %q, %v", name, err)
	}
}

func (s *suite) failed() {
	a, lost := s.endpoint("a"), s.endpoint("lost")
	lost.Netns += "-not"
	d := s.sync(lost, a)
	if len(d.Failed) != 1 || !errors.Is(d.Failed["lost"], errs.NotFound) {
		s.t.Errorf("%+v", d)
	}
	s.must(s.works(a))
}

func (s *suite) names() {
	seen := map[string]bool{}
	for i := range 1000 {
		id := fmt.Sprintf("%08d-0000-0000-0000-000000000000", i)
		name := s.HostInterface(id)
		if len(name) > 15 || strings.ContainsAny(name, "/ :") || seen[name] || name != s.HostInterface(id) {
			s.t.Errorf("name %q of %s", name, id)
		}
		seen[name] = true
	}
}

func (s *suite) otherInstance() {
	a := s.added("a")
	two := s.plane("two", otherBlocks)
	if two.HostInterface("a") == a.HostInterface {
		s.t.Error("two instances name their interfaces alike")
	}
	_, err := two.Sync(s.t.Context(), nil)
	s.must(err)
	s.must(s.works(a))
	s.must(two.Teardown(s.t.Context()))
	s.sync(a)
	s.must(s.works(a))
}

func (s *suite) teardown() {
	a := s.added("a")
	for range 2 {
		s.must(s.Teardown(s.t.Context()))
	}
	s.unreachable(a)
	if state := networktest.State(); strings.Contains(state, a.HostInterface) || strings.Contains(state, "10.44.") || strings.Contains(state, "table inet one") {
		s.t.Errorf("left behind:\n%s", state)
	}
	s.sync(a)
	s.must(s.works(a))
}

func (s *suite) canceled() {
	ctx, cancel := context.WithCancel(s.t.Context())
	cancel()
	a := s.endpoint("a")
	state := networktest.State()
	if err := s.Add(ctx, a); !errors.Is(err, context.Canceled) {
		s.t.Errorf("Add: %v", err)
	}
	if _, err := s.Sync(ctx, []dataplane.Endpoint{a}); !errors.Is(err, context.Canceled) {
		s.t.Errorf("Sync: %v", err)
	}
	if networktest.State() != state {
		s.t.Error("something was changed")
	}
}
