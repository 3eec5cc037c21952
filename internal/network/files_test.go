package network

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/orlop-io/orlop/internal/base/errs"
)

func addrs(s ...string) (all []netip.Addr) {
	for _, a := range s {
		all = append(all, netip.MustParseAddr(a))
	}
	return all
}

func TestResolvConf(t *testing.T) {
	const host = "# made by hand\nnameserver 192.0.2.53\nnameserver 2001:db8::53\nsearch example.org corp.example.org\noptions ndots:2 timeout:3 edns0\n"
	many := strings.Repeat("d", 60)
	var long []string
	for i := range 33 {
		long = append(long, many+string(rune('a'+i%26))+string(rune('a'+i/26)))
	}
	for _, c := range []struct {
		name, host string
		dns        DNS
		want       string
		warns      int
		kind       *errs.Kind
	}{
		{"default", host, DNS{}, "nameserver 192.0.2.53\nnameserver 2001:db8::53\nsearch example.org corp.example.org\noptions ndots:2 timeout:3 edns0\n", 0, nil},
		{"cluster first is default here", host, DNS{Policy: "ClusterFirst"}, "nameserver 192.0.2.53\nnameserver 2001:db8::53\nsearch example.org corp.example.org\noptions ndots:2 timeout:3 edns0\n", 0, nil},
		{"merged", host, DNS{Servers: addrs("192.0.2.54", "192.0.2.53"), Searches: []string{"pod.example", "example.org"}, Options: []string{"ndots:5", "rotate"}},
			"nameserver 192.0.2.53\nnameserver 2001:db8::53\nnameserver 192.0.2.54\nsearch example.org corp.example.org pod.example\noptions timeout:3 edns0 ndots:5 rotate\n", 0, nil},
		{"too many servers together", host, DNS{Servers: addrs("192.0.2.1", "192.0.2.2")},
			"nameserver 192.0.2.53\nnameserver 2001:db8::53\nnameserver 192.0.2.1\nsearch example.org corp.example.org\noptions ndots:2 timeout:3 edns0\n", 1, nil},
		{"none", host, DNS{Policy: "None", Servers: addrs("192.0.2.9"), Searches: []string{"x"}, Options: []string{"ndots:1"}}, "nameserver 192.0.2.9\nsearch x\noptions ndots:1\n", 0, nil},
		{"none without servers", host, DNS{Policy: "None"}, "", 0, errs.Invalid},
		{"unknown policy", host, DNS{Policy: "First"}, "", 0, errs.Invalid},
		{"loopback resolver of the host", "nameserver 127.0.0.53\nnameserver ::1\nsearch home\n", DNS{}, "search home\n", 2, nil},
		{"loopback and another", "nameserver 127.0.0.1\nnameserver 192.0.2.53\n", DNS{}, "nameserver 192.0.2.53\n", 1, nil},
		{"loopback, and the pod has its own", "nameserver 127.0.0.53\n", DNS{Servers: addrs("192.0.2.9")}, "nameserver 192.0.2.9\n", 1, nil},
		{"no host file", "", DNS{}, "", 1, nil},
		{"the last search line counts", "nameserver 192.0.2.1\nsearch a b\ndomain c d\n", DNS{}, "nameserver 192.0.2.1\nsearch c\n", 0, nil},
		{"root domain", "nameserver 192.0.2.1\nsearch .\n", DNS{}, "nameserver 192.0.2.1\n", 0, nil},
		{"odd words, comments, no newline", "; c\n#c\nfoo bar\nnameserver\n\tnameserver  192.0.2.1  x", DNS{}, "nameserver 192.0.2.1\n", 0, nil},
		{"zone", "nameserver fe80::1%eth0\n", DNS{}, "nameserver fe80::1%eth0\n", 0, nil},
		{"four servers of the pod", host, DNS{Servers: addrs("192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4")}, "", 0, errs.Invalid},
		{"too many search domains", host, DNS{Searches: long}, "", 0, errs.Invalid},
		{"too many bytes of search domains", host, DNS{Searches: append([]string{strings.Repeat("x", 300)}, long[:30]...)}, "", 0, errs.Invalid},
		{"too many bytes together", "nameserver 192.0.2.1\nsearch " + strings.Join(long[:31], " ") + "\n", DNS{Searches: []string{strings.Repeat("x", 100)}},
			"nameserver 192.0.2.1\nsearch " + strings.Join(long[:31], " ") + "\n", 1, nil},
		{"newline in a search domain", host, DNS{Searches: []string{"x\nnameserver 198.51.100.1"}}, "", 0, errs.Invalid},
		{"newline in an option", host, DNS{Options: []string{"x\ny"}}, "", 0, errs.Invalid},
		{"empty option", host, DNS{Options: []string{""}}, "", 0, errs.Invalid},
		{"missing address", host, DNS{Servers: []netip.Addr{{}}}, "", 0, errs.Invalid},
	} {
		got, warnings, err := ResolvConf(c.dns, []byte(c.host))
		if c.kind != nil {
			if !errors.Is(err, c.kind) {
				t.Errorf("%s: %v, want %v", c.name, err, c.kind)
			}
			continue
		}
		if err != nil || string(got) != c.want || len(warnings) != c.warns {
			t.Errorf("%s: %q, %q, %v; want %q and %d warnings", c.name, got, warnings, err, c.want, c.warns)
		}
	}
}

