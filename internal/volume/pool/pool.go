// Package pool is the engine that keeps each volume as an image file in one
// directory of a filesystem that can reflink.
//
// Where the host's own filesystem can, the pool is a plain directory of it.
// Elsewhere (ext4, most hosts) the pool is itself a file: a sparse image that holds
// an XFS filesystem, mounted through a loop device with direct I/O. Which of
// the two it is was decided when the pool was made and never changes:
//
//	<dir>/pool/volumes/<id>.img      directory: the images
//	<dir>/pool.img                   image: XFS …
//	<run>/pool/volumes/<id>.img      … and the images in it, where it is mounted
//
// The image's mount point lies under <run>, not under <dir>, so that a pool that
// is not mounted leaves no directory in which volumes could be made by mistake.
// The mount is unbindable: a container that is given the host's / with everything
// below it does not get the pool, and cannot keep it busy.
//
// Both images exist under their name only when they are whole: they are made as
// NAME.tmp and renamed. A crash leaves a .tmp, which the next Open removes.
package pool

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/orlop-io/orlop/internal/base/atomicfile"
	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/keylock"
	"github.com/orlop-io/orlop/internal/platform/reflink"
	"github.com/orlop-io/orlop/internal/volume/engine"
)

// Kind says what the pool is.
type Kind string

const (
	// Directory is a directory of the host's own filesystem.
	Directory Kind = "directory"
	// Image is an XFS filesystem in a sparse file.
	Image Kind = "image"
)

// Options of Open.
type Options struct {
	Dir          string // durable
	Run          string // dies with the machine
	Kind         Kind   // "": what is there, else what the host's filesystem can do
	SizeBytes    int64  // of a new image, or to grow an old one to; 0: 80 % of the disk that Dir is on
	ReserveBytes int64  // of that disk, left alone
	// MustExist refuses to make a pool: volumes are recorded, so an absent pool means
	// that data is missing, not that there is none.
	MustExist bool
	Log       *slog.Logger
}

// Pool is an engine.Engine.
type Pool struct {
	o       Options
	kind    Kind
	image   string // path of the image; "" for a directory
	root    string // directory that holds volumes/
	volumes string
	locks   keylock.Locks // by volume
}

var _ engine.Engine = (*Pool)(nil)

// Open finds the pool or makes it, attaches and mounts it, and clears away what a
// crash left.
func Open(ctx context.Context, o Options) (*Pool, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	for _, d := range []string{o.Dir, o.Run} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("open volume pool: %w", err)
		}
	}
	if err := atomicfile.SyncDir(filepath.Dir(o.Dir)); err != nil {
		return nil, fmt.Errorf("open volume pool: %w", err)
	}
	kind, exists, err := find(o)
	if err != nil {
		return nil, fmt.Errorf("open volume pool: %w", err)
	}
	if !exists && o.MustExist {
		return nil, errs.New(errs.Corrupt, "open volume pool: volumes are recorded, but neither %s nor %s is there; "+
			"bring the data back, or give the volumes up with: orlop system teardown --purge", filepath.Join(o.Dir, "pool.img"), filepath.Join(o.Dir, "pool"))
	}
	p := &Pool{o: o, kind: kind}
	if kind == Image {
		p.image = filepath.Join(o.Dir, "pool.img")
		p.root = filepath.Join(o.Run, "pool")
		err = p.openImage(ctx, exists)
	} else {
		p.root = filepath.Join(o.Dir, "pool")
		err = p.openDirectory()
	}
	if err != nil {
		return nil, fmt.Errorf("open volume pool: %w", err)
	}
	p.volumes = filepath.Join(p.root, "volumes")
	if err := p.clean(); err != nil {
		return nil, fmt.Errorf("open volume pool: %w", err)
	}
	return p, nil
}

// Kind returns what the pool is.
func (p *Pool) Kind() Kind { return p.kind }

// find tells which kind of pool there is, or which one to make.
func find(o Options) (kind Kind, exists bool, err error) {
	for _, k := range []struct {
		kind Kind
		name string
	}{{Image, "pool.img"}, {Directory, "pool"}} {
		_, err := os.Lstat(filepath.Join(o.Dir, k.name))
		if err == nil {
			if o.Kind != "" && o.Kind != k.kind {
				return "", true, errs.New(errs.FailedPrecondition, "the pool at %s is of kind %s, not %s; a pool cannot change", o.Dir, k.kind, o.Kind)
			}
			return k.kind, true, nil
		}
		if !errors.Is(err, os.ErrNotExist) {
			return "", false, err
		}
	}
	if o.Kind == Image {
		return Image, false, nil
	}
	can, err := reflink.Probe(o.Dir)
	switch {
	case err != nil:
		return "", false, fmt.Errorf("find out whether the disk can reflink: %w", err)
	case can:
		return Directory, false, nil
	case o.Kind == Directory:
		return "", false, errs.New(errs.Unsupported, "the filesystem of %s cannot reflink, so the pool cannot be a directory of it", o.Dir)
	}
	return Image, false, nil
}

// clean makes the directory of volumes and removes what a crash left in it.
func (p *Pool) clean() error {
	if err := p.makeVolumesDir(); err != nil {
		return err
	}
	entries, err := os.ReadDir(p.volumes)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".tmp") {
			p.o.Log.Info("remove what an interrupted operation left", "file", e.Name())
			if err := os.Remove(filepath.Join(p.volumes, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// Close does nothing: the pool holds no descriptors.
func (p *Pool) Close() error { return nil }
