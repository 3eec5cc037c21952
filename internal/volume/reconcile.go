package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/store"
	"github.com/orlop-io/orlop/internal/platform/mount"
	"github.com/orlop-io/orlop/internal/volume/pool"
)

func splitKey(key string) (namespace, name string) {
	namespace, name, _ = strings.Cut(key, "/")
	return namespace, name
}

// forgetFormerBoot clears who holds what if the machine was started since: its
// mounts and devices are gone. The directory of a volatile file need not be on tmpfs, so the
// kernel's boot id tells.
func (v *Volumes) forgetFormerBoot() error {
	raw, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return err
	}
	now := strings.TrimSpace(string(raw))
	boots, err := store.NewBucket[string](v.o.Volatile, "volume.boot")
	if err != nil {
		return err
	}
	return v.o.Volatile.Update(func(tx store.Tx) error {
		last, err := boots.GetTx(tx, "id")
		if err == nil && last == now {
			return nil
		}
		all, err := v.held.AllTx(tx)
		if err != nil {
			return err
		}
		for key := range all {
			if err := v.held.DeleteTx(tx, key); err != nil {
				return err
			}
		}
		return boots.PutTx(tx, "id", now)
	})
}

// recover brings everything in order after whatever ended the last process. One
// volume that cannot be recovered is logged and stays as its record says; the
// others, and the start, are not held up by it.
func (v *Volumes) recover(ctx context.Context) {
	if err := v.replay(ctx); err != nil {
		v.log.Error("interrupted operations on volumes are not completed", "error", err)
	}
	if err := v.sweep(ctx); err != nil {
		v.log.Error("what nobody holds could not be taken away", "error", err)
	}
	v.reportMissing(ctx)
}

// replay completes or undoes what a crash, or an error, interrupted.
func (v *Volumes) replay(ctx context.Context) error {
	all, err := v.claims.All()
	if err != nil {
		return err
	}
	var bad []error
	for key, r := range all {
		if r.Phase == Bound && r.Expanding == 0 {
			continue
		}
		if err := v.replayOne(ctx, key); err != nil {
			bad = append(bad, fmt.Errorf("claim %s: %w", key, err))
		}
	}
	return errors.Join(bad...)
}

func (v *Volumes) replayOne(ctx context.Context, key string) error {
	ctx, unlock, err := v.lock(ctx, key)
	if err != nil {
		return err
	}
	defer unlock()
	r, err := v.claims.Get(key)
	switch {
	case errors.Is(err, errs.NotFound):
		return nil
	case err != nil:
		return err
	case r.Phase == Pending:
		// Its creation was never acknowledged.
		v.log.Info("undo an interrupted creation", "claim", key, "volume", r.Volume)
		if err := v.release(ctx, r.Volume); err != nil {
			return err
		}
		return v.undoCreate(ctx, r)
	case r.Phase == Deleting:
		v.log.Info("complete an interrupted deletion", "claim", key, "volume", r.Volume)
		return v.finishDelete(ctx, r)
	case r.Expanding != 0:
		v.log.Info("complete an interrupted expansion", "claim", key, "volume", r.Volume)
		_, err = v.finishExpand(ctx, r)
	}
	return err
}

// reportMissing logs where records and images do not agree. Neither is changed: an image
// without a record holds somebody's data.
func (v *Volumes) reportMissing(ctx context.Context) {
	ids, err := v.engine.List(ctx)
	if err != nil {
		v.log.Error("volumes could not be listed", "error", err)
		return
	}
	all, err := v.claims.All()
	if err != nil {
		v.log.Error("claims could not be listed", "error", err)
		return
	}
	known := make(map[ID]bool)
	for _, r := range all {
		known[r.Volume] = true
	}
	for _, id := range ids {
		if !known[id] {
			v.log.Warn("a volume has no claim; it is left as it is", "volume", id)
		}
	}
	for key, r := range all {
		if _, err := v.engine.Stat(ctx, r.Volume); errors.Is(err, errs.NotFound) {
			v.log.Error("the data of a claim is missing", "claim", key, "volume", r.Volume)
		}
	}
}

// Reconcile makes the host agree with the given set of holders: what only others
// hold is unpublished, what nobody holds is unmounted and detached, and what an error
// left half-way (a claim that is Deleting) is completed. What live holders have is not
// touched. It goes on after an error and returns all of them.
func (v *Volumes) Reconcile(ctx context.Context, live map[string]bool) error {
	all, err := v.held.All()
	if err != nil {
		return err
	}
	var bad []error
	for key, a := range all {
		for id := range a.Holders {
			if !live[id] {
				v.log.Info("take a volume back from a pod that is gone", "claim", key, "pod", id)
				ns, name := splitKey(key)
				bad = append(bad, v.Unpublish(ctx, ns, name, id))
			}
		}
	}
	bad = append(bad, v.dropScratch(ctx, func(id string) bool { return !live[id] }))
	bad = append(bad, v.replay(ctx), v.sweep(ctx))
	if err := errors.Join(bad...); err != nil {
		return fmt.Errorf("reconcile volumes: %w", err)
	}
	return nil
}

