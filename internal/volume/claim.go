package volume

import (
	"regexp"
	"slices"
	"time"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/volume/engine"
)

// ID names a volume. It is a lower-case UUID; it names the volume's image, its mount
// point and the filesystem on it.
type ID = engine.ID

// Mode says how a volume is shown to pods.
type Mode string

const (
	// Filesystem volumes are published as a mounted directory (ext4).
	Filesystem Mode = "Filesystem"
	// Block volumes are published as a block device, whose bytes are the pod's alone:
	// the host never mounts them.
	Block Mode = "Block"
)

// The access modes of a claim, with Kubernetes' names. A volume lives on one
// node, so the modes that speak of many nodes mean many pods of this one.
const (
	ReadWriteOnce    = "ReadWriteOnce"    // any number of pods of this node
	ReadOnlyMany     = "ReadOnlyMany"     // alone: published read-only
	ReadWriteMany    = "ReadWriteMany"    // any number of pods of this node
	ReadWriteOncePod = "ReadWriteOncePod" // one pod; cannot be combined
)

// DefaultClass is the one storage class there is. An empty class means it too.
const DefaultClass = "orlop"

// Phase says whether a claim can be used.
type Phase string

const (
	Pending  Phase = "Pending"  // being created; CreateClaim called again completes it
	Bound    Phase = "Bound"    // has its volume
	Deleting Phase = "Deleting" // DeleteClaim called again, or the next start, completes it
)

// Claim is a request for storage and what became of it. A caller of CreateClaim
// fills the first group; the rest is answered.
type Claim struct {
	Namespace   string
	Name        string
	SizeBytes   int64 // at least; rounded up to a MiB
	AccessModes []string
	Mode        Mode              // "": Filesystem
	Class       string            // "": DefaultClass
	Labels      map[string]string `json:",omitempty"`
	Annotations map[string]string `json:",omitempty"`

	Phase         Phase     `json:",omitempty"`
	Volume        ID        `json:",omitempty"`
	CreatedAt     time.Time `json:",omitzero"`
	CapacityBytes int64     `json:",omitempty"` // of the device
	// ResizePending: the device has grown, the filesystem on it grows when the volume
	// is next mounted (this host may not grow a mounted one).
	ResizePending bool `json:",omitempty"`

	// The following are never stored.
	UsedBytes int64    `json:"-"` // taken in the pool
	Path      string   `json:"-"` // where it is mounted, or its device; "" while nobody holds it
	Holders   []string `json:"-"` // who published it, sorted
}

// Key is the claim's name as messages show it.
func (c Claim) Key() string { return c.Namespace + "/" + c.Name }

const (
	mib = 1 << 20
	// MinSizeBytes is the smallest volume: below it ext4 has no room for its journal.
	MinSizeBytes = 16 * mib
	// MaxSizeBytes is where ext4 volumes end for now: beyond it a check after a power
	// loss would take longer than a start may.
	MaxSizeBytes = 16 << 40
)

// dnsName is RFC 1123's, as Kubernetes uses it for names of objects. It is also what
// makes a name safe as a key and in messages.
var dnsName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$`)

// normalize fills in the defaults of what was asked for and refuses what can never be.
func (c Claim) normalize() (Claim, error) {
	bad := func(format string, args ...any) (Claim, error) {
		return c, errs.New(errs.Invalid, "claim "+c.Key()+": "+format, args...)
	}
	if !dnsName.MatchString(c.Namespace) || !dnsName.MatchString(c.Name) {
		return bad("namespace and name must be lower-case letters, digits, '-' and '.', at most 253")
	}
	if c.Class == "" {
		c.Class = DefaultClass
	}
	if c.Class != DefaultClass {
		return bad("storage class %q does not exist; leave storageClassName out or say %q", c.Class, DefaultClass)
	}
	switch c.Mode {
	case "":
		c.Mode = Filesystem
	case Filesystem, Block:
	default:
		return bad("volume mode %q is neither Filesystem nor Block", c.Mode)
	}
	if len(c.AccessModes) == 0 {
		return bad("accessModes is empty; ReadWriteOnce is the usual one")
	}
	c.AccessModes = slices.Compact(slices.Sorted(slices.Values(c.AccessModes)))
	for _, m := range c.AccessModes {
		switch m {
		case ReadWriteOnce, ReadOnlyMany, ReadWriteMany:
		case ReadWriteOncePod:
			if len(c.AccessModes) > 1 {
				return bad("access mode ReadWriteOncePod cannot be combined with others")
			}
		default:
			return bad("access mode %q is none of ReadWriteOnce, ReadOnlyMany, ReadWriteMany, ReadWriteOncePod", m)
		}
	}
	switch {
	case c.SizeBytes <= 0:
		return bad("requested storage must be above 0")
	case c.SizeBytes > MaxSizeBytes:
		return bad("requested storage of %s is above the largest volume of %s", size(c.SizeBytes), size(MaxSizeBytes))
	}
	c.SizeBytes = max(MinSizeBytes, (c.SizeBytes+mib-1)/mib*mib)
	return c, nil
}

// readOnly tells whether every pod gets the volume read-only.
func (c Claim) readOnly() bool {
	return len(c.AccessModes) == 1 && c.AccessModes[0] == ReadOnlyMany
}

// onePod tells whether a second pod is refused.
func (c Claim) onePod() bool { return slices.Contains(c.AccessModes, ReadWriteOncePod) }
