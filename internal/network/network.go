// Package network gives pods their addresses and connects them.
//
// Every pod has a pair of veth devices: eth0 inside, and one on the host. Nothing
// bridges the host's ends; the host routes between them, with one route per address.
// A pod's only neighbour is a link-local gateway (169.254.1.1, fe80::1) that has the
// host end's hardware address as a permanent neighbour entry, so no pod sees another's
// link layer, nothing is resolved and nothing has to answer for another. Addresses come
// from the node's blocks. What leaves the node for anywhere but pods is masqueraded;
// host ports are translated by maps, so their number costs nothing per packet.
//
// This package decides: which address, which port, what is to live and what is not. How
// the kernel is told is behind the interface of package dataplane.
//
// Crash safety: a record in the volatile state precedes every effect and outlives its
// removal. A pod's record is made (attaching), the effects follow, the record says
// attached; Detach marks it (detaching), undoes, and the record goes last, with the
// address. Devices are named after instance and pod, and carry the instance's group, so
// whatever no record accounts for can be found and swept (Reconcile).
package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/keylock"
	"github.com/orlop-io/orlop/internal/base/store"
	"github.com/orlop-io/orlop/internal/network/dataplane"
	"github.com/orlop-io/orlop/internal/network/routed"
)

// Options say where the network keeps its state and what it hands out.
type Options struct {
	// Instance names the firewall table and, hashed, the interfaces.
	Instance string
	// Run is the volatile directory; the network keeps no files there today.
	Run string
	// DB is the volatile state: endpoints. They die with the machine.
	DB *store.DB
	// Durable keeps the former values of what was changed on the host.
	Durable *store.DB

	// IPv4Block and IPv6Block are this node's; one of them may be the zero Prefix. The first
	// address of each is the node's own.
	IPv4Block, IPv6Block netip.Prefix
	// MTU of pods' interfaces; 0 takes that of the default route's link.
	MTU int
	// NoMasquerade sends pods' own addresses out; the network around must route the blocks here.
	NoMasquerade bool

	Log *slog.Logger
}

// Network is the network of one node. It is safe for concurrent use.
type Network struct {
	opts  Options
	log   *slog.Logger
	plane *routed.Plane

	endpoints store.Bucket[record]
	cursors   store.Bucket[cursor]
	locks     keylock.Locks // by pod

	// gate is held for reading by what concerns one pod, for writing by what concerns all.
	gate sync.RWMutex
	torn bool // by Teardown; guarded by gate

	mu      sync.Mutex
	records map[string]*record // what the volatile state says; replaced, never changed
	pools   []*pool            // one per family
	// leaving has a channel per pod whose device is being removed behind; it is closed after.
	leaving map[string]chan struct{}
	queue   []string // of leaving, not yet taken by the remover
	wake    chan struct{}

	stop       context.CancelFunc
	background sync.WaitGroup
}

// Protocol of a port.
type Protocol = dataplane.Protocol

// The protocols of ports.
const (
	TCP  = dataplane.TCP
	UDP  = dataplane.UDP
	SCTP = dataplane.SCTP
)

// PortMapping makes a port of a pod reachable at a port of the host.
type PortMapping struct {
	HostPort uint16
	// HostIP limits the mapping to one address of the host. The zero Addr means every
	// address of both families, 0.0.0.0 every IPv4 one, :: every IPv6 one.
	HostIP   netip.Addr `json:",omitzero"`
	PodPort  uint16
	Protocol Protocol // "" is TCP
}

func (p PortMapping) String() string {
	host := "*"
	if p.HostIP.IsValid() {
		host = p.HostIP.String()
	}
	return fmt.Sprintf("%s:%d/%s", host, p.HostPort, p.Protocol)
}

// Request asks for a pod's network.
type Request struct {
	PodID string
	// Netns is the path of the pod's network namespace.
	Netns string
	// Interface is its name inside; "" is eth0.
	Interface string
	Ports     []PortMapping
}

// Attachment is a pod's network as it is.
type Attachment struct {
	PodID         string
	Interface     string // in the pod
	HostInterface string
	// Addresses of the pod, /32 and /128, IPv4 first.
	Addresses []netip.Prefix
	// Gateways are link-local, one per family.
	Gateways []netip.Addr
	// NodeAddresses are those by which the pod always reaches the host, one per family.
	NodeAddresses []netip.Addr
	MAC           string
	MTU           int
	Ports         []PortMapping
}

// Open prepares the host: forwarding, the firewall table, the node's own addresses. It is
// idempotent, and it goes on with what a killed process left undone. Pods that are attached
// are not disturbed. Close ends what Open began; pods stay connected.
func Open(ctx context.Context, o Options) (_ *Network, err error) {
	n, err := load(o)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			n.plane.Close()
		}
	}()
	// What was being removed is swept as nobody's by Sync; its records go thereafter.
	d, err := n.plane.Sync(ctx, n.staying())
	if err != nil {
		return nil, err
	}
	n.report(d)
	if err := n.forget(n.detaching()...); err != nil {
		return nil, err
	}
	bg, stop := context.WithCancel(context.Background())
	n.stop = stop
	n.background.Go(func() { n.remove(bg) })
	n.background.Go(func() { n.watch(bg) })
	return n, nil
}

