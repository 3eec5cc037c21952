package network_test

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/orlop-io/orlop/internal/base/store"
	"github.com/orlop-io/orlop/internal/network"
	"github.com/orlop-io/orlop/internal/network/networktest"
	"github.com/orlop-io/orlop/test/programs"
)

// crasher is a host on which the helper runs, with two pods' namespaces and an uplink.
type crasher struct {
	t            *testing.T
	bin, dir     string
	nsA, nsB     string
	outside      *networktest.Outside
	bare         string            // the host's state before anything
	acknowledged map[string]string // what was said last of each
}

func buildCrasher(t *testing.T) string {
	t.Helper()
	dir, remove, err := programs.Build(programs.Program{Package: "internal/network/crash", Tags: "faults"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(remove)
	return filepath.Join(dir, "crash")
}

func newCrasher(t *testing.T, bin string) *crasher {
	t.Helper()
	c := &crasher{t: t, bin: bin, dir: t.TempDir(), nsA: networktest.Namespace(t), nsB: networktest.Namespace(t),
		outside: networktest.NewOutside(t), acknowledged: map[string]string{}}
	c.bare = networktest.State()
	return c
}

// run runs the helper and tells whether it was killed. Another end than that or success
// fails the test.
func (c *crasher) run(env ...string) (killed bool) {
	c.t.Helper()
	cmd := exec.Command(c.bin, "run", c.dir, c.nsA, c.nsB)
	cmd.Env = append(os.Environ(), env...)
	var out, log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &log
	err := cmd.Run()
	for line := range strings.Lines(out.String()) {
		what, of, _ := strings.Cut(strings.TrimSpace(line), " ")
		pod, event, ok := strings.Cut(what, "-")
		if !ok {
			continue
		}
		if event != "attached" {
			of = ""
		}
		c.acknowledged[pod] = of
	}
	if err == nil {
		return false
	}
	if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !ws.Signaled() || ws.Signal() != syscall.SIGKILL {
		c.t.Fatalf("helper: %v\n%s", err, log.String())
	}
	return true
}

func (c *crasher) open() (*network.Network, func()) {
	c.t.Helper()
	volatile, err := store.Open(filepath.Join(c.dir, "run.db"), store.Volatile)
	if err != nil {
		c.t.Fatal(err)
	}
	durable, err := store.Open(filepath.Join(c.dir, "state.db"), store.Durable)
	if err != nil {
		c.t.Fatal(err)
	}
	n, err := network.Open(context.Background(), network.Options{
		Instance: "orlop-crash", Run: c.dir, DB: volatile, Durable: durable,
		IPv4Block: netip.MustParsePrefix("10.88.0.0/24"), IPv6Block: netip.MustParsePrefix("fd6f:726c:6f70::/64"),
	})
	if err != nil {
		c.t.Fatal(err)
	}
	return n, func() {
		if err := errors.Join(n.Close(), volatile.Close(), durable.Close()); err != nil {
			c.t.Error(err)
		}
	}
}

// check reopens what a killed helper left, as a daemon does that starts again.
func (c *crasher) check(point string) {
	t, ctx := c.t, context.Background()
	t.Helper()
	n, done := c.open()
	// What was acknowledged is there, and works without anybody doing anything.
	listed := map[string]string{}
	for _, a := range n.List() {
		listed[a.PodID] = addresses(a)
	}
	for pod, want := range c.acknowledged {
		if attaching := strings.HasPrefix(point, "network.attach."); want != "" && listed[pod] != want && (listed[pod] != "" || attaching) {
			t.Errorf("pod %s had %s, now %s", pod, want, listed[pod])
		}
	}
	for pod, addrs := range listed {
		for _, ip := range strings.Fields(addrs) {
			if err := networktest.Ping("", ip); err != nil {
				t.Errorf("pod %s: %v", pod, err)
			}
		}
	}
	// Attaching again completes it with the addresses it had.
	a, err := n.Attach(ctx, network.Request{PodID: "a", Netns: c.nsA, Ports: []network.PortMapping{{HostPort: 8080, PodPort: 80}}})
	if err != nil {
		t.Fatal(err)
	}
	if listed["a"] != "" && addresses(a) != listed["a"] {
		t.Errorf("attached again: %s, had %s", addresses(a), listed["a"])
	}
	t.Run("use", func(t *testing.T) {
		networktest.Serve(t, c.nsA, "tcp", ":80", "a")
		for _, to := range []string{c.outside.Host4 + ":8080", "[" + c.outside.Host6 + "]:8080"} {
			if name, _, err := networktest.Ask(c.outside.NS, "tcp", to); err != nil || name != "a" {
				t.Errorf("host port at %s: %q, %v", to, name, err)
			}
		}
	})
	// Only what is live stays: one device, its addresses, its ports.
	if err := n.Reconcile(ctx, map[string]bool{"a": true}); err != nil {
		t.Fatal(err)
	}
	state := networktest.State()
	if len(n.List()) != 1 || strings.Count(networktest.In(t, "", "ip", "-o", "link", "show", "type", "veth"), "\n") != 2 {
		t.Errorf("leaked: %+v\n%s", n.List(), state)
	}
	if strings.Contains(state, "8081") {
		t.Errorf("leaked a host port:\n%s", state)
	}
	if err := n.Detach(ctx, "a"); err != nil {
		t.Error(err)
	}
	if err := n.Settle(ctx); err != nil {
		t.Error(err)
	}
	if err := n.Teardown(ctx); err != nil {
		t.Error(err)
	}
	done()
	if after := networktest.State(); after != c.bare {
		t.Errorf("not as it was:\n%s\n---\n%s", c.bare, after)
	}
}

func addresses(a network.Attachment) string {
	var s []string
	for _, p := range a.Addresses {
		s = append(s, p.Addr().String())
	}
	return strings.Join(s, " ")
}

func TestKilledAtEveryPoint(t *testing.T) {
	bin := buildCrasher(t)
	out, err := exec.Command(bin, "points").Output()
	if err != nil {
		t.Fatal(err)
	}
	points := strings.Fields(string(out))
	if len(points) < 20 {
		t.Fatalf("only %d points: %v", len(points), points)
	}
	for _, point := range points {
		t.Run(point, func(t *testing.T) {
			reached := false
			for _, nth := range []string{"1", "2", "3", "4"} {
				c := newCrasher(t, bin)
				killed := c.run("ORLOP_FAULT=" + point + ":" + nth)
				if killed {
					reached = true
					c.check(point)
				}
				for _, undo := range []string{c.outside.Link} {
					networktest.Try("", "ip", "link", "del", undo)
				}
				if !killed {
					break
				}
			}
			if !reached {
				t.Error("nothing reaches this point")
			}
		})
	}
}

// Killed while starting again after having been killed, and again, at every point: it
// must still come out right.
func TestKilledOverAndOver(t *testing.T) {
	bin := buildCrasher(t)
	out, err := exec.Command(bin, "points").Output()
	if err != nil {
		t.Fatal(err)
	}
	c := newCrasher(t, bin)
	kills := 0
	for _, point := range strings.Fields(string(out)) {
		if strings.HasPrefix(point, "network.teardown.") {
			continue
		}
		if c.run("ORLOP_FAULT=" + point) {
			kills++
		}
	}
	t.Logf("killed %d times", kills)
	c.check("")
	if kills < 10 {
		t.Errorf("killed only %d times", kills)
	}
}

func TestTeardownAfterKill(t *testing.T) {
	bin := buildCrasher(t)
	for _, point := range []string{"network.attach.host-routes-set", "network.detach.devices-marked", "network.setup.table-written"} {
		t.Run(point, func(t *testing.T) {
			c := newCrasher(t, bin)
			if !c.run("ORLOP_FAULT=" + point) {
				t.Fatal("not killed")
			}
			n, done := c.open()
			if err := n.Teardown(context.Background()); err != nil {
				t.Error(err)
			}
			done()
			if after := networktest.State(); after != c.bare {
				t.Errorf("not as it was:\n%s\n---\n%s", c.bare, after)
			}
		})
	}
}
