package routed

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/fault"
	"github.com/orlop-io/orlop/internal/network/dataplane"
	"github.com/orlop-io/orlop/internal/platform/link"
)

var (
	afterVeth    = fault.New("network.attach.veth-made")
	afterHostUp  = fault.New("network.attach.host-end-up")
	afterPod     = fault.New("network.attach.pod-end-configured")
	afterRoutes  = fault.New("network.attach.host-routes-set")
	afterPorts   = fault.New("network.attach.ports-added")
	afterNoPorts = fault.New("network.detach.ports-removed")
	afterNoWay   = fault.New("network.detach.routes-removed")
	afterGrouped = fault.New("network.detach.devices-marked")
	afterDevices = fault.New("network.detach.devices-removed")
)

// Add implements dataplane.Dataplane.
func (p *Plane) Add(ctx context.Context, e dataplane.Endpoint) error {
	if err := check(ctx, &e); err != nil {
		return err
	}
	ns, err := os.Open(e.Netns)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return errs.New(errs.NotFound, "network namespace of %s: %w", e.ID, err)
		}
		return fmt.Errorf("network namespace of %s: %w", e.ID, err)
	}
	defer ns.Close()
	pod, err := link.DialAt(e.Netns)
	if err != nil {
		return err
	}
	defer pod.Close()
	return p.connect(e, pod, int(ns.Fd()))
}

func (p *Plane) connect(e dataplane.Endpoint, pod *link.Conn, ns int) error {
	host, inside, err := p.pair(e, pod, ns)
	if err != nil {
		return err
	}
	v4, v6 := has(e.Addresses)
	// The host's end comes up first: then the pod's has its carrier when it does, and is
	// ready at once. Redoing an end that is up does no harm.
	settings := map[int]uint32{}
	if v4 {
		settings[link.Forwarding] = 1
		settings[link.RPFilter] = 1
		// What comes from 127.0.0.1 of the host by a host port has its answers translated
		// back to it. Packets that pods themselves send there are dropped before.
		settings[link.RouteLocalnet] = 1
	}
	if err := p.host.Do(link.Configure(host.Index, settings, v6), link.Up(host.Index)); err != nil {
		return fmt.Errorf("host end of %s: %w", e.ID, err)
	}
	if v6 {
		if err := p.forwardIPv6(e.HostInterface); err != nil {
			return err
		}
	}
	afterHostUp.Hit()
	if err := pod.Do(p.inside(e, &inside)...); err != nil {
		return fmt.Errorf("interface %s of %s: %w", e.Interface, e.ID, err)
	}
	afterPod.Hit()
	if err := p.host.Do(append(p.ways(e, host.Index), link.Find(e.HostInterface, &host))...); err != nil {
		return fmt.Errorf("routes of %s: %w", e.ID, err)
	}
	if err := p.ready(e, pod, &host); err != nil {
		return err
	}
	afterRoutes.Hit()
	if err := p.addPorts(e); err != nil {
		return err
	}
	afterPorts.Hit()
	return nil
}

// pair finds both ends of the endpoint's veth, or makes them.
func (p *Plane) pair(e dataplane.Endpoint, pod *link.Conn, ns int) (host, inside link.Info, err error) {
	find := func() error {
		return errors.Join(p.host.Do(link.Find(e.HostInterface, &host)), pod.Do(link.Find(e.Interface, &inside)))
	}
	if err := find(); err != nil {
		return host, inside, err
	}
	mine := host.Index != 0 && inside.Index != 0 && host.Peer == inside.Index && inside.Peer == host.Index
	if mine && host.Group == p.group {
		return host, inside, nil
	}
	if host.Index != 0 {
		// Half removed, or of a namespace that is no more: begin anew.
		if err := p.removeDevices(e.HostInterface); err != nil {
			return host, inside, err
		}
		host = link.Info{}
		if mine {
			inside = link.Info{}
		}
	}
	if inside.Index != 0 {
		return host, inside, errs.New(errs.AlreadyExists, "%s has an interface %s already, which is not ours", e.ID, e.Interface)
	}
	err = p.host.Do(link.AddVeth(link.Veth{
		Name: e.HostInterface, Peer: e.Interface, MAC: p.mac, PeerMAC: e.MAC,
		MTU: e.MTU, Group: p.group, PeerNamespace: ns,
	}))
	if err != nil {
		return host, inside, fmt.Errorf("interface of %s: %w", e.ID, err)
	}
	afterVeth.Hit()
	if err := find(); err != nil {
		return host, inside, err
	}
	if host.Index == 0 || inside.Index == 0 {
		return host, inside, errs.New(errs.Unavailable, "interface of %s was removed by somebody while it was made", e.ID)
	}
	return host, inside, nil
}

func has(as []netip.Addr) (v4, v6 bool) {
	for _, a := range as {
		v4, v6 = v4 || a.Is4(), v6 || a.Is6()
	}
	return v4, v6
}