func FuzzResolvConf(f *testing.F) {
	f.Add([]byte("nameserver 192.0.2.53\nsearch a b\noptions ndots:2\n"), "x.example", "ndots:5")
	f.Add([]byte("nameserver ::1%lo\r\n\x00domain"), "", "")
	f.Fuzz(func(t *testing.T, host []byte, search, option string) {
		d := DNS{Servers: addrs("192.0.2.9")}
		if search != "" {
			d.Searches = []string{search}
		}
		if option != "" {
			d.Options = []string{option}
		}
		conf, _, err := ResolvConf(d, host)
		if err != nil {
			return
		}
		// What it writes it reads again, the same, within the limits.
		r := parseResolvConf(conf)
		if len(r.servers) > maxServers || len(r.searches) > maxSearches || len(strings.Join(r.searches, " ")) > maxSearchBytes {
			t.Errorf("beyond the limits: %q", conf)
		}
		if again := r.bytes(); search != "." && string(again) != string(conf) {
			t.Errorf("%q is read as %q", conf, again)
		}
		for line := range strings.Lines(string(conf)) {
			if w, _, _ := strings.Cut(line, " "); w != "nameserver" && w != "search" && w != "options" {
				t.Errorf("line %q", line)
			}
		}
	})
}

func TestHostResolvConf(t *testing.T) {
	dir := t.TempDir()
	write := func(name, s string) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, []byte(s), 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	const real, stub, up = "nameserver 192.0.2.1\n", "nameserver 127.0.0.53\noptions edns0\n", "nameserver 192.0.2.2\n"
	r, s, u, empty := write("real", real), write("stub", stub), write("up", up), write("empty", "")
	for _, c := range []struct{ path, upstream, want string }{
		{r, u, real}, {s, u, up}, {s, empty, stub}, {s, dir + "/none", stub}, {dir + "/none", u, up}, {dir + "/none", dir + "/none", ""}, {empty, u, up},
	} {
		got, err := hostResolvConf(c.path, c.upstream)
		if err != nil || string(got) != c.want {
			t.Errorf("%s, %s: %q, %v; want %q", c.path, c.upstream, got, err, c.want)
		}
	}
	if _, err := HostResolvConf(); err != nil {
		t.Error(err)
	}
}

