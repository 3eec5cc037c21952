// Package volume is the domain of volumes: claims for persistent storage, the
// volumes that fulfil them, and where pods find them mounted.
package volume

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/keylock"
	"github.com/orlop-io/orlop/internal/base/store"
	"github.com/orlop-io/orlop/internal/volume/engine"
	"github.com/orlop-io/orlop/internal/volume/pool"
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
// other. A context that ends while an operation waits for its turn leaves
// everything as it was; an operation that has begun is finished.
type Volumes struct {
	o      Options
	log    *slog.Logger
	pool   *pool.Pool
	engine engine.Engine
	locks  keylock.Locks // by claim key

	claims store.Bucket[record]     // durable, by claim key
	held   store.Bucket[attachment] // volatile, by claim key

	// promising is held from asking how much may be promised until it is recorded.
	promising sync.Mutex
}

// Options says where volumes live.
type Options struct {
	Root string // durable; volumes use <Root>/volume
	Run  string // dies with the machine; volumes use <Run>/volume

	DB       *store.DB // durable: claims and volumes
	Volatile *store.DB // who holds what

	PoolSizeBytes int64    // of the pool's image; 0: 80 % of the disk that Root is on
	ReserveBytes  int64    // of that disk, never promised to volumes
	Overcommit    float64  // how many times the pool's space may be promised; 0: 1
	Pool          PoolKind // "": found out at first start, then what is there

	Log *slog.Logger // nil: none
}

// PoolKind says what the pool is.
type PoolKind = pool.Kind

const (
	// PoolDirectory is a directory of a filesystem that can reflink.
	PoolDirectory = pool.Directory
	// PoolImage is an XFS filesystem in a sparse file.
	PoolImage = pool.Image
)

// record is a claim as the durable file keeps it, with what is being done to its volume.
type record struct {
	Claim
	// Expanding is the size that an expansion under way goes to; 0: none.
	Expanding int64 `json:",omitempty"`
}

// promised is what the volume may grow to take.
func (r record) promised() int64 { return max(r.SizeBytes, r.CapacityBytes, r.Expanding) }

// attachment says who holds a volume. It is recorded before the volume is attached
// and taken away after it is detached.
type attachment struct {
	Holders map[string]holder
}

type holder struct {
	ReadOnly bool `json:",omitempty"`
}

// anyReadOnly tells whether a holder but the given one has it read-only.
func (a attachment) anyReadOnly(but string) bool {
	for id, h := range a.Holders {
		if id != but && h.ReadOnly {
			return true
		}
	}
	return false
}

// Open makes the pool or attaches it, completes or undoes what a crash interrupted,
// and returns the volumes. Mounts that pods hold are left untouched.
func Open(ctx context.Context, o Options) (*Volumes, error) {
	v, err := open(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("open volumes: %w", err)
	}
	return v, nil
}

func open(ctx context.Context, o Options) (*Volumes, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Overcommit == 0 {
		o.Overcommit = 1
	}
	if o.Overcommit < 1 {
		return nil, errs.New(errs.Invalid, "overcommit of %v is below 1", o.Overcommit)
	}
	v := &Volumes{o: o, log: o.Log}
	var err error
	if v.claims, err = store.NewBucket[record](o.DB, "volume.claims"); err != nil {
		return nil, err
	}
	if v.held, err = store.NewBucket[attachment](o.Volatile, "volume.held"); err != nil {
		return nil, err
	}
	if err := v.forgetFormerBoot(); err != nil {
		return nil, err
	}
	all, err := v.claims.All()
	if err != nil {
		return nil, err
	}
	bound := false
	for _, r := range all {
		bound = bound || r.Phase == Bound
	}
	v.pool, err = pool.Open(ctx, pool.Options{
		Dir: filepath.Join(o.Root, "volume"), Run: v.runDir(), Kind: o.Pool,
		SizeBytes: o.PoolSizeBytes, ReserveBytes: o.ReserveBytes, MustExist: bound, Log: o.Log,
	})
	if err != nil {
		return nil, err
	}
	v.engine = v.pool
	if err := os.MkdirAll(v.mountsDir(), 0o700); err != nil {
		return nil, err
	}
	v.recover(ctx)
	return v, nil
}

func (v *Volumes) runDir() string    { return filepath.Join(v.o.Run, "volume") }
func (v *Volumes) mountsDir() string { return filepath.Join(v.runDir(), "mounts") }

// mountDir is where a Filesystem volume is mounted for everybody on the host.
func (v *Volumes) mountDir(id ID) string { return filepath.Join(v.mountsDir(), string(id)) }

// readOnlyDir shows the same, read-only.
func (v *Volumes) readOnlyDir(id ID) string { return v.mountDir(id) + ".ro" }

// lock waits for the claim's turn. The context that it returns does not end, so that what has begun is finished.
func (v *Volumes) lock(ctx context.Context, key string) (context.Context, func(), error) {
	unlock, err := v.locks.Lock(ctx, key)
	return context.WithoutCancel(ctx), unlock, err
}

// Close lets go of the volumes. Mounts, and the pool, stay as they are, for the pods
// that run on and for the next Open.
func (v *Volumes) Close() error { return v.engine.Close() }

// record returns the claim's record, or an errs.NotFound error for the user.
func (v *Volumes) record(key string) (record, error) {
	r, err := v.claims.Get(key)
	if errors.Is(err, errs.NotFound) {
		return r, errs.New(errs.NotFound, "claim %s does not exist; apply a PersistentVolumeClaim of that name first", key)
	}
	return r, err
}

// attachment returns who holds the claim; none is no error.
func (v *Volumes) attachment(key string) (attachment, error) {
	a, err := v.held.Get(key)
	if errors.Is(err, errs.NotFound) {
		return attachment{}, nil
	}
	return a, err
}

// size writes bytes as a person reads them.
func size(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	f, i := float64(n)/1024, 0
	for ; f >= 1024 && i < len(units)-1; i++ {
		f /= 1024
	}
	return fmt.Sprintf("%.4g %ciB", f, units[i])
}
