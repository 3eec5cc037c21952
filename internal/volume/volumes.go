// Package volume is the domain of volumes: claims for persistent storage, the
// volumes that fulfil them, and where pods find them mounted.
package volume

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/keylock"
	"github.com/orlop-io/orlop/internal/base/store"
	"github.com/orlop-io/orlop/internal/volume/engine"
)

// Volumes holds all claims of a node and the volumes that fulfil them.
//
// A claim becomes one volume: a named block device of the engine (today an image
// file in the pool), formatted ext4 once when it is created, or left as it is for
// Block mode. Publishing attaches it and mounts it at one place of the host
// for however many pods hold it; the last holder's Unpublish unmounts and
// detaches. Only the durable file says which volumes there are, only the kernel
// says what is attached and mounted, and the volatile file says who holds what;
// every method compares them and applies the difference, so that any of them
// can be called again after a crash in its middle.
//
// All methods are safe for concurrent use. Operations on one claim wait for each
// other; a context that ends while waiting leaves everything as it was.
type Volumes struct {
	o      Options
	log    *slog.Logger
	engine engine.Engine
	locks  keylock.Locks // by claim key

	claims store.Bucket[record]     // durable, by claim key
	held   store.Bucket[attachment] // volatile, by claim key
}

// Options says where volumes live.
type Options struct {
	Root string // durable; volumes use <Root>/volume
	Run  string // dies with the machine; volumes use <Run>/volume

	DB       *store.DB // durable: claims and volumes
	Volatile *store.DB // who holds what; may be the same as DB in tests only

	PoolSizeBytes int64    // of the pool's image; 0: 80 % of the disk that Root is on
	ReserveBytes  int64    // of that disk, never promised to volumes
	Overcommit    float64  // how many times the pool's space may be promised; 0: 1
	Pool          PoolKind // "": found out at first start and recorded

	Log *slog.Logger
}

// Open makes the pool or attaches it, completes or undoes what a crash interrupted,
// and returns the volumes. Mounts that pods hold are left untouched.
func Open(ctx context.Context, o Options) (*Volumes, error) {
	return nil, errs.New(errs.Unsupported, "open volumes: not built yet")
}

// CreateClaim makes the claim's volume, durably. Called again with the same
// specification it returns the claim as it is; with a larger size it expands the
// volume; another mode, class or access modes, or a smaller size, is an errs.Invalid
// error. Labels and annotations are replaced. No space is errs.ResourceExhausted.
func (v *Volumes) CreateClaim(ctx context.Context, c Claim) (Claim, error) {
	return Claim{}, errs.New(errs.Unsupported, "create claim: not built yet")
}

// DeleteClaim removes the claim, its volume and the data. While pods hold it, it is an errs.InUse error that names them;
// one that does not exist is an errs.NotFound error.
func (v *Volumes) DeleteClaim(ctx context.Context, namespace, name string) error {
	return errs.New(errs.Unsupported, "delete claim: not built yet")
}

// Claims returns every claim, sorted by namespace and name.
func (v *Volumes) Claims(ctx context.Context) ([]Claim, error) {
	return nil, errs.New(errs.Unsupported, "claims: not built yet")
}

// Claim returns one claim, or an errs.NotFound error.
func (v *Volumes) Claim(ctx context.Context, namespace, name string) (Claim, error) {
	return Claim{}, errs.New(errs.Unsupported, "claim: not built yet")
}

// Publish makes the claim's volume available to the holder (a pod's ID) and returns the mounted directory,
// or for Block mode the device. With readOnly, and always for a claim that is only ReadOnlyMany,
// the directory refuses writes; a block device does not: give the container read access only.
// Publishing again for the same holder returns the same path.
func (v *Volumes) Publish(ctx context.Context, namespace, name, holder string, readOnly bool) (path string, err error) {
	return "", errs.New(errs.Unsupported, "publish: not built yet")
}

// Unpublish ends the holder's use of the claim. The last holder's Unpublish unmounts and detaches the volume.
// A holder that does not hold it, or a claim that does not exist, is no error.
func (v *Volumes) Unpublish(ctx context.Context, namespace, name, holder string) error {
	return errs.New(errs.Unsupported, "unpublish: not built yet")
}

// UnpublishAll ends every use by the holder.
func (v *Volumes) UnpublishAll(ctx context.Context, holder string) error {
	return errs.New(errs.Unsupported, "unpublish: not built yet")
}

// Reconcile makes the host agree with the given set of holders: what only others hold is unpublished,
// what nobody holds is unmounted and detached.
func (v *Volumes) Reconcile(ctx context.Context, live map[string]bool) error {
	return errs.New(errs.Unsupported, "reconcile volumes: not built yet")
}

// Stats describes the pool, for metrics and `orlop system df`.
func (v *Volumes) Stats(ctx context.Context) (Stats, error) {
	return Stats{}, errs.New(errs.Unsupported, "volume stats: not built yet")
}

// Trim gives blocks that are no longer used back to the pool and to the host's disk, and returns how many bytes the filesystems trimmed.
func (v *Volumes) Trim(ctx context.Context) (int64, error) {
	return 0, errs.New(errs.Unsupported, "trim: not built yet")
}

// Close lets go of the volumes. Mounts stay as they are, for the pods that run on.
func (v *Volumes) Close() error { return nil }

// Teardown unmounts and detaches every volume and the pool. The data stays. Afterwards only Close and Purge may be called.
func (v *Volumes) Teardown(ctx context.Context) error {
	return errs.New(errs.Unsupported, "tear down volumes: not built yet")
}

// Purge is Teardown, and removes claims, volumes, the pool and all data.
func (v *Volumes) Purge(ctx context.Context) error {
	return errs.New(errs.Unsupported, "purge volumes: not built yet")
}

// Stats is the state of the pool in numbers.
type Stats struct {
	Pool            PoolKind
	CapacityBytes   int64 // that all volumes together can ever take
	UsedBytes       int64 // taken now
	FreeBytes       int64 // that can still be written now, the reserve left alone
	PromisedBytes   int64 // sum of all volumes' sizes
	PromisableBytes int64 // that new volumes may still ask for
	HostFreeBytes   int64 // of the disk below
	ReserveBytes    int64
	Claims          int
	Published       int // volumes that somebody holds
}

// PoolKind says what the pool is.
type PoolKind string

const (
	// PoolDirectory is a directory of a filesystem that can reflink.
	PoolDirectory PoolKind = "directory"
	// PoolImage is an XFS filesystem in a sparse file.
	PoolImage PoolKind = "image"
)

// record is a claim as the durable file keeps it, with its volume.
type record struct{ Claim Claim }

// attachment says who holds a volume.
type attachment struct{ Holders map[string]holder }

type holder struct{ ReadOnly bool }

func (v *Volumes) dir() string { return filepath.Join(v.o.Run, "volume") }

func size(n int64) string { return fmt.Sprint(n) }