// inside are the requests that configure the pod's end.
func (p *Plane) inside(e dataplane.Endpoint, end *link.Info) []link.Request {
	_, v6 := has(e.Addresses)
	index := end.Index
	rs := []link.Request{
		link.Up(1), // lo is always 1
		link.Configure(index, nil, v6),
		link.Up(index),
	}
	if !slices.Equal(end.MAC, e.MAC) {
		rs = append(rs, link.SetMAC(index, e.MAC)) // which forgets neighbours, so it is before them
	}
	if v6 {
		rs = append(rs, link.AddAddress(index, linkLocal(e.MAC), false))
	}
	for _, a := range e.Addresses {
		g := gateway(a)
		rs = append(rs, link.AddAddress(index, single(a), false),
			link.SetNeighbor(index, g, p.mac))
		if a.Is4() { // fe80::/64 is on the link anyway
			rs = append(rs, link.SetRoute(link.Route{Dst: single(g), Index: index, Protocol: unix.RTPROT_STATIC}))
		}
		rs = append(rs, link.SetRoute(link.Route{Dst: everything(a), Index: index, Via: g, Source: a, Protocol: unix.RTPROT_STATIC}))
	}
	return rs
}

func everything(like netip.Addr) netip.Prefix {
	if like.Is4() {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

// linkLocal is the address that the kernel would derive from the hardware address (RFC
// 4291, appendix A), but would first probe.
func linkLocal(mac []byte) netip.Prefix {
	a := [16]byte{0xfe, 0x80, 8: mac[0] ^ 2, mac[1], mac[2], 0xff, 0xfe, mac[3], mac[4], mac[5]}
	return netip.PrefixFrom(netip.AddrFrom16(a), 64)
}

// ways are the requests that lead the host to the pod.
func (p *Plane) ways(e dataplane.Endpoint, index int) []link.Request {
	var rs []link.Request
	for _, a := range e.Addresses {
		rs = append(rs, link.SetNeighbor(index, a, e.MAC), link.SetRoute(p.way(a, index)))
	}
	return rs
}

// way is the route to a pod. The host speaks to pods by an address of its own, of the
// kernel's choice, so that what answers a datagram from an unbound socket has the address
// that the pod asked; only where it has none is the node's address chosen here. (An IPv6
// host falls back to it by itself.)
func (p *Plane) way(a netip.Addr, index int) link.Route {
	r := link.Route{Dst: single(a), Index: index, Protocol: routeProtocol}
	if a.Is4() && p.bare.Load() {
		r.Source = p.node(a)
	}
	return r
}

// ready waits until packets pass in both directions. The kernel notices behind our back that
// both ends are up, and until then drops what they are to send (since 6.8 asking is enough);
// and it takes IPv6 addresses into use behind our back.
func (p *Plane) ready(e dataplane.Endpoint, pod *link.Conn, host *link.Info) error {
	local := make([]bool, len(e.Addresses))
	var inside link.Info
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(100 * time.Microsecond) {
		rs := []link.Request{link.Find(e.Interface, &inside)}
		for i, a := range e.Addresses {
			rs = append(rs, link.IsLocal(a, &local[i]))
		}
		if err := pod.Do(rs...); err != nil {
			return err
		}
		if host.Ready() && inside.Ready() && !slices.Contains(local, false) {
			return nil
		}
		if time.Now().After(deadline) {
			return errs.New(errs.Unavailable, "interface %s of %s does not come up", e.HostInterface, e.ID)
		}
		if err := p.host.Do(link.Find(e.HostInterface, host)); err != nil {
			return err
		}
	}
}

// Release implements dataplane.Dataplane.
func (p *Plane) Release(ctx context.Context, e dataplane.Endpoint) error {
	if err := p.removePorts(e); err != nil {
		return err
	}
	afterNoPorts.Hit()
	var host link.Info
	if err := p.host.Do(link.Find(e.HostInterface, &host)); err != nil {
		return err
	}
	if host.Index != 0 {
		var rs []link.Request
		for _, a := range e.Addresses {
			rs = append(rs, link.DeleteRoute(p.way(a, host.Index)))
		}
		if err := p.host.Do(rs...); err != nil {
			return fmt.Errorf("routes of %s: %w", e.ID, err)
		}
	}
	afterNoWay.Hit()
	return nil
}

// Remove implements dataplane.Dataplane.
func (p *Plane) Remove(ctx context.Context, es []dataplane.Endpoint) error {
	var names []string
	for _, e := range es {
		names = append(names, e.HostInterface)
	}
	return p.removeDevices(names...)
}

// removeDevices marks the devices and removes all that are marked, together.
func (p *Plane) removeDevices(names ...string) error {
	var rs []link.Request
	for _, n := range names {
		rs = append(rs, link.SetGroup(n, p.group|trash))
	}
	if len(rs) > 0 {
		if err := p.host.Do(rs...); err != nil {
			return err
		}
	}
	afterGrouped.Hit()
	if err := p.host.Do(link.DeleteGroup(p.group | trash)); err != nil {
		return err
	}
	afterDevices.Hit()
	return nil
}

func (p *Plane) forwardIPv6(name string) error {
	if !hasForceForwarding() {
		return nil // all of the host forwards: see forwarding.go
	}
	path := "/proc/sys/net/ipv6/conf/" + name + "/force_forwarding"
	if err := os.WriteFile(path, []byte(strconv.Itoa(1)), 0); err != nil {
		return fmt.Errorf("let %s forward IPv6: %w", name, err)
	}
	return nil
}
