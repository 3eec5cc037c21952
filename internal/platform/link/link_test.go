package link

import (
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/namespace"
)

// The tests run in a network namespace of their own.
func TestMain(m *testing.M) {
	if os.Getenv("LINK_TEST_INSIDE") != "" {
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), "LINK_TEST_INSIDE=1")
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		os.Stderr.WriteString(err.Error() + "\n")
		os.Exit(1)
	}
}

func TestBatch(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "ns")
	if err := namespace.Pin(dir, []namespace.Kind{namespace.Net}, namespace.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { namespace.Unpin(dir) })
	path := filepath.Join(dir, "net")
	ns, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	c, err := Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	inside, err := DialAt(path)
	if err != nil {
		t.Fatal(err)
	}
	defer inside.Close()
	if _, err := DialAt(path + "-not"); !errors.Is(err, errs.NotFound) {
		t.Errorf("a namespace that is not there: %v", err)
	}

	v := Veth{Name: "v0", Peer: "eth0", MAC: []byte{2, 0, 0, 0, 0, 1}, PeerMAC: []byte{2, 0, 0, 0, 0, 2}, MTU: 1400, Group: 77, PeerNamespace: int(ns.Fd())}
	var a, b, none Info
	if err := c.Do(AddVeth(v), Find("v0", &a), Find("nobody", &none)); err != nil {
		t.Fatal(err)
	}
	if err := inside.Do(Find("eth0", &b)); err != nil {
		t.Fatal(err)
	}
	if a.Index == 0 || a.Group != 77 || a.MTU != 1400 || a.MAC.String() != "02:00:00:00:00:01" || a.Peer != b.Index || b.Peer != a.Index || b.MAC.String() != "02:00:00:00:00:02" || none.Index != 0 || a.Ready() {
		t.Errorf("%+v\n%+v\n%+v", a, b, none)
	}
	// Every error is told, with what was to be done; what else is in the batch is done.
	err = c.Do(AddVeth(v), Up(a.Index), SetRoute(Route{Dst: netip.MustParsePrefix("10.0.0.0/8"), Index: 9999}))
	if !errors.Is(err, unix.EEXIST) || !errors.Is(err, errs.AlreadyExists) || !errors.Is(err, unix.ENODEV) ||
		!strings.Contains(err.Error(), "make interface v0") || !strings.Contains(err.Error(), "set route to 10.0.0.0/8") {
		t.Errorf("errors of a batch: %v", err)
	}
	if err := inside.Do(Up(b.Index)); err != nil {
		t.Fatal(err)
	}
	if err := c.Do(Find("v0", &a)); err != nil || a.Flags&unix.IFF_UP == 0 {
		t.Errorf("%+v, %v", a, err)
	}

	ip := netip.MustParsePrefix("10.9.0.1/32")
	var before, after bool
	if err := c.Do(IsLocal(ip.Addr(), &before), AddAddress(a.Index, ip, false), AddAddress(a.Index, ip, false), IsLocal(ip.Addr(), &after)); err != nil || before || !after {
		t.Errorf("local before %v, after %v, %v", before, after, err)
	}
	r := Route{Dst: netip.MustParsePrefix("10.8.0.0/16"), Unreachable: true, Protocol: 111}
	if err := c.Do(SetRoute(r), SetRoute(r), DeleteRoute(r), DeleteRoute(r), DeleteAddress(a.Index, ip), DeleteAddress(a.Index, ip)); err != nil {
		t.Errorf("twice each: %v", err)
	}
	var gone Info
	if err := c.Do(SetGroup("v0", 78), SetGroup("nobody", 78), Find("v0", &a), DeleteGroup(78), DeleteGroup(78)); err != nil || a.Group != 78 {
		t.Errorf("%+v, %v", a, err)
	}
	if err := c.Do(Find("v0", &gone)); err != nil || gone.Index != 0 {
		t.Errorf("still there: %+v, %v", gone, err)
	}
	if mtu, err := DefaultMTU(); err != nil || mtu != 1500 {
		t.Errorf("MTU without a default route: %d, %v", mtu, err)
	}
	c.Close()
	if err := c.Do(Find("v0", &gone)); err == nil {
		t.Error("a closed connection works")
	}
}
