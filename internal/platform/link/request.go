package link

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Veth is a pair of interfaces, one here and one in another namespace from the start: it is
// never moved, which would cost a grace period of RCU.
type Veth struct {
	Name, Peer    string
	MAC, PeerMAC  net.HardwareAddr
	MTU           int
	Group         uint32 // of this end
	PeerNamespace int    // descriptor of the namespace
}

func request(typ, flags int, format string, args ...any) Request {
	return Request{NetlinkRequest: nl.NewNetlinkRequest(typ, flags), what: fmt.Sprintf(format, args...)}
}

// AddVeth makes the pair. One queue each: with the kernel's default, one per CPU, every
// queue costs memory and an object in sysfs, and without XDP none but the first is used.
func AddVeth(v Veth) Request {
	r := request(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, "make interface %s", v.Name)
	r.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	common := func(add func(typ int, data []byte) *nl.RtAttr, name string, mac net.HardwareAddr) {
		add(unix.IFLA_IFNAME, nl.ZeroTerminated(name))
		add(unix.IFLA_ADDRESS, mac)
		add(unix.IFLA_MTU, nl.Uint32Attr(uint32(v.MTU)))
		add(unix.IFLA_NUM_TX_QUEUES, nl.Uint32Attr(1))
		add(unix.IFLA_NUM_RX_QUEUES, nl.Uint32Attr(1))
	}
	common(func(typ int, data []byte) *nl.RtAttr {
		a := nl.NewRtAttr(typ, data)
		r.AddData(a)
		return a
	}, v.Name, v.MAC)
	r.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(v.Group)))
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("veth"))
	peer := info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(nl.VETH_INFO_PEER, nil)
	nl.NewIfInfomsgChild(peer, unix.AF_UNSPEC)
	common(peer.AddRtAttr, v.Peer, v.PeerMAC)
	peer.AddRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(v.PeerNamespace)))
	r.AddData(info)
	return r
}

// Find fills info with what is known of the interface of that name; where there is none,
// info is zero. Since 6.8 the kernel first catches up with the carrier's state.
func Find(name string, info *Info) Request {
	r := request(unix.RTM_GETLINK, 0, "look for interface %s", name).Ignoring(unix.ENODEV)
	r.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	r.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	r.AddData(nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(1<<3))) // RTEXT_FILTER_SKIP_STATS
	*info = Info{}
	r.answer = info.parse
	return r
}

// Up brings the interface up.
func Up(index int) Request {
	r := request(unix.RTM_NEWLINK, 0, "bring up interface %d", index)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index, msg.Flags, msg.Change = int32(index), unix.IFF_UP, unix.IFF_UP
	r.AddData(msg)
	return r
}

// Move moves the interface to the network namespace that ns is a descriptor of, and gives it
// that name there. Its addresses and routes are lost.
func Move(index int, name string, ns int) Request {
	r := request(unix.RTM_NEWLINK, 0, "move interface %d to another namespace as %s", index, name)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	r.AddData(msg)
	r.AddData(nl.NewRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(ns))))
	r.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	return r
}

// IPv4 settings of an interface, as under net.ipv4.conf (IPV4_DEVCONF_*, linux/ip.h).
const (
	Forwarding    = 1
	RPFilter      = 8
	RouteLocalnet = 26
)

// Configure sets IPv4 settings of the interface and keeps the kernel from giving it an IPv6
// link-local address of its own (which would have to be probed first). It must come before
// Up. ipv6 is false where the kernel has none.
func Configure(index int, ipv4 map[int]uint32, ipv6 bool) Request {
	r := request(unix.RTM_SETLINK, 0, "configure interface %d", index)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	r.AddData(msg)
	spec := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
	if len(ipv4) > 0 {
		conf := spec.AddRtAttr(unix.AF_INET|unix.NLA_F_NESTED, nil).AddRtAttr(unix.IFLA_INET_CONF|unix.NLA_F_NESTED, nil)
		var keys []int
		for k := range ipv4 {
			keys = append(keys, k)
		}
		slices.Sort(keys)
		for _, k := range keys {
			conf.AddRtAttr(k, nl.Uint32Attr(ipv4[k]))
		}
	}
	if ipv6 {
		spec.AddRtAttr(unix.AF_INET6|unix.NLA_F_NESTED, nil).AddRtAttr(unix.IFLA_INET6_ADDR_GEN_MODE, nl.Uint8Attr(1)) // none
	}
	r.AddData(spec)
	return r
}

// AddAddress gives the interface an address, or refreshes it. IPv6 addresses are not
// probed for duplicates. A quiet address is not chosen as a source by itself: an IPv4 one
// never (scope link), an IPv6 one only where there is no other (deprecated).
func AddAddress(index int, p netip.Prefix, quiet bool) Request {
	r := request(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, "add address %s", p)
	address(r, index, p, quiet)
	if p.Addr().Is6() {
		r.AddData(nl.NewRtAttr(unix.IFA_FLAGS, nl.Uint32Attr(unix.IFA_F_NODAD)))
		if quiet {
			info := make([]byte, 16) // struct ifa_cacheinfo: preferred 0, valid for ever
			copy(info[4:], []byte{0xff, 0xff, 0xff, 0xff})
			r.AddData(nl.NewRtAttr(unix.IFA_CACHEINFO, info))
		}
	}
	return r
}

