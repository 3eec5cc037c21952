// Package routed is the dataplane of veth pairs, host routes and nftables.
//
// Each endpoint has a veth pair. Inside, the interface has the addresses as /32 and /128
// and a default route by a link-local gateway that exists nowhere: a permanent neighbour
// entry says that its hardware address is the host end's. On the host there is one route
// per address, and a permanent neighbour entry too, so neither side ever resolves anything.
//
// Host ends carry a device group: a magic number, the instance and one bit that says that
// the device is to be removed. Rules tell pods from the rest by it, and sweeping finds our
// devices by it: it is set in the message that makes the device.
//
// The host itself has the first address of each block, on its loopback interface: by it
// pods reach the host, also where it has no other. The rest of a block is unreachable, not
// sent to the default route.
package routed

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/store"
	"github.com/orlop-io/orlop/internal/network/dataplane"
	"github.com/orlop-io/orlop/internal/platform/link"
	"github.com/orlop-io/orlop/internal/platform/nft"
)

// Options of a Plane.
type Options struct {
	// Instance names the table and, hashed, the devices.
	Instance string
	// Blocks are the node's, at most one per family. The first address of each is the node's.
	Blocks     []netip.Prefix
	Masquerade bool
	// Durable keeps the former values of the settings that are changed.
	Durable *store.DB
	Log     *slog.Logger
}

// Plane implements dataplane.Dataplane in the network namespace of the process.
type Plane struct {
	o      Options
	log    *slog.Logger
	prefix string // of device names
	group  uint32 // of devices; with trash set, of those to be removed
	mac    net.HardwareAddr
	host   *link.Conn
	nft    *nft.Conn
	former store.Bucket[setting]
	used   store.Bucket[netip.Prefix] // blocks for which something was made on the host

	bare atomic.Bool // the host has no IPv4 address of its own

	table sync.Mutex // one change of the firewall table at a time
	// ports of the endpoints, by ID: what the table's maps hold. Guarded by table.
	ports map[string]portSet
	// blocks is what counts as pods: Options.Blocks, and addresses of endpoints outside them,
	// from before the configuration was changed. Guarded by table, like guarded.
	blocks  []netip.Prefix
	guarded [2][]string // see forwarding.go; by family

	mu       sync.Mutex
	warnings []string
}

var _ dataplane.Dataplane = (*Plane)(nil)

// The parts of a device group: 0x6f, 23 bits of the instance, one for trash.
const (
	groupMagic = 0x6f000000
	magicMask  = 0xff000000
	trash      = 1
)

// Gateways of pods. They are on no interface: see the package's comment.
var (
	gateway4 = netip.MustParseAddr("169.254.1.1")
	gateway6 = netip.MustParseAddr("fe80::1")
)

// protocol marks our routes (RTPROT_*): a number that no routing daemon uses.
const routeProtocol = 111

var encoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// New returns the plane; nothing of the host is changed before Sync. IPv6 is left out where
// the host has none.
func New(o Options) (*Plane, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	id := sha256.Sum256([]byte("orlop instance\x00" + o.Instance))
	p := &Plane{
		o: o, log: o.Log,
		prefix: "ol" + encoding.EncodeToString(id[:])[:4],
		group:  groupMagic | binary.BigEndian.Uint32(id[4:])&^(magicMask|trash),
		mac:    hardware(id[8:]),
		ports:  map[string]portSet{},
	}
	for _, b := range o.Blocks {
		if b.Addr().Is6() && !hasIPv6() {
			p.warn("this host has no IPv6 (net.ipv6.conf.all.disable_ipv6 or the kernel's command line): pods get IPv4 addresses only")
			continue
		}
		p.blocks = append(p.blocks, b.Masked())
	}
	if len(p.blocks) == 0 {
		return nil, errs.New(errs.FailedPrecondition, "this host has no IPv6 and the network has no IPv4 block: set network.ipv4Block")
	}
	p.o.Blocks = p.blocks
	var err error
	if p.former, err = store.NewBucket[setting](o.Durable, "network.settings"); err != nil {
		return nil, err
	}
	if p.used, err = store.NewBucket[netip.Prefix](o.Durable, "network.blocks"); err != nil {
		return nil, err
	}
	if p.host, err = link.Dial(); err != nil {
		return nil, err
	}
	if p.nft, err = nft.Dial(); err != nil {
		p.host.Close()
		return nil, err
	}
	return p, nil
}

// Close frees what the Plane holds in this process.
func (p *Plane) Close() error { return errors.Join(p.nft.Close(), p.host.Close()) }

// hasIPv6 tells whether new interfaces of this host take IPv6 addresses.
func hasIPv6() bool {
	for _, c := range []string{"all", "default"} {
		b, err := os.ReadFile("/proc/sys/net/ipv6/conf/" + c + "/disable_ipv6")
		if err != nil || strings.TrimSpace(string(b)) != "0" {
			return false
		}
	}
	return true
}

// Blocks are those that are in use: without IPv6's where the host has none.
func (p *Plane) Blocks() []netip.Prefix { return p.o.Blocks }

// HostInterface implements dataplane.Dataplane: 2 letters, 4 of the instance, 9 of the
// endpoint, which makes the 15 that a name may have.
func (p *Plane) HostInterface(endpoint string) string {
	id := sha256.Sum256([]byte("orlop endpoint\x00" + endpoint))
	return p.prefix + encoding.EncodeToString(id[:])[:9]
}

// MAC returns the hardware address for an endpoint, the same each time.
func (p *Plane) MAC(endpoint string) net.HardwareAddr {
	id := sha256.Sum256([]byte(p.o.Instance + "\x00" + endpoint))
	return hardware(id[:])
}

// hardware makes a locally administered unicast address (IEEE 802).
func hardware(b []byte) net.HardwareAddr {
	m := net.HardwareAddr(append([]byte(nil), b[:6]...))
	m[0] = m[0]&0xfc | 2
	return m
}

// NodeAddresses implements dataplane.Dataplane.
func (p *Plane) NodeAddresses() []netip.Addr {
	var all []netip.Addr
	for _, b := range p.o.Blocks {
		all = append(all, b.Addr().Next())
	}
	return all
}

// node returns the node's address of the family of like, zero if there is none.
func (p *Plane) node(like netip.Addr) netip.Addr {
	for _, b := range p.o.Blocks {
		if b.Addr().Is4() == like.Is4() {
			return b.Addr().Next()
		}
	}
	return netip.Addr{}
}

// Gateways implements dataplane.Dataplane.
func (p *Plane) Gateways() []netip.Addr {
	var all []netip.Addr
	for _, b := range p.o.Blocks {
		all = append(all, gateway(b.Addr()))
	}
	return all
}

func gateway(like netip.Addr) netip.Addr {
	if like.Is4() {
		return gateway4
	}
	return gateway6
}

// Warnings implements dataplane.Dataplane.
func (p *Plane) Warnings() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.warnings...)
}

// warn remembers a warning, and logs it the first time.
func (p *Plane) warn(format string, args ...any) {
	w := fmt.Sprintf(format, args...)
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, old := range p.warnings {
		if old == w {
			return
		}
	}
	p.warnings = append(p.warnings, w)
	p.log.Warn(w)
}

// host prefix of one address.
func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func check(ctx context.Context, e *dataplane.Endpoint) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if e.Network != 0 {
		return errs.New(errs.Unsupported, "network %d: this dataplane knows the default network only", e.Network)
	}
	return nil
}
