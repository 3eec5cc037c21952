package routed

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/orlop-io/orlop/internal/base/store"
	"github.com/orlop-io/orlop/internal/network/dataplane"
	"github.com/orlop-io/orlop/internal/network/dataplane/dataplanetest"
	"github.com/orlop-io/orlop/internal/network/networktest"
)

func TestMain(m *testing.M) { networktest.Main(m) }

// durable are the open states by path: two planes of one instance follow each other in a test.
var durable = map[string]*store.DB{}

func open(t testing.TB, instance, dir string, blocks []netip.Prefix) dataplane.Dataplane {
	t.Helper()
	path := filepath.Join(dir, "state.db")
	db := durable[instance]
	if db == nil {
		var err error
		if db, err = store.Open(path, store.Durable); err != nil {
			t.Fatal(err)
		}
		durable[instance] = db
		t.Cleanup(func() { delete(durable, instance); db.Close() })
	}
	p, err := New(Options{Instance: instance, Blocks: blocks, Masquerade: true, Durable: db})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func TestConformance(t *testing.T) { dataplanetest.Run(t, open) }

// Kernels before 6.17 forward IPv6 as a whole host or not at all.
func TestWholeHostForwarding(t *testing.T) {
	was := hasForceForwarding
	hasForceForwarding = func() bool { return false }
	t.Cleanup(func() { hasForceForwarding = was })
	dataplanetest.Run(t, open)

	t.Run("RouterAdvertisements", func(t *testing.T) {
		networktest.NewOutside(t)
		p := open(t, "ra", t.TempDir(), []netip.Prefix{netip.MustParsePrefix("fd44::/64")})
		read := func(path string) string {
			b, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + path)
			if err != nil {
				t.Fatal(err)
			}
			return string(b[:1])
		}
		if _, err := p.Sync(context.Background(), nil); err != nil {
			t.Fatal(err)
		}
		if read("up0/accept_ra") != "2" || read("all/forwarding") != "1" {
			t.Error("the host forwards and would lose its default route")
		}
		if err := p.Teardown(context.Background()); err != nil {
			t.Fatal(err)
		}
		if read("up0/accept_ra") != "1" || read("all/forwarding") != "0" {
			t.Error("not restored")
		}
	})
}

// A setting that somebody else changed since is theirs.
func TestRestore(t *testing.T) {
	networktest.NewOutside(t)
	p := open(t, "settings", t.TempDir(), []netip.Prefix{netip.MustParsePrefix("10.44.0.0/16")}).(*Plane)
	ctx := context.Background()
	const key = "/proc/sys/net/ipv4/conf/up0/forwarding"
	write := func(v string) {
		t.Helper()
		if err := os.WriteFile(key, []byte(v), 0); err != nil {
			t.Fatal(err)
		}
	}
	want := func(v, when string) {
		t.Helper()
		if b, err := os.ReadFile(key); err != nil || string(b) != v+"\n" {
			t.Errorf("%s: %q, %v; want %s", when, b, err, v)
		}
	}
	sync := func() {
		t.Helper()
		if _, err := p.Sync(ctx, nil); err != nil {
			t.Fatal(err)
		}
	}
	teardown := func() {
		t.Helper()
		if err := p.Teardown(ctx); err != nil {
			t.Fatal(err)
		}
	}
	sync()
	want("1", "after Sync")
	teardown()
	want("0", "after Teardown")

	write("1")
	sync()
	teardown()
	want("1", "it was on before")

	write("0")
	sync()
	write("0")
	teardown()
	want("0", "switched off by somebody since")

	// The record is of an earlier boot, and since then somebody else has switched it on.
	if err := p.former.Put("net/ipv4/conf/up0/forwarding", setting{Former: "0", Now: "1", Boot: "earlier"}); err != nil {
		t.Fatal(err)
	}
	write("1")
	sync()
	teardown()
	want("1", "switched on by somebody at boot")
	write("0")
	if left, err := p.former.All(); err != nil || len(left) != 0 {
		t.Errorf("records left: %v, %v", left, err)
	}
}