// IsLocal sets local to whether packets to the address are delivered here. The kernel takes
// an IPv6 address into use behind the back of who added it, also one that is not probed.
func IsLocal(a netip.Addr, local *bool) Request {
	r := request(unix.RTM_GETROUTE, 0, "look up route to %s", a).Ignoring(unix.ENETUNREACH, unix.EHOSTUNREACH)
	msg := nl.NewRtMsg()
	msg.Family, msg.Dst_len = uint8(family(a)), uint8(a.BitLen())
	msg.Table, msg.Protocol, msg.Scope, msg.Type = 0, 0, 0, 0
	r.AddData(msg)
	r.AddData(nl.NewRtAttr(unix.RTA_DST, a.AsSlice()))
	*local = false
	r.answer = func(data []byte) {
		*local = len(data) >= unix.SizeofRtMsg && nl.DeserializeRtMsg(data).Type == unix.RTN_LOCAL
	}
	return r
}

// SetMAC gives the interface a hardware address.
func SetMAC(index int, mac net.HardwareAddr) Request {
	r := request(unix.RTM_SETLINK, 0, "set hardware address of interface %d", index)
	msg := nl.NewIfInfomsg(unix.AF_UNSPEC)
	msg.Index = int32(index)
	r.AddData(msg)
	r.AddData(nl.NewRtAttr(unix.IFLA_ADDRESS, mac))
	return r
}

// DeleteAddress takes the address away; one that is not there is no error.
func DeleteAddress(index int, p netip.Prefix) Request {
	r := request(unix.RTM_DELADDR, 0, "delete address %s", p).Ignoring(unix.EADDRNOTAVAIL, unix.ENODEV)
	address(r, index, p, false)
	return r
}

func address(r Request, index int, p netip.Prefix, quiet bool) {
	msg := nl.NewIfAddrmsg(family(p.Addr()))
	msg.Index, msg.Prefixlen = uint32(index), uint8(p.Bits())
	if p.Addr().IsLinkLocalUnicast() || quiet && p.Addr().Is4() {
		msg.Scope = unix.RT_SCOPE_LINK
	}
	r.AddData(msg)
	r.AddData(nl.NewRtAttr(unix.IFA_LOCAL, p.Addr().AsSlice()))
	r.AddData(nl.NewRtAttr(unix.IFA_ADDRESS, p.Addr().AsSlice()))
}

// Route says where packets to Dst go, in the main table.
type Route struct {
	Dst      netip.Prefix
	Index    int        // of the interface; 0 with Unreachable
	Via      netip.Addr // zero: Dst is on the link
	Source   netip.Addr // preferred source address; zero: the kernel's choice
	Protocol uint8      // who made it, RTPROT_*
	// Unreachable answers the sender that there is no way.
	Unreachable bool
}

// SetRoute makes the route, or takes the place of the one to the same destination.
func SetRoute(rt Route) Request {
	r := request(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, "set route to %s", rt.Dst)
	route(r, rt)
	return r
}

// DeleteRoute removes the route by destination and interface; one that is not there is no error.
func DeleteRoute(rt Route) Request {
	r := request(unix.RTM_DELROUTE, 0, "delete route to %s", rt.Dst).Ignoring(unix.ESRCH, unix.ENODEV, unix.ENOENT)
	route(r, rt)
	return r
}

func route(r Request, rt Route) {
	msg := nl.NewRtMsg()
	msg.Family = uint8(family(rt.Dst.Addr()))
	msg.Dst_len = uint8(rt.Dst.Bits())
	msg.Protocol = rt.Protocol
	msg.Scope = unix.RT_SCOPE_UNIVERSE
	msg.Type = unix.RTN_UNICAST
	switch {
	case rt.Unreachable:
		msg.Type = unix.RTN_UNREACHABLE
	case !rt.Via.IsValid():
		msg.Scope = unix.RT_SCOPE_LINK
	}
	r.AddData(msg)
	if rt.Dst.Bits() > 0 {
		r.AddData(nl.NewRtAttr(unix.RTA_DST, rt.Dst.Addr().AsSlice()))
	}
	if rt.Index > 0 {
		r.AddData(nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(uint32(rt.Index))))
	}
	if rt.Via.IsValid() {
		r.AddData(nl.NewRtAttr(unix.RTA_GATEWAY, rt.Via.AsSlice()))
	}
	if rt.Source.IsValid() {
		r.AddData(nl.NewRtAttr(unix.RTA_PREFSRC, rt.Source.AsSlice()))
	}
}

// SetNeighbor makes a permanent entry: who has the address is never asked.
func SetNeighbor(index int, a netip.Addr, mac net.HardwareAddr) Request {
	r := request(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, "set neighbour %s", a)
	msg := &neighbor{family: uint8(family(a)), index: uint32(index), state: unix.NUD_PERMANENT}
	r.AddData(msg)
	r.AddData(nl.NewRtAttr(unix.NDA_DST, a.AsSlice()))
	r.AddData(nl.NewRtAttr(unix.NDA_LLADDR, mac))
	return r
}

// neighbor is struct ndmsg.
type neighbor struct {
	family uint8
	index  uint32
	state  uint16
}

func (n *neighbor) Len() int { return unix.SizeofNdMsg }

func (n *neighbor) Serialize() []byte {
	b := make([]byte, 0, unix.SizeofNdMsg)
	b = append(b, n.family, 0, 0, 0)
	b = append(b, nl.Uint32Attr(n.index)...)
	b = append(b, nl.Uint16Attr(n.state)...)
	return append(b, 0, 0)
}

// SetGroup puts the interface of that name into a group; one that is gone is no error.
func SetGroup(name string, group uint32) Request {
	r := request(unix.RTM_SETLINK, 0, "set group of interface %s", name).Ignoring(unix.ENODEV)
	r.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	r.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	r.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(group)))
	return r
}

// DeleteGroup removes every interface of the group. The kernel does them together, so that
// its grace periods are paid once. An empty group is no error.
func DeleteGroup(group uint32) Request {
	r := request(unix.RTM_DELLINK, 0, "delete interfaces of group %#x", group).Ignoring(unix.ENODEV)
	r.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	r.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(group)))
	return r
}

func family(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}
