package volume

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"

	"github.com/orlop-io/orlop/internal/platform/mount"
	"golang.org/x/sys/unix"
)

// Stats is the state of the pool in numbers.
type Stats struct {
	Pool            PoolKind
	CapacityBytes   int64 // that all volumes together can take, the disk below and its reserve considered
	UsedBytes       int64 // taken now
	FreeBytes       int64 // that can still be written; 0: the reserve is touched
	PromisedBytes   int64 // sum of all volumes' sizes
	PromisableBytes int64 // that new volumes may still ask for
	HostFreeBytes   int64 // of the disk below, reserve included
	ReserveBytes    int64
	Claims          int
	Published       int // claims that somebody holds
	Scratch         int // volumes that go with their pod
}

// Stats describes the pool, for metrics and `orlop system df`.
func (v *Volumes) Stats(ctx context.Context) (Stats, error) {
	space, err := v.engine.Space(ctx)
	if err != nil {
		return Stats{}, err
	}
	host, err := v.pool.HostFree()
	if err != nil {
		return Stats{}, err
	}
	claims, err := v.claims.All()
	if err != nil {
		return Stats{}, err
	}
	held, err := v.held.All()
	if err != nil {
		return Stats{}, err
	}
	s := Stats{
		Pool: v.pool.Kind(), CapacityBytes: space.CapacityBytes, UsedBytes: space.UsedBytes, FreeBytes: space.FreeBytes,
		HostFreeBytes: host, ReserveBytes: v.o.ReserveBytes,
	}
	for key, r := range claims {
		s.PromisedBytes += r.promised()
		if _, ok := r.scratchHolder(); ok {
			s.Scratch++
			continue
		}
		s.Claims++
		if len(held[key].Holders) > 0 {
			s.Published++
		}
	}
	s.PromisableBytes = max(0, int64(float64(s.CapacityBytes)*v.o.Overcommit)-s.PromisedBytes)
	return s, nil
}

// Claims returns every claim, sorted by namespace and name.
func (v *Volumes) Claims(ctx context.Context) ([]Claim, error) { return v.list(ctx, false) }

// Scratch returns every scratch space as the claim that it is kept as.
func (v *Volumes) Scratch(ctx context.Context) ([]Claim, error) { return v.list(ctx, true) }

func (v *Volumes) list(ctx context.Context, scratch bool) ([]Claim, error) {
	all, err := v.claims.All()
	if err != nil {
		return nil, err
	}
	var list []Claim
	for _, r := range all {
		if _, is := r.scratchHolder(); is == scratch {
			list = append(list, v.describe(ctx, r))
		}
	}
	slices.SortFunc(list, func(a, b Claim) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	return list, nil
}

// Claim returns one claim, or an errs.NotFound error.
func (v *Volumes) Claim(ctx context.Context, namespace, name string) (Claim, error) {
	r, err := v.record(Claim{Namespace: namespace, Name: name}.Key())
	if err != nil {
		return Claim{}, err
	}
	return v.describe(ctx, r), nil
}

// describe adds what is not recorded. What cannot be found out stays empty.
func (v *Volumes) describe(ctx context.Context, r record) Claim {
	c := r.Claim
	if st, err := v.engine.Stat(ctx, c.Volume); err == nil {
		c.UsedBytes = st.UsedBytes
	}
	if a, err := v.attachment(c.Key()); err == nil {
		c.Holders = slices.Sorted(maps.Keys(a.Holders))
	}
	if c.Mode == Filesystem {
		if mounted, err := mount.IsMounted(v.mountDir(c.Volume)); err == nil && mounted {
			c.Path = v.mountDir(c.Volume)
		}
	} else if len(c.Holders) > 0 {
		if attached, err := v.engine.Attached(ctx); err == nil {
			c.Path = attached[c.Volume]
		}
	}
	return c
}

// Trim gives blocks that are no longer used back to the pool, and by it to the
// host's disk, and returns how many bytes the filesystems looked upon as free. Mounted volumes do this as
// they free blocks (discard); a trim catches what that missed.
func (v *Volumes) Trim(ctx context.Context) (int64, error) {
	entries, err := os.ReadDir(v.mountsDir())
	if err != nil {
		return 0, err
	}
	var total int64
	var bad []error
	for _, e := range entries {
		dir := v.mountDir(ID(e.Name()))
		if mounted, err := mount.IsMounted(dir); err != nil || !mounted || ctx.Err() != nil {
			continue
		}
		n, err := mount.Trim(dir)
		if !errors.Is(err, unix.EROFS) {
			bad = append(bad, err)
		}
		total += n
	}
	bad = append(bad, v.pool.Trim(), ctx.Err())
	if err := errors.Join(bad...); err != nil {
		return total, fmt.Errorf("trim volumes: %w", err)
	}
	return total, nil
}
