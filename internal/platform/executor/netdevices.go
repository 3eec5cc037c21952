package executor

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/link"
)

// netDevice is a network device of the host that becomes the container's (OCI
// config-linux.md, "Network Devices"). The kernel takes its addresses away when it moves
// it; those that somebody has set for the whole world are given back to it.
type netDevice struct {
	name, inside string
	addresses    []netlink.Addr
	moved        bool
}

// netDevices checks which devices are to be moved.
func (b *builder) netDevices(devices map[string]specs.LinuxNetDevice) error {
	for _, name := range sortedKeys(devices) {
		d := &netDevice{name: name, inside: devices[name].Name}
		if d.inside == "" {
			d.inside = name
		}
		for _, n := range []string{d.name, d.inside} {
			if n == "" || n == "." || n == ".." || len(n) >= unix.IFNAMSIZ || strings.ContainsAny(n, "/:% \t\n\v\f\r\x00") {
				return errs.New(errs.Invalid, "linux.netDevices: %q is not the name of a device", n)
			}
		}
		if i := slices.IndexFunc(b.devs, func(o *netDevice) bool { return o.inside == d.inside }); i >= 0 {
			return errs.New(errs.Invalid, "linux.netDevices: %s and %s would both be %s", b.devs[i].name, name, d.inside)
		}
		b.devs = append(b.devs, d)
	}
	if len(b.devs) > 0 && b.own&unix.CLONE_NEWNET == 0 {
		return errs.New(errs.Invalid, "linux.netDevices need a network namespace of the container's own")
	}
	return nil
}

// moveDevices moves them to the network namespace of pid. If one cannot be, those before
// it are the host's again.
func (b *builder) moveDevices(pid int) (err error) {
	if len(b.devs) == 0 {
		return nil
	}
	if b.netNS == nil {
		if b.netNS, err = os.Open(fmt.Sprintf("/proc/%d/ns/net", pid)); err != nil {
			return err
		}
		b.opened = append(b.opened, b.netNS)
	}
	host, inside, err := b.dial()
	if err != nil {
		return err
	}
	defer host.Close()
	defer inside.Close()
	for _, d := range b.devs {
		var l netlink.Link
		if l, err = netlink.LinkByName(d.name); err == nil {
			d.addresses, err = netlink.AddrList(l, netlink.FAMILY_ALL)
		}
		if err == nil {
			d.addresses = slices.DeleteFunc(d.addresses, func(a netlink.Addr) bool {
				return a.Flags&unix.IFA_F_PERMANENT == 0 || a.Scope != unix.RT_SCOPE_UNIVERSE
			})
			err = d.move(host, inside, b.netNS, d.name, d.inside)
		}
		if _, missing := err.(netlink.LinkNotFoundError); missing {
			err = errs.As(errs.NotFound, err)
		}
		if err != nil {
			b.returnDevices()
			return kinded(fmt.Errorf("move network device %s into the container: %w", d.name, err), err)
		}
	}
	return nil
}

func (b *builder) dial() (host, inside *link.Conn, err error) {
	if host, err = link.Dial(); err != nil {
		return nil, nil, err
	}
	if inside, err = link.DialAt(fmt.Sprintf("/proc/self/fd/%d", b.netNS.Fd())); err != nil {
		host.Close()
		return nil, nil, err
	}
	return host, inside, nil
}

// returnDevices gives devices back to the host after a start that failed: what is left
// in a network namespace that ends is gone, unless it is hardware.
func (b *builder) returnDevices() {
	if !slices.ContainsFunc(b.devs, func(d *netDevice) bool { return d.moved }) {
		return
	}
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return
	}
	defer home.Close()
	host, inside, err := b.dial()
	if err != nil {
		return
	}
	defer host.Close()
	defer inside.Close()
	for _, d := range b.devs {
		if d.moved {
			d.move(inside, host, home, d.inside, d.name)
			d.moved = false
		}
	}
}

// move moves the device and renames it in one step, so that neither name has to be free
// in both namespaces, and brings it up with its addresses.
func (d *netDevice) move(from, to *link.Conn, ns *os.File, name, newName string) error {
	var info link.Info
	if err := from.Do(link.Find(name, &info)); err != nil {
		return err
	}
	if err := from.Do(link.Move(info.Index, newName, int(ns.Fd()))); err != nil {
		return err
	}
	d.moved = true
	if err := to.Do(link.Find(newName, &info)); err != nil {
		return err
	}
	var rs []link.Request
	for _, a := range d.addresses {
		if p, ok := netip.AddrFromSlice(a.IP); ok {
			ones, _ := a.Mask.Size()
			rs = append(rs, link.AddAddress(info.Index, netip.PrefixFrom(p.Unmap(), ones), false))
		}
	}
	return to.Do(append(rs, link.Up(info.Index))...)
}
