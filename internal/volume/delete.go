package volume

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/fault"
)

var (
	faultDeleteIntent   = fault.New("volume.delete.intent-recorded")
	faultDeleteDetached = fault.New("volume.delete.detached")
	faultDeleteRemoved  = fault.New("volume.delete.image-removed")
	faultDeleteRecorded = fault.New("volume.delete.recorded")
)

// DeleteClaim removes the claim, its volume and the data. While pods hold it, it is
// an errs.InUse error that names them; one that does not exist is an errs.NotFound
// error.
func (v *Volumes) DeleteClaim(ctx context.Context, namespace, name string) error {
	key := Claim{Namespace: namespace, Name: name}.Key()
	ctx, unlock, err := v.lock(ctx, key)
	if err != nil {
		return err
	}
	defer unlock()
	r, err := v.record(key)
	if err != nil {
		return err
	}
	a, err := v.attachment(key)
	if err != nil {
		return err
	}
	if len(a.Holders) > 0 {
		return errs.New(errs.InUse, "claim %s is in use by %s; delete the pods first", key, holders(a))
	}
	r.Phase = Deleting
	if err := v.claims.Put(key, r); err != nil {
		return err
	}
	faultDeleteIntent.Hit()
	if err := v.finishDelete(ctx, r); err != nil {
		return fmt.Errorf("delete claim %s: %w", key, err)
	}
	return nil
}

// finishDelete carries out what the record says.
func (v *Volumes) finishDelete(ctx context.Context, r record) error {
	if err := v.release(ctx, r.Volume); err != nil {
		return err
	}
	faultDeleteDetached.Hit()
	if err := v.engine.Delete(ctx, r.Volume); err != nil {
		return err
	}
	faultDeleteRemoved.Hit()
	if err := v.claims.Delete(r.Key()); err != nil {
		return err
	}
	faultDeleteRecorded.Hit()
	return nil
}

func holders(a attachment) string {
	return strings.Join(slices.Sorted(maps.Keys(a.Holders)), ", ")
}
