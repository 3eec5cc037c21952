package volume

import (
	"context"
	"errors"
	"fmt"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/fault"
	"github.com/orlop-io/orlop/internal/platform/mount"
)

var (
	faultPublishIntent   = fault.New("volume.publish.intent-recorded")
	faultPublishAttached = fault.New("volume.publish.attached")
	faultPublishChecked  = fault.New("volume.publish.checked")
	faultPublishMounted  = fault.New("volume.publish.mounted")
	faultPublishDone     = fault.New("volume.publish.done")

	faultUnpublishBegun    = fault.New("volume.unpublish.begun")
	faultUnpublishReadOnly = fault.New("volume.unpublish.readonly-unmounted")
	faultUnpublishReleased = fault.New("volume.unpublish.released")
	faultUnpublishRecorded = fault.New("volume.unpublish.recorded")
)

// Publish makes the claim's volume available to the holder (a pod's ID) and returns
// the mounted directory, or for Block mode the device. With readOnly, and always for
// a claim that is only ReadOnlyMany, the directory refuses writes; a block device
// does not: give the container read access only. Publishing again for the same holder returns the
// same path, and so does publishing after a crash of the daemon.
func (v *Volumes) Publish(ctx context.Context, namespace, name, holderID string, readOnly bool) (path string, err error) {
	key := Claim{Namespace: namespace, Name: name}.Key()
	if holderID == "" {
		return "", errs.New(errs.Invalid, "publish claim %s: the holder has no name", key)
	}
	ctx, unlock, err := v.lock(ctx, key)
	if err != nil {
		return "", err
	}
	defer unlock()
	r, err := v.record(key)
	if err != nil {
		return "", err
	}
	if r.Phase != Bound {
		return "", errs.New(errs.FailedPrecondition, "claim %s is %s; it cannot be used", key, r.Phase)
	}
	a, err := v.attachment(key)
	if err != nil {
		return "", err
	}
	before, again := a.Holders[holderID]
	if !again && r.onePod() && len(a.Holders) > 0 {
		return "", errs.New(errs.InUse, "claim %s is ReadWriteOncePod and in use by %s; delete that pod first", key, holders(a))
	}
	h := holder{ReadOnly: readOnly || r.readOnly()}
	if !again || before != h {
		if a.Holders == nil {
			a.Holders = make(map[string]holder)
		}
		a.Holders[holderID] = h
		if err := v.held.Put(key, a); err != nil {
			return "", err
		}
	}
	faultPublishIntent.Hit()
	if path, err = v.present(ctx, r, h.ReadOnly); err != nil {
		err = fmt.Errorf("publish claim %s: %w", key, err)
		if !again {
			err = errors.Join(err, v.unpublish(ctx, key, r.Volume, holderID))
		}
		return "", err
	}
	faultPublishDone.Hit()
	return path, nil
}

// present attaches and mounts what is not attached and mounted, and returns where it is.
func (v *Volumes) present(ctx context.Context, r record, readOnly bool) (path string, err error) {
	if r.Mode == Block {
		dev, err := v.engine.Attach(ctx, r.Volume, forBlock)
		if err != nil {
			return "", err
		}
		faultPublishAttached.Hit()
		return dev.Path, dev.Close()
	}
	dir := v.mountDir(r.Volume)
	mounted, err := mount.IsMounted(dir)
	if err != nil {
		return "", err
	}
	if !mounted {
		if r, err = v.growFilesystem(ctx, r); err != nil { // where it cannot be done later
			return "", err
		}
		if err := v.mount(ctx, r, dir); err != nil {
			return "", err
		}
	}
	if err := isolate(dir); err != nil {
		return "", err
	}
	if _, err := v.growFilesystem(ctx, r); err != nil {
		// The pod can run with the size that it had.
		v.log.Warn("the filesystem of a volume did not grow", "claim", r.Key(), "error", err)
	}
	if !readOnly {
		return dir, nil
	}
	at := v.readOnlyDir(r.Volume)
	if mounted, err = mount.IsMounted(at); err != nil {
		return "", err
	}
	if !mounted {
		if err := bindReadOnly(dir, at); err != nil {
			return "", err
		}
	}
	return at, nil
}

