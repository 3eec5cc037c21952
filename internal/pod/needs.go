package pod

import (
	"context"
	"net/netip"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// What pods need of other domains. cmd adapts the domains to these.

// Image is what a container needs to know of its image.
type Image struct {
	ID     string // digest of the configuration
	Config ocispec.ImageConfig
}

// Credential is a user of a registry.
type Credential struct{ Username, Password string }

// Images provides images.
type Images interface {
	// Find returns a local image, or errs.NotFound.
	Find(ctx context.Context, ref string) (Image, error)
	// Use returns a local image that is to be run. errs.NotFound: it is not here, or must
	// be pulled again to be verified; errs.PermissionDenied: it may not be run.
	Use(ctx context.Context, ref string) (Image, error)
	// Pull fetches it. With credentials, each is tried for its registry host.
	Pull(ctx context.Context, ref string, credentials map[string]Credential) (Image, error)
	// Layers returns the directories to overlay, topmost first, and holds the image
	// until release is called; afterwards UsedImages keeps it.
	Layers(ctx context.Context, id string) (dirs []string, release func(), err error)
}

// PortMapping opens a port of the host to a port of the pod.
type PortMapping struct {
	HostIP         netip.Addr
	HostPort, Port uint16
	Protocol       string
}

// Network connects pods. Attach and Detach are idempotent by pod.
type Network interface {
	Attach(ctx context.Context, pod ID, netns string, ports []PortMapping) ([]netip.Addr, error)
	Detach(ctx context.Context, pod ID) error
	Reconcile(ctx context.Context, live map[string]bool) error
	// ResolvConf and Hosts return the content of the pod's files.
	ResolvConf(policy string, d DNS) ([]byte, error)
	Hosts(HostsFile) ([]byte, error)
}

// HostsFile is what a pod's hosts(5) file says.
type HostsFile struct {
	Hostname, Domain string
	Addresses        []netip.Addr
	Aliases          []Alias
	Base             []byte // the host's own file, for a pod on the host's network
}

// Volumes provides claims. Publish and Unpublish are idempotent by claim and pod.
type Volumes interface {
	// Publish returns where the claim is mounted, or its device where block is true.
	Publish(ctx context.Context, namespace, claim string, pod ID, readOnly bool) (path string, block bool, err error)
	// PublishScratch returns where a filesystem of the pod's own is mounted into which at
	// least sizeBytes of files fit. It goes with UnpublishAll.
	PublishScratch(ctx context.Context, pod ID, name string, sizeBytes int64) (path string, err error)
	UnpublishAll(ctx context.Context, pod ID) error
	Reconcile(ctx context.Context, live map[string]bool) error
}