// sweep unmounts and detaches every volume that nobody holds.
func (v *Volumes) sweep(ctx context.Context) error {
	present := make(map[ID]bool)
	attached, err := v.engine.Attached(ctx)
	if err != nil {
		return err
	}
	for id := range attached {
		present[id] = true
	}
	entries, err := os.ReadDir(v.mountsDir())
	if err != nil {
		return err
	}
	for _, e := range entries {
		present[ID(strings.TrimSuffix(e.Name(), ".ro"))] = true
	}
	if len(present) == 0 {
		return nil
	}
	claims, err := v.claims.All()
	if err != nil {
		return err
	}
	keys := make(map[ID]string)
	for key, r := range claims {
		keys[r.Volume] = key
	}
	var bad []error
	for id := range present {
		if err := v.sweepOne(ctx, keys[id], id); err != nil {
			bad = append(bad, err)
		}
	}
	return errors.Join(bad...)
}

// sweepOne releases the volume unless somebody holds it; key is "" for one that no claim has.
func (v *Volumes) sweepOne(ctx context.Context, key string, id ID) error {
	if key == "" {
		return v.releaseUnknown(ctx, id)
	}
	ctx, unlock, err := v.lock(ctx, key)
	if err != nil {
		return err
	}
	defer unlock()
	r, err := v.claims.Get(key)
	if err != nil || r.Volume != id {
		return nil // deleted meanwhile, and with that released
	}
	a, err := v.attachment(key)
	if err != nil {
		return err
	}
	if len(a.Holders) == 0 {
		v.log.Info("release a volume that nobody holds", "claim", key, "volume", id)
		return v.release(ctx, id)
	}
	if !a.anyReadOnly("") {
		return unmount(ctx, v.readOnlyDir(id))
	}
	return nil
}

// releaseUnknown takes away what is mounted and attached of a volume that no claim has.
func (v *Volumes) releaseUnknown(ctx context.Context, id ID) error {
	for _, dir := range []string{v.readOnlyDir(id), v.mountDir(id)} {
		if err := unmount(ctx, dir); err != nil {
			return err
		}
	}
	if err := v.detach(ctx, id); !errors.Is(err, errs.Invalid) { // Invalid: a directory that is named like no volume
		return err
	}
	return nil
}

// Teardown unmounts and detaches every volume and the pool, whoever holds them, and
// forgets the holders. The data stays. Afterwards only Close and Purge may be called.
func (v *Volumes) Teardown(ctx context.Context) error {
	all, err := v.held.All()
	if err != nil {
		return err
	}
	for key := range all {
		if err := v.held.Delete(key); err != nil {
			return err
		}
	}
	return Teardown(ctx, v.o.Root, v.o.Run)
}

// Teardown unmounts and detaches every volume and the pool below the directories
// root and run, whoever holds them; the data stays. It needs no open Volumes and makes nothing, so that it
// also cleans up after a daemon that does not start. No daemon may be running.
// What processes of the host keep busy is detached from the tree and named in the error.
func Teardown(ctx context.Context, root, run string) error {
	dir := filepath.Join(run, "volume")
	// Everything but the pool, which lies there too, comes first; with the mount points it goes from
	// mount namespaces that copied it.
	mounts := filepath.Join(dir, "mounts")
	bad := []error{mount.UnmountBelow(ctx, mounts, patience), mount.RemoveTree(mounts)}
	bad = append(bad, pool.Teardown(ctx, filepath.Join(root, "volume"), dir))
	if err := errors.Join(bad...); err != nil {
		return fmt.Errorf("tear down volumes: %w", err)
	}
	return mount.RemoveTree(dir)
}

// Purge is Teardown, and removes claims, volumes, the pool and all data.
func (v *Volumes) Purge(ctx context.Context) error {
	if err := v.Teardown(ctx); err != nil {
		return err
	}
	all, err := v.claims.All()
	if err != nil {
		return err
	}
	for key := range all {
		if err := v.claims.Delete(key); err != nil {
			return err
		}
	}
	if err := mount.RemoveTree(filepath.Join(v.o.Root, "volume")); err != nil {
		return fmt.Errorf("purge volumes: %w", err)
	}
	return nil
}