// mount attaches the volume and mounts its filesystem at dir.
func (v *Volumes) mount(ctx context.Context, r record, dir string) error {
	dev, err := v.engine.Attach(ctx, r.Volume, forFilesystem)
	if err != nil {
		return err
	}
	defer dev.Close() // the mount keeps it
	faultPublishAttached.Hit()
	if err := v.check(ctx, r, dev.Path); err != nil {
		return err
	}
	faultPublishChecked.Hit()
	if err := mountFilesystem(dev.Path, dir); err != nil {
		return err
	}
	faultPublishMounted.Hit()
	return nil
}

// Unpublish ends the holder's use of the claim. The last holder's Unpublish unmounts
// and detaches the volume. A holder that does not hold it, or a claim that does not
// exist, is no error. A volume that a process of the host keeps busy is an errs.InUse
// error; the holder then still holds it.
func (v *Volumes) Unpublish(ctx context.Context, namespace, name, holderID string) error {
	key := Claim{Namespace: namespace, Name: name}.Key()
	ctx, unlock, err := v.lock(ctx, key)
	if err != nil {
		return err
	}
	defer unlock()
	r, err := v.claims.Get(key)
	if errors.Is(err, errs.NotFound) {
		return v.held.Delete(key) // a claim that is gone is held by nobody
	}
	if err != nil {
		return err
	}
	if err := v.unpublish(ctx, key, r.Volume, holderID); err != nil {
		return fmt.Errorf("unpublish claim %s: %w", key, err)
	}
	if r.ResizePending {
		// Now it can be done where it could not before; if it fails, the next Publish says why.
		if a, err := v.attachment(key); err == nil && len(a.Holders) == 0 {
			if _, err := v.growFilesystem(ctx, r); err != nil {
				v.log.Warn("the filesystem of a volume did not grow", "claim", key, "error", err)
			}
		}
	}
	return nil
}

// unpublish takes the holder out, effects first: a crash in its middle leaves a
// holder without a mount, never a mount without a holder.
func (v *Volumes) unpublish(ctx context.Context, key string, id ID, holderID string) error {
	a, err := v.attachment(key)
	if err != nil {
		return err
	}
	h, holds := a.Holders[holderID]
	if !holds {
		return nil
	}
	faultUnpublishBegun.Hit()
	if len(a.Holders) > 1 {
		if h.ReadOnly && !a.anyReadOnly(holderID) {
			if err := unmount(ctx, v.readOnlyDir(id)); err != nil {
				return err
			}
			faultUnpublishReadOnly.Hit()
		}
		delete(a.Holders, holderID)
		err = v.held.Put(key, a)
	} else {
		if err := v.release(ctx, id); err != nil {
			if !errors.Is(err, errs.InUse) || v.stillMounted(id) {
				return err
			}
			// Unmounted here; a container that is just ending keeps the device, which goes
			// with it. Attach finds it if it is needed before.
			v.log.Info("a volume's device goes with its last user", "claim", key, "volume", id, "reason", err)
		}
		faultUnpublishReleased.Hit()
		err = v.held.Delete(key)
	}
	if err != nil {
		return err
	}
	faultUnpublishRecorded.Hit()
	return nil
}

func (v *Volumes) stillMounted(id ID) bool {
	mounted, err := mount.IsMounted(v.mountDir(id))
	return err != nil || mounted
}

// UnpublishAll ends every use by the holder, and deletes its scratch space.
func (v *Volumes) UnpublishAll(ctx context.Context, holderID string) error {
	all, err := v.held.All()
	if err != nil {
		return err
	}
	var bad []error
	for key, a := range all {
		if _, holds := a.Holders[holderID]; holds {
			ns, name := splitKey(key)
			bad = append(bad, v.Unpublish(ctx, ns, name, holderID))
		}
	}
	if err := errors.Join(bad...); err != nil {
		return err
	}
	return v.dropScratch(ctx, func(id string) bool { return id == holderID })
}
