package pool

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/uuid"
	"github.com/orlop-io/orlop/internal/base/atomicfile"
	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/fault"
	"github.com/orlop-io/orlop/internal/platform/loop"
	"github.com/orlop-io/orlop/internal/platform/reflink"
	"github.com/orlop-io/orlop/internal/volume/engine"
	"golang.org/x/sys/unix"
)

var (
	faultImageWritten   = fault.New("volume.create.image-written")
	faultImageGrown     = fault.New("volume.expand.image-grown")
	faultReplaceCopied  = fault.New("volume.expand.image-copied")
	faultReplaceEdited  = fault.New("volume.expand.copy-grown")
	faultReplaceRenamed = fault.New("volume.expand.copy-renamed")
)

const suffix = ".img"

// path returns where the volume's image is. An ID that is no UUID is refused: it would become a path.
func (p *Pool) path(id engine.ID) (string, error) {
	if u, err := uuid.Parse(string(id)); err != nil || u.String() != string(id) {
		return "", errs.New(errs.Invalid, "volume id %q is not a lower-case UUID", id)
	}
	return filepath.Join(p.volumes, string(id)+suffix), nil
}

// lock serialises operations on one volume and returns its image's path.
func (p *Pool) lock(ctx context.Context, id engine.ID) (path string, unlock func(), err error) {
	if path, err = p.path(id); err != nil {
		return "", nil, err
	}
	unlock, err = p.locks.Lock(ctx, string(id))
	return path, unlock, err
}

// Create implements engine.Engine.
func (p *Pool) Create(ctx context.Context, id engine.ID, sizeBytes int64) error {
	path, unlock, err := p.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	if sizeBytes <= 0 || sizeBytes%(1<<20) != 0 {
		return errs.New(errs.Invalid, "create volume %s: a size of %d bytes is not a multiple of 1 MiB", id, sizeBytes)
	}
	if err := create(path, sizeBytes); err != nil {
		return fmt.Errorf("create volume %s: %w", id, kind(err))
	}
	return nil
}

func create(path string, sizeBytes int64) error {
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	defer os.Remove(tmp) // without effect after the rename
	if err := f.Truncate(sizeBytes); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	faultImageWritten.Hit()
	err = unix.Renameat2(unix.AT_FDCWD, tmp, unix.AT_FDCWD, path, unix.RENAME_NOREPLACE)
	if err != nil {
		return &os.LinkError{Op: "rename", Old: tmp, New: path, Err: err}
	}
	return atomicfile.SyncDir(filepath.Dir(path))
}

// kind gives an error of the pool's filesystem its kind.
func kind(err error) error {
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT), errors.Is(err, unix.EFBIG):
		return errs.As(errs.ResourceExhausted, err)
	case errors.Is(err, os.ErrExist):
		return errs.As(errs.AlreadyExists, err)
	case errors.Is(err, os.ErrNotExist):
		return errs.As(errs.NotFound, err)
	}
	return err
}

// Delete implements engine.Engine.
func (p *Pool) Delete(ctx context.Context, id engine.ID) error {
	path, unlock, err := p.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	if err := p.notAttached(path); err != nil {
		return fmt.Errorf("delete volume %s: %w", id, err)
	}
	// .tmp too: an operation of this process that failed half-way may have left one.
	for _, name := range []string{path + ".tmp", path} {
		if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("delete volume %s: %w", id, err)
		}
	}
	return atomicfile.SyncDir(p.volumes)
}

func (p *Pool) notAttached(path string) error {
	d, ok, err := loop.Find(path)
	if err == nil && ok {
		err = errs.New(errs.InUse, "it is attached as %s", d.Device)
	}
	return err
}

// Attach implements engine.Engine.
func (p *Pool) Attach(ctx context.Context, id engine.ID, use engine.Use) (*engine.Device, error) {
	path, unlock, err := p.lock(ctx, id)
	if err != nil {
		return nil, err
	}
	defer unlock()
	d, err := loop.Attach(ctx, path, loop.Options{DirectIO: true, Autoclear: !use.Stay, SectorBytes: use.SectorBytes})
	if err != nil {
		return nil, fmt.Errorf("attach volume %s: %w", id, kind(err))
	}
	return &engine.Device{Path: d.Path, Release: d.Close}, nil
}

