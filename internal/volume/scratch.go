package volume

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// Scratch space is a volume that belongs to one holder and goes with it: a pod's emptyDir
// of limited size. It is kept, created and deleted as a claim is, whose namespace no
// user's claim can have; so what is said of crashes holds for it too.

// scratchMark begins the namespace of scratch space; what follows names its holder.
const scratchMark = "~"

// scratchHolder returns whose scratch space the claim is.
func (c Claim) scratchHolder() (holder string, ok bool) {
	return strings.CutPrefix(c.Namespace, scratchMark)
}

// PublishScratch gives the holder an empty filesystem into which at least sizeBytes of
// files fit, and not much more, and returns where it is mounted. Publishing again
// returns the same one with what is on it. It is gone after the holder's UnpublishAll. No space is
// errs.ResourceExhausted.
func (v *Volumes) PublishScratch(ctx context.Context, holderID, name string, sizeBytes int64) (path string, err error) {
	c := Claim{Namespace: scratchMark + holderID, Name: name, SizeBytes: scratchImage(sizeBytes), Mode: Filesystem, Class: DefaultClass, AccessModes: []string{ReadWriteOncePod}}
	switch {
	case !dnsName.MatchString(holderID) || !dnsName.MatchString(name):
		return "", errs.New(errs.Invalid, "scratch space %s of %s: the names must be lower-case letters, digits, '-' and '.'", name, holderID)
	case sizeBytes <= 0 || c.SizeBytes > MaxSizeBytes:
		return "", errs.New(errs.Invalid, "scratch space %s: a size of %s is not between 1 B and %s", name, size(sizeBytes), size(MaxSizeBytes))
	}
	if err := v.makeScratch(ctx, c); err != nil {
		return "", fmt.Errorf("scratch space %s: %w", name, err)
	}
	return v.Publish(ctx, c.Namespace, c.Name, holderID, false)
}

// scratchImage is the size of the image on which that much fits. Of up to 512 MiB, ext4
// without a journal takes a sixteenth for inodes and holds back a fiftieth for itself; of more a
// sixty-fourth, and at most 16 MiB.
func scratchImage(sizeBytes int64) int64 {
	n := sizeBytes + min(sizeBytes/10, sizeBytes/40+40*mib) + 2*mib
	return max(MinSizeBytes, (n+mib-1)/mib*mib)
}

func (v *Volumes) makeScratch(ctx context.Context, c Claim) error {
	ctx, unlock, err := v.lock(ctx, c.Key())
	if err != nil {
		return err
	}
	defer unlock()
	r, err := v.claims.Get(c.Key())
	if err == nil && r.Phase == Deleting {
		if err := v.finishDelete(ctx, r); err != nil {
			return err
		}
		_, err = v.claims.Get(c.Key())
	}
	if errors.Is(err, errs.NotFound) {
		_, err = v.create(ctx, c)
	}
	return err
}

// dropScratch deletes the scratch space of every holder that gone says is no more.
func (v *Volumes) dropScratch(ctx context.Context, gone func(holderID string) bool) error {
	all, err := v.claims.All()
	if err != nil {
		return err
	}
	var bad []error
	for _, r := range all {
		if holder, ok := r.scratchHolder(); ok && gone(holder) {
			if err := v.DeleteClaim(ctx, r.Namespace, r.Name); !errors.Is(err, errs.NotFound) {
				bad = append(bad, err)
			}
		}
	}
	return errors.Join(bad...)
}