// load checks the options and reads the state; nothing of the host is changed.
func load(o Options) (_ *Network, err error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.MTU != 0 && (o.MTU < 1280 || o.MTU > 65535) {
		return nil, errs.New(errs.Invalid, "MTU %d: give 0 (the default route's) or 1280 to 65535", o.MTU)
	}
	n := &Network{opts: o, log: o.Log, records: map[string]*record{}, leaving: map[string]chan struct{}{}, wake: make(chan struct{}, 1)}
	var blocks []netip.Prefix
	for i, b := range []netip.Prefix{o.IPv4Block, o.IPv6Block} {
		if !b.IsValid() {
			continue
		}
		if b.Addr().Is4() != (i == 0) || b.Addr().Is4In6() {
			return nil, errs.New(errs.Invalid, "block %s is not of IPv%d", b, 4+2*i)
		}
		if b.Addr().BitLen()-b.Bits() < 2 {
			return nil, errs.New(errs.Invalid, "block %s is too small: it needs room for the node's address and for pods", b)
		}
		blocks = append(blocks, b.Masked())
	}
	if len(blocks) == 0 {
		return nil, errs.New(errs.Invalid, "there is no block of addresses: set network.ipv4Block or network.ipv6Block")
	}
	if n.endpoints, err = store.NewBucket[record](o.DB, "network.endpoints"); err != nil {
		return nil, err
	}
	if n.cursors, err = store.NewBucket[cursor](o.DB, "network.cursors"); err != nil {
		return nil, err
	}
	n.plane, err = routed.New(routed.Options{Instance: o.Instance, Blocks: blocks, Masquerade: !o.NoMasquerade, Durable: o.Durable, Log: o.Log})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			n.plane.Close()
		}
	}()
	if err := n.read(); err != nil {
		return nil, err
	}
	return n, nil
}

// read takes the records into memory.
func (n *Network) read() error {
	all, err := n.endpoints.All()
	if err != nil {
		return err
	}
	for _, b := range n.plane.Blocks() {
		c, err := n.cursors.Get(b.String())
		if err != nil && !errors.Is(err, errs.NotFound) {
			return err
		}
		n.pools = append(n.pools, newPool(b, c.Next))
	}
	for id, r := range all {
		n.keep(id, &r)
	}
	return nil
}

// keep notes a record in memory. The caller holds mu, or is alone.
func (n *Network) keep(id string, r *record) {
	n.records[id] = r
	for _, a := range r.Endpoint.Addresses {
		for _, p := range n.pools {
			p.mark(a, 0)
		}
	}
}

// staying are the endpoints that are to be there; detaching the pods whose are not.
func (n *Network) staying() (es []dataplane.Endpoint) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(n.records)) {
		if r := n.records[id]; r.State != detaching {
			es = append(es, r.Endpoint)
		}
	}
	return es
}

func (n *Network) detaching() (ids []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for id, r := range n.records {
		if r.State == detaching {
			ids = append(ids, id)
		}
	}
	return ids
}

func (n *Network) report(d dataplane.Difference) {
	if len(d.Swept) > 0 {
		n.log.Info("interfaces of no pod are swept", "interfaces", d.Swept)
	}
	for id, err := range d.Failed {
		n.log.Warn("network of a pod cannot be completed; it is removed with the pod", "pod", id, "error", err)
	}
}

// Close waits for removals that are under way. What it does not get to do is done after
// the next Open.
func (n *Network) Close() error {
	n.stop()
	n.background.Wait()
	return n.plane.Close()
}

// List returns the attached pods, by pod ID.
func (n *Network) List() (all []Attachment) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(n.records)) {
		if r := n.records[id]; r.State == attached {
			all = append(all, n.attachment(r))
		}
	}
	return all
}

// Removing is how many pods are detached whose devices the kernel has not yet let go.
func (n *Network) Removing() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.leaving)
}

// Warnings say what on this host keeps pods from being reached, each with what to do.
func (n *Network) Warnings() []string { return n.plane.Warnings() }

// Teardown removes everything that Open and Attach made on this host, for all pods, and
// restores the host's settings. It is idempotent. The Network is of no use afterwards but
// to be closed.
func (n *Network) Teardown(ctx context.Context) error {
	return n.teardown(ctx)
}

// Teardown is Network.Teardown without Open, for a host on which Open fails. No daemon may run.
func Teardown(ctx context.Context, o Options) error {
	n, err := load(o)
	if err != nil {
		return err
	}
	return errors.Join(n.teardown(ctx), n.plane.Close())
}

func (n *Network) teardown(ctx context.Context) error {
	n.gate.Lock()
	defer n.gate.Unlock()
	n.torn = true
	if err := n.plane.Teardown(ctx); err != nil {
		return err
	}
	n.mu.Lock()
	ids := slices.Collect(maps.Keys(n.records))
	n.queue = nil
	n.mu.Unlock()
	err := n.forget(ids...)
	afterForgotten.Hit()
	return err
}