// Detach implements engine.Engine.
func (p *Pool) Detach(ctx context.Context, id engine.ID) error {
	path, unlock, err := p.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	if err := loop.Detach(ctx, path); err != nil {
		return fmt.Errorf("detach volume %s: %w", id, err)
	}
	return nil
}

// Attached implements engine.Engine.
func (p *Pool) Attached(context.Context) (map[engine.ID]string, error) {
	return attached(p.volumes)
}

// attached returns the devices of the images in the directory; one that does not exist has none.
func attached(volumes string) (map[engine.ID]string, error) {
	found := make(map[engine.ID]string)
	all, err := loop.List(func(backing string) bool {
		_, ok := idOf(filepath.Base(backing))
		return ok
	})
	if err != nil {
		return nil, fmt.Errorf("list attached volumes: %w", err)
	}
	for _, d := range all {
		name := filepath.Base(d.Backing)
		own, ok, err := loop.Match(filepath.Join(volumes, name), all)
		if err != nil {
			return nil, err
		}
		if id, _ := idOf(name); ok && own.Device == d.Device { // else another pool's
			found[id] = d.Device
		}
	}
	return found, nil
}

// Expand implements engine.Engine.
func (p *Pool) Expand(ctx context.Context, id engine.ID, sizeBytes int64) error {
	path, unlock, err := p.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	if err := expand(path, sizeBytes); err != nil {
		return fmt.Errorf("expand volume %s: %w", id, kind(err))
	}
	return nil
}

func expand(path string, sizeBytes int64) error {
	st, err := os.Stat(path)
	if err != nil {
		return err
	}
	if sizeBytes < st.Size() || sizeBytes%(1<<20) != 0 {
		return errs.New(errs.Invalid, "a size of %d bytes is smaller than the present %d, or not a multiple of 1 MiB", sizeBytes, st.Size())
	}
	if sizeBytes > st.Size() {
		if err := truncate(path, sizeBytes); err != nil {
			return err
		}
	}
	faultImageGrown.Hit()
	return loop.Refresh(path)
}

// Replace implements engine.Engine: the copy shares all blocks with the image, so
// it costs what edit changes.
func (p *Pool) Replace(ctx context.Context, id engine.ID, edit func(path string) error) error {
	path, unlock, err := p.lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	if err := p.notAttached(path); err != nil {
		return fmt.Errorf("change volume %s: %w", id, err)
	}
	if err := replace(path, edit); err != nil {
		return fmt.Errorf("change volume %s: %w", id, kind(err))
	}
	return nil
}

func replace(path string, edit func(string) error) error {
	tmp := path + ".tmp"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := reflink.Clone(tmp, path); err != nil {
		return err
	}
	defer os.Remove(tmp) // without effect after the rename
	faultReplaceCopied.Hit()
	if err := edit(tmp); err != nil {
		return err
	}
	f, err := os.OpenFile(tmp, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return err
	}
	faultReplaceEdited.Hit()
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	faultReplaceRenamed.Hit()
	return atomicfile.SyncDir(filepath.Dir(path))
}

// Stat implements engine.Engine.
func (p *Pool) Stat(_ context.Context, id engine.ID) (engine.Stat, error) {
	path, err := p.path(id)
	if err != nil {
		return engine.Stat{}, err
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return engine.Stat{}, fmt.Errorf("stat volume %s: %w", id, kind(&os.PathError{Op: "stat", Path: path, Err: err}))
	}
	return engine.Stat{SizeBytes: st.Size, UsedBytes: st.Blocks * 512}, nil
}

// List implements engine.Engine.
func (p *Pool) List(context.Context) ([]engine.ID, error) {
	entries, err := os.ReadDir(p.volumes)
	if err != nil {
		return nil, fmt.Errorf("list volumes: %w", err)
	}
	var ids []engine.ID
	for _, e := range entries {
		if id, ok := idOf(e.Name()); ok {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// idOf returns the volume whose image has that name.
func idOf(name string) (engine.ID, bool) {
	s, ok := strings.CutSuffix(name, suffix)
	if !ok {
		return "", false
	}
	u, err := uuid.Parse(s)
	return engine.ID(s), err == nil && u.String() == s
}
