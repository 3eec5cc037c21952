package volume

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/google/uuid"
	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/fault"
)

var (
	faultCreateIntent    = fault.New("volume.create.intent-recorded")
	faultCreateMade      = fault.New("volume.create.image-made")
	faultCreateAttached  = fault.New("volume.create.attached")
	faultCreateFormatted = fault.New("volume.create.formatted")
	faultCreateDetached  = fault.New("volume.create.detached")
	faultCreateRecorded  = fault.New("volume.create.recorded")
)

// CreateClaim makes the claim's volume, durably. Called again with the same
// specification it returns the claim as it is; with a larger size it expands the
// volume; another mode, class or access modes, or a smaller size, is an errs.Invalid
// error. Labels and annotations are replaced. No space is errs.ResourceExhausted.
func (v *Volumes) CreateClaim(ctx context.Context, c Claim) (Claim, error) {
	c, err := c.normalize()
	if err != nil {
		return Claim{}, err
	}
	ctx, unlock, err := v.lock(ctx, c.Key())
	if err != nil {
		return Claim{}, err
	}
	defer unlock()
	r, err := v.claims.Get(c.Key())
	if err == nil && r.Phase == Deleting {
		if err := v.finishDelete(ctx, r); err != nil {
			return Claim{}, fmt.Errorf("create claim %s: the one of that name is still being deleted: %w", c.Key(), err)
		}
		_, err = v.claims.Get(c.Key())
	}
	switch {
	case errors.Is(err, errs.NotFound):
		r, err = v.create(ctx, c)
		if err != nil {
			err = fmt.Errorf("create claim %s: %w", c.Key(), err)
		}
	case err == nil:
		r, err = v.update(ctx, r, c)
	}
	if err != nil {
		return Claim{}, err
	}
	return v.describe(ctx, r), nil
}

func (v *Volumes) create(ctx context.Context, c Claim) (r record, err error) {
	r.Claim = Claim{
		Namespace: c.Namespace, Name: c.Name, SizeBytes: c.SizeBytes, AccessModes: c.AccessModes, Mode: c.Mode,
		Class: c.Class, Labels: c.Labels, Annotations: c.Annotations,
		Phase: Pending, Volume: ID(uuid.NewString()), CreatedAt: time.Now().UTC(), CapacityBytes: c.SizeBytes,
	}
	if err := v.promise(ctx, r, 0); err != nil {
		return r, err
	}
	faultCreateIntent.Hit()
	if err := v.make(ctx, r); err != nil {
		return r, errors.Join(err, v.undoCreate(ctx, r))
	}
	r.Phase = Bound
	if err := v.claims.Put(r.Key(), r); err != nil {
		return r, errors.Join(err, v.undoCreate(ctx, r))
	}
	faultCreateRecorded.Hit()
	return r, nil
}

// make makes the volume and formats it. This is the only place that formats, and only a volume that was
// made a moment ago: nobody was ever given one whose record says Pending, and mkfs is refused what is not
// empty besides.
func (v *Volumes) make(ctx context.Context, r record) error {
	if err := v.engine.Create(ctx, r.Volume, r.CapacityBytes); err != nil {
		return err
	}
	faultCreateMade.Hit()
	if r.Mode == Block {
		return nil
	}
	dev, err := v.engine.Attach(ctx, r.Volume, forFilesystem)
	if err != nil {
		return err
	}
	defer dev.Close()
	faultCreateAttached.Hit()
	if err := format(ctx, dev.Path, r); err != nil {
		return err
	}
	faultCreateFormatted.Hit()
	if err := dev.Close(); err != nil {
		return err
	}
	err = v.detach(ctx, r.Volume)
	faultCreateDetached.Hit()
	return err
}

// undoCreate takes away what a creation that failed, or was interrupted, has made.
func (v *Volumes) undoCreate(ctx context.Context, r record) error {
	if err := v.detach(ctx, r.Volume); err != nil {
		return err
	}
	if err := v.engine.Delete(ctx, r.Volume); err != nil {
		return err
	}
	return v.claims.Delete(r.Key())
}

// update applies what may change of a claim that exists.
func (v *Volumes) update(ctx context.Context, r record, c Claim) (record, error) {
	fixed := func(what string, is, asked any) (record, error) {
		return r, errs.New(errs.Invalid, "claim %s exists with %s %v, which cannot change to %v; delete the claim (and its data) first, or use another name", c.Key(), what, is, asked)
	}
	switch {
	case r.Mode != c.Mode:
		return fixed("volume mode", r.Mode, c.Mode)
	case r.Class != c.Class:
		return fixed("storage class", r.Class, c.Class)
	case !slices.Equal(r.AccessModes, c.AccessModes):
		return fixed("access modes", r.AccessModes, c.AccessModes)
	case c.SizeBytes < r.SizeBytes:
		return r, errs.New(errs.Invalid, "claim %s has %s and cannot shrink to %s", c.Key(), size(r.SizeBytes), size(c.SizeBytes))
	}
	if !maps.Equal(r.Labels, c.Labels) || !maps.Equal(r.Annotations, c.Annotations) {
		r.Labels, r.Annotations = c.Labels, c.Annotations
		if err := v.claims.Put(r.Key(), r); err != nil {
			return r, err
		}
	}
	if c.SizeBytes > r.SizeBytes {
		var err error
		if r, err = v.expand(ctx, r, c.SizeBytes); err != nil {
			return r, fmt.Errorf("expand claim %s to %s: %w", c.Key(), size(c.SizeBytes), err)
		}
	}
	return r, nil
}

// promise records r if the pool can promise what it asks for more than before.
func (v *Volumes) promise(ctx context.Context, r record, before int64) error {
	v.promising.Lock()
	defer v.promising.Unlock()
	s, err := v.Stats(ctx)
	if err != nil {
		return err
	}
	more := r.promised() - before
	switch {
	case s.FreeBytes == 0:
		return errs.New(errs.ResourceExhausted, "the disk has %s free, of which %s are kept in reserve; free some space, or lower volume.reserveBytes", size(s.HostFreeBytes), size(s.ReserveBytes))
	case more > s.PromisableBytes:
		return errs.New(errs.ResourceExhausted, "%s more are asked for, and %s of the pool's %s are not promised yet; delete claims, free disk space, raise volume.poolSizeBytes, or let volume.overcommit promise more than there is",
			size(more), size(s.PromisableBytes), size(s.CapacityBytes))
	}
	return v.claims.Put(r.Key(), r)
}
