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
	"net/netip"
	"sync"

	"github.com/orlop-io/orlop/internal/base/keylock"
	"github.com/orlop-io/orlop/internal/base/store"
	"github.com/orlop-io/orlop/internal/network/dataplane"
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
	plane dataplane.Dataplane

	endpoints store.Bucket[record]
	cursors   store.Bucket[cursor]
	locks     keylock.Locks // by pod

	mu       sync.Mutex
	records  map[string]record // what the volatile state says
	pools    []*pool           // one per family
	removing map[string]chan struct{}
	warnings []string

	background sync.WaitGroup
	queue      chan string
	stop       context.CancelFunc
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
	// NodeAddresses are the host's own addresses as the pod sees the host, one per family.
	NodeAddresses []netip.Addr
	MAC           string
	MTU           int
	Ports         []PortMapping
}

var errNotYet = errors.New("network: not there yet")

// Open prepares the host: forwarding, the firewall table, the node's own addresses. It is
// idempotent, and it goes on with what a killed process left undone. Pods that are attached
// are not touched. Close ends what Open began; pods stay connected.
func Open(ctx context.Context, o Options) (*Network, error) { return nil, errNotYet }

// Close waits for removals that are under way. What it does not get to do is done after
// the next Open.
func (n *Network) Close() error { return nil }

// Attach connects a pod. It is idempotent: repeated for a pod, also by another process
// after a crash, it completes what is missing and returns the same addresses.
//
// Errors: errs.Invalid (request), errs.InUse (a host port is taken), errs.ResourceExhausted
// (no address left), errs.NotFound (no such namespace). After an error nothing is left.
func (n *Network) Attach(ctx context.Context, r Request) (Attachment, error) {
	return Attachment{}, errNotYet
}

// Detach disconnects a pod. It is idempotent. It returns once the removal is recorded and
// the host ports are free; the kernel's slow removal of the device goes on behind, and the
// addresses are not given to another before that is done.
func (n *Network) Detach(ctx context.Context, podID string) error { return errNotYet }

// Reconcile detaches every pod that is not live, removes devices and rules that no record
// accounts for, and restores what is missing for those that are live.
func (n *Network) Reconcile(ctx context.Context, live map[string]bool) error { return errNotYet }

// List returns the attached pods, by pod ID.
func (n *Network) List() []Attachment { return nil }

// Warnings say what on this host keeps pods from being reached, each with what to do.
func (n *Network) Warnings() []string { return nil }

// Teardown removes everything that Open and Attach made on this host, for all pods, and
// restores the host's settings. It is idempotent. The Network is of no use afterwards.
func (n *Network) Teardown(ctx context.Context) error { return errNotYet }
