// Package networktest gives tests a host of their own: the test process runs again in a new
// network namespace, so that neither firewall nor settings nor routes of the machine are
// touched, and within it makes namespaces for pods and for machines outside.
package networktest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sort"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/platform/namespace"
)

var counters = regexp.MustCompile(`counter packets \d+ bytes \d+`)

const inside = "ORLOP_NETWORKTEST_INSIDE"

// Main runs the tests of a package in a namespace of their own; use it as TestMain. It
// fails if they leave anything behind in it.
func Main(m *testing.M) {
	if os.Getenv(inside) == "" {
		os.Exit(again())
	}
	if err := loUp(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	before := State()
	code := m.Run()
	if after := State(); code == 0 && after != before {
		fmt.Fprintf(os.Stderr, "the tests left something behind:\n--- before\n%s--- after\n%s", before, after)
		code = 1
	}
	os.Exit(code)
}

// Inside tells a helper process that it is to run in the test's namespace.
func Inside() bool { return os.Getenv(inside) != "" }

func again() int {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return max(exit.ExitCode(), 1)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "these tests need root, to make network namespaces:", err)
		return 1
	}
	return 0
}

func loUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// State describes the host: interfaces, addresses, routes, rules and the settings that the
// network changes. Two equal ones mean that nothing was left behind.
func State() string {
	var lines []string
	for _, args := range [][]string{
		{"ip", "-o", "link"}, {"ip", "-o", "address"}, {"ip", "route", "show", "table", "all"},
		{"ip", "-6", "route", "show", "table", "all"}, {"ip", "neigh", "show", "nud", "permanent"}, {"nft", "list", "ruleset"},
	} {
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		if err != nil {
			lines = append(lines, strings.Join(args, " ")+": "+err.Error())
		}
		lines = append(lines, counters.ReplaceAllString(string(out), "counter"))
	}
	for _, pattern := range []string{"ipv4/ip_forward", "ipv4/conf/*/forwarding", "ipv4/conf/*/route_localnet", "ipv4/conf/*/rp_filter",
		"ipv6/conf/*/forwarding", "ipv6/conf/*/force_forwarding", "ipv6/conf/*/accept_ra"} {
		files, _ := filepath.Glob("/proc/sys/net/" + pattern)
		sort.Strings(files)
		for _, f := range files {
			b, _ := os.ReadFile(f)
			lines = append(lines, f+" "+string(b))
		}
	}
	return strings.Join(lines, "")
}

// Namespace makes a network namespace that lives as long as the test and returns its path.
func Namespace(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "ns")
	if err := namespace.Pin(dir, []namespace.Kind{namespace.Net}, namespace.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := namespace.Unpin(dir); err != nil {
			t.Error(err)
		}
	})
	return filepath.Join(dir, "net")
}

// In runs a command in a namespace ("" is the host's) and returns what it printed.
func In(t testing.TB, ns string, args ...string) string {
	t.Helper()
	out, err := Try(ns, args...)
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// Try is In for commands that may fail.
func Try(ns string, args ...string) (out string, err error) {
	run := func() error {
		b, err := exec.Command(args[0], args[1:]...).CombinedOutput()
		out = string(b)
		return err
	}
	if ns == "" {
		return out, run()
	}
	err = Do(ns, run)
	return out, err
}

// Do runs fn in a namespace ("" is the host's).
func Do(ns string, fn func() error) error {
	if ns == "" {
		return fn()
	}
	return namespace.Do(ns, fn)
}

// Outside is a machine outside of the host, on a link to it.
type Outside struct {
	NS             string // path of its namespace
	Link           string // the host's interface to it
	Host4, Host6   string // the host's addresses on the link
	Other4, Other6 string // its own
}

// NewOutside joins a namespace that stands for a machine outside to the host. It is the
// host's default gateway and has no route to pods, so that it can answer only to what the
// host's own address sends.
func NewOutside(t testing.TB) *Outside {
	t.Helper()
	o := &Outside{NS: Namespace(t), Link: "up0", Host4: "192.0.2.1", Host6: "2001:db8::1", Other4: "192.0.2.2", Other6: "2001:db8::2"}
	f, err := os.Open(o.NS)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	veth := netlink.NewVeth(netlink.LinkAttrs{Name: o.Link, TxQLen: -1, MTU: 1400})
	veth.PeerName, veth.PeerNamespace = "eth0", netlink.NsFd(int(f.Fd()))
	if err := netlink.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { netlink.LinkDel(veth) })
	for _, c := range [][]string{
		// Nobody else is there: trying addresses (RFC 4862) would take a second.
		{"", "sysctl -q net.ipv6.conf.up0.accept_dad=0"}, {o.NS, "sysctl -q net.ipv6.conf.eth0.accept_dad=0"},
		{"", "ip link set up0 up"}, {o.NS, "ip link set eth0 up"},
		{"", "ip addr add 192.0.2.1/24 dev up0"}, {"", "ip addr add 2001:db8::1/64 dev up0 nodad"},
		{o.NS, "ip addr add 192.0.2.2/24 dev eth0"}, {o.NS, "ip addr add 2001:db8::2/64 dev eth0 nodad"},
		{"", "ip route add default via 192.0.2.2"}, {"", "ip -6 route add default via 2001:db8::2"},
	} {
		In(t, c[0], strings.Fields(c[1])...)
	}
	// The kernel takes a carrier and IPv6 addresses into use by and by: what is compared
	// later must not change by itself.
	for _, ns := range []string{"", o.NS} {
		WaitFor(t, "addresses in use", func() bool {
			out, err := Try(ns, "ip", "-6", "-o", "address", "show", "tentative")
			if err != nil || out != "" {
				return false
			}
			have, err := Try(ns, "ip", "-6", "-o", "address", "show", "up", "scope", "link")
			routes, rerr := Try(ns, "ip", "-6", "route", "show", "table", "local", "type", "local")
			return err == nil && rerr == nil && strings.Contains(have, "fe80::") && strings.Count(routes, "local 2001:db8::") == 1 && strings.Count(routes, "local fe80::") >= 1
		})
	}
	return o
}

// WaitFor polls until ok, at most 10 seconds.
func WaitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for range 10_000 {
		if ok() {
			return
		}
		unix.Nanosleep(&unix.Timespec{Nsec: 1e6}, nil)
	}
	t.Fatalf("%s: not within 10 s", what)
}