func TestHosts(t *testing.T) {
	const head = "# Written by Orlop for this pod; changes are lost when it is made anew.\n"
	for _, c := range []struct {
		name string
		h    HostsFile
		want string // "": errs.Invalid
	}{
		{"plain", HostsFile{Hostname: "web", Addresses: addrs("10.88.0.2", "fd00::2")}, head + loopbackHosts + "10.88.0.2\tweb\nfd00::2\tweb\n"},
		{"domain", HostsFile{Hostname: "web", Domain: "sub.ns.svc", Addresses: addrs("10.88.0.2")}, head + loopbackHosts + "10.88.0.2\tweb.sub.ns.svc web\n"},
		{"aliases", HostsFile{Hostname: "web", Addresses: addrs("10.88.0.2"), Aliases: []HostAlias{{addrs("192.0.2.7")[0], []string{"a", "b.example"}}}},
			head + loopbackHosts + "10.88.0.2\tweb\n\n# From the pod's hostAliases.\n192.0.2.7\ta b.example\n"},
		{"host network", HostsFile{Hostname: "node", Base: []byte("127.0.0.1 localhost"), Aliases: []HostAlias{{addrs("192.0.2.7")[0], []string{"a"}}}},
			head + "127.0.0.1 localhost\n\n# From the pod's hostAliases.\n192.0.2.7\ta\n"},
		{"newline", HostsFile{Hostname: "web\n192.0.2.1 bank", Addresses: addrs("10.88.0.2")}, ""},
		{"comment", HostsFile{Hostname: "w#b", Addresses: addrs("10.88.0.2")}, ""},
		{"no address", HostsFile{Hostname: "web", Aliases: []HostAlias{{Names: []string{"a"}}}}, ""},
		{"no name", HostsFile{Hostname: "web", Aliases: []HostAlias{{IP: addrs("192.0.2.7")[0]}}}, ""},
		{"empty name", HostsFile{Hostname: "", Addresses: addrs("10.88.0.2")}, ""},
	} {
		got, err := Hosts(c.h)
		if c.want == "" {
			if !errors.Is(err, errs.Invalid) {
				t.Errorf("%s: %v", c.name, err)
			}
		} else if err != nil || string(got) != c.want {
			t.Errorf("%s: %q, %v; want %q", c.name, got, err, c.want)
		}
	}
}

func TestPool(t *testing.T) {
	for _, c := range []struct {
		block       string
		n           int
		first, last string
	}{
		{"10.0.0.0/30", 1, "10.0.0.2", "10.0.0.2"},
		{"10.0.0.0/29", 5, "10.0.0.2", "10.0.0.6"},
		{"10.0.0.128/25", 125, "10.0.0.130", "10.0.0.254"},
		{"fd00::/125", 6, "fd00::2", "fd00::7"},
		{"fd00::8/125", 6, "fd00::a", "fd00::f"},
		{"fd00::ffff:ffff:ffff:fffc/126", 2, "fd00::ffff:ffff:ffff:fffe", "fd00::ffff:ffff:ffff:ffff"},
	} {
		p := newPool(netip.MustParsePrefix(c.block), 0)
		var got []netip.Addr
		for {
			a, next, err := p.take()
			if err != nil {
				if !errors.Is(err, errs.ResourceExhausted) {
					t.Error(err)
				}
				break
			}
			if p.used[a] || !p.block.Contains(a) {
				t.Fatalf("%s: %s given out twice, or outside", c.block, a)
			}
			p.mark(a, next)
			got = append(got, a)
		}
		if len(got) != c.n || got[0].String() != c.first || got[len(got)-1].String() != c.last {
			t.Errorf("%s: %d addresses, %s to %s", c.block, len(got), got[0], got[len(got)-1])
		}
	}
	// A block larger than can be counted is used from its beginning; a cursor from anywhere is good.
	p := newPool(netip.MustParsePrefix("fd00::/32"), 1<<62)
	if a, _, err := p.take(); err != nil || a.String() != "fd00::2" {
		t.Errorf("%s, %v", a, err)
	}
	p = newPool(netip.MustParsePrefix("fd00:0:0:0:ffff:ffff:ffff:ff00/96"), 0x12345678)
	if a, _, err := p.take(); err != nil || a.String() != "fd00::ffff:ffff:1234:5678" {
		t.Errorf("%s, %v", a, err)
	}
}
