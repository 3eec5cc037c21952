package volume

import (
	"context"
	"errors"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/fault"
	"github.com/orlop-io/orlop/internal/platform/ext4"
	"github.com/orlop-io/orlop/internal/platform/mount"
)

var (
	faultExpandIntent   = fault.New("volume.expand.intent-recorded")
	faultExpandDevice   = fault.New("volume.expand.device-grown")
	faultExpandRecorded = fault.New("volume.expand.recorded")
	faultExpandGrown    = fault.New("volume.expand.filesystem-grown")
	faultExpandDone     = fault.New("volume.expand.done-recorded")
)

// expand grows the volume to sizeBytes, and the filesystem on it now or when it is next possible.
func (v *Volumes) expand(ctx context.Context, r record, sizeBytes int64) (record, error) {
	before := r
	r.Expanding = sizeBytes
	if err := v.promise(ctx, r, before.promised()); err != nil {
		return before, err
	}
	faultExpandIntent.Hit()
	after, err := v.finishExpand(ctx, r)
	if err != nil {
		// An image that did not grow takes its promise back; one that did goes on at the next try.
		if st, serr := v.engine.Stat(ctx, r.Volume); serr == nil && st.SizeBytes == before.CapacityBytes {
			return before, errors.Join(err, v.claims.Put(before.Key(), before))
		}
	}
	return after, err
}

// finishExpand carries out what the record says.
func (v *Volumes) finishExpand(ctx context.Context, r record) (record, error) {
	if err := v.engine.Expand(ctx, r.Volume, r.Expanding); err != nil {
		return r, err
	}
	faultExpandDevice.Hit()
	r.SizeBytes, r.CapacityBytes, r.Expanding = r.Expanding, r.Expanding, 0
	r.ResizePending = r.Mode == Filesystem
	if err := v.claims.Put(r.Key(), r); err != nil {
		return r, err
	}
	faultExpandRecorded.Hit()
	return v.growFilesystem(ctx, r)
}

// growFilesystem makes the filesystem as large as its device if it is not.
//
// A mounted one is grown by the kernel, which wants CAP_SYS_RESOURCE. A process
// without it (a container, some virtual machines) grows the unmounted one, in a
// copy that then replaces the image, because resize2fs is not safe against a crash; while
// pods hold the volume, that has to wait, and the claim says so (ResizePending).
func (v *Volumes) growFilesystem(ctx context.Context, r record) (record, error) {
	if !r.ResizePending {
		return r, nil
	}
	dir := v.mountDir(r.Volume)
	mounted, err := mount.IsMounted(dir)
	switch {
	case err != nil:
		return r, err
	case mounted:
		err = ext4.GrowMounted(dir, r.CapacityBytes)
	case ext4.CanGrowMounted():
		return r, nil // cheaper when it is mounted next
	default:
		err = v.engine.Replace(ctx, r.Volume, func(path string) error { return ext4.GrowImage(ctx, path) })
	}
	if errors.Is(err, errs.PermissionDenied) || errors.Is(err, errs.InUse) {
		v.log.Info("the filesystem grows when the volume is next mounted", "claim", r.Key(), "reason", err)
		return r, nil
	}
	if err != nil {
		return r, err
	}
	faultExpandGrown.Hit()
	r.ResizePending = false
	if err := v.claims.Put(r.Key(), r); err != nil {
		return r, err
	}
	faultExpandDone.Hit()
	return r, nil
}
