package nft

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/google/nftables"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// The tests run in a network namespace of their own.
func TestMain(m *testing.M) {
	if os.Getenv("NFT_TEST_INSIDE") != "" {
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), "NFT_TEST_INSIDE=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		os.Stderr.WriteString(err.Error() + "\n")
		os.Exit(1)
	}
}

func table() Table {
	port := func(n uint16) []byte { return binary.BigEndian.AppendUint16(nil, n) }
	return Table{
		Name: "t",
		Sets: []Set{
			{Name: "nets", Key: []nftables.SetDatatype{TypeAddress4}, Interval: true, Elements: Prefix([]byte{10, 0, 0, 0}, 8)},
			{Name: "top", Key: []nftables.SetDatatype{TypeAddress4}, Interval: true, Elements: Prefix([]byte{240, 0, 0, 0}, 4)},
			{Name: "ports", Key: []nftables.SetDatatype{TypeProtocol, TypePort}, Data: []nftables.SetDatatype{TypeAddress4, TypePort},
				Elements: []Element{{Key: Key([]byte{6}, port(80)), Value: Key([]byte{10, 0, 0, 2}, port(8080))}}},
			{Name: "names", Key: []nftables.SetDatatype{TypeName}, Elements: []Element{{Key: append([]byte("eth0"), make([]byte, 12)...)}}},
		},
		Chains: []Chain{
			{Name: "in", Type: nftables.ChainTypeNAT, Hook: nftables.ChainHookPrerouting, Priority: -100,
				Rules: []Rule{{Comment: "translate", Exprs: Rules(ToHost(), Jump("ports"))}}},
			{Name: "ports", Rules: []Rule{{Comment: "a", Exprs: Rules(IPv4(), TranslateDestination(false, false, "ports"))}}},
		},
	}
}

func nft(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("nft", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("nft %v: %v\n%s", args, err, out)
	}
	return string(out)
}

func TestTable(t *testing.T) {
	c, err := Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	nft(t, "add table inet other")
	tab := table()
	differs := func(want bool) {
		t.Helper()
		why, err := c.Differs(tab)
		if err != nil || (why != "") != want {
			t.Errorf("differs: %q, %v; want %v", why, err, want)
		}
	}
	if err := c.Delete("t"); err != nil {
		t.Errorf("delete what is not there: %v", err)
	}
	differs(true)
	for range 2 {
		if err := c.Replace(tab); err != nil {
			t.Fatal(err)
		}
		differs(false)
	}
	listed := nft(t, "list", "table", "inet", "t")
	for _, want := range []string{"10.0.0.0/8", "240.0.0.0/4", "tcp . 80 : 10.0.0.2 . 8080", "dnat ip to meta l4proto . th dport map @ports", `"eth0"`, "priority dstnat"} {
		if !strings.Contains(listed, want) {
			t.Errorf("%q is not in\n%s", want, listed)
		}
	}
	for _, spoil := range []string{
		"flush chain inet t in", "add chain inet t more", "add rule inet t in counter", "delete element inet t names { eth0 }",
		"add element inet t ports { udp . 1 : 10.0.0.3 . 1 }", "add element inet t nets { 11.0.0.0/8 }", "flush table inet t", "delete table inet t",
	} {
		nft(t, strings.Fields(spoil)...)
		differs(true)
		if err := c.Replace(tab); err != nil {
			t.Fatal(err)
		}
		differs(false)
	}
	// Elements come and go; all of a change or nothing.
	e := []Element{{Key: Key([]byte{17}, []byte{0, 53}), Value: Key([]byte{10, 0, 0, 3}, []byte{0, 53})}}
	if err := c.Change(tab, map[string][]Element{"ports": e}, nil); err != nil {
		t.Fatal(err)
	}
	differs(true)
	if err := c.Change(tab, map[string][]Element{"ports": e}, nil); err != nil {
		t.Errorf("add what is there: %v", err)
	}
	missing := append(e, Element{Key: Key([]byte{17}, []byte{0, 54})})
	if err := c.Change(tab, nil, map[string][]Element{"ports": missing}); !errors.Is(err, errs.NotFound) {
		t.Errorf("remove what is not there: %v", err)
	}
	differs(true)
	if err := c.Change(tab, nil, map[string][]Element{"ports": e}); err != nil {
		t.Error(err)
	}
	differs(false)
	if err := c.Delete("t"); err != nil {
		t.Error(err)
	}
	if got := nft(t, "list", "tables"); got != "table inet other\n" {
		t.Errorf("tables: %q", got)
	}
	nft(t, "delete table inet other")
}

func TestDropping(t *testing.T) {
	c, err := Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	nft(t, "add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }; add chain ip filter INPUT { type filter hook input priority 0; policy drop; }; "+
		"add table inet us; add chain inet us f { type filter hook forward priority 0; policy drop; }; add table ip6 x; add chain ip6 x f { type filter hook forward priority 0; }")
	got, err := c.Dropping("us")
	if err != nil || len(got) != 1 || got[0] != "ip filter FORWARD" {
		t.Errorf("%q, %v", got, err)
	}
	nft(t, "flush ruleset")
}

func TestPrefix(t *testing.T) {
	for _, c := range []struct{ prefix, from, to string }{
		{"10.0.0.0/8", "10.0.0.0", "11.0.0.0"}, {"10.1.2.3/32", "10.1.2.3", "10.1.2.4"}, {"10.255.255.255/32", "10.255.255.255", "11.0.0.0"},
		{"240.0.0.0/4", "240.0.0.0", ""}, {"0.0.0.0/0", "0.0.0.0", ""}, {"10.3.3.3/9", "10.0.0.0", "10.128.0.0"},
		{"fd00::/64", "fd00::", "fd00:0:0:1::"}, {"ff00::/8", "ff00::", ""},
	} {
		p := netip.MustParsePrefix(c.prefix)
		es := Prefix(p.Addr().AsSlice(), p.Bits())
		ok := bytes.Equal(es[0].Key, netip.MustParseAddr(c.from).AsSlice()) && !es[0].End
		if c.to == "" {
			ok = ok && len(es) == 1
		} else {
			ok = ok && len(es) == 2 && es[1].End && bytes.Equal(es[1].Key, netip.MustParseAddr(c.to).AsSlice())
		}
		if !ok {
			t.Errorf("%s: %v", c.prefix, es)
		}
	}
}
