package pool

import (
	"context"
	"fmt"
	"os"

	"github.com/orlop-io/orlop/internal/platform/mount"
	"github.com/orlop-io/orlop/internal/volume/engine"
	"golang.org/x/sys/unix"
)

// Space implements engine.Engine.
//
// Two things can be full: the pool's own filesystem and, where the pool is a
// sparse image, the host's disk below it. The second is the worse one: the kernel
// then fails writes inside volumes with EIO. So the capacity is the smaller of both,
// and of the disk only what is free beyond the reserve counts.
func (p *Pool) Space(ctx context.Context) (engine.Space, error) {
	var s engine.Space
	free, err := available(p.volumes)
	if err != nil {
		return s, err
	}
	ids, err := p.List(ctx)
	if err != nil {
		return s, err
	}
	for _, id := range ids {
		if st, err := p.Stat(ctx, id); err == nil { // one deleted meanwhile takes nothing
			s.UsedBytes += st.UsedBytes
		}
	}
	if p.kind == Directory {
		s.FreeBytes = max(0, free-p.o.ReserveBytes)
		s.CapacityBytes = s.UsedBytes + s.FreeBytes
		return s, nil
	}
	// One percent stays for the extent trees of fragmented images.
	free = max(0, free-(s.UsedBytes+free)/100)
	hostFree, err := available(p.o.Dir)
	if err != nil {
		return s, err
	}
	// What the pool has freed and the image still holds is not counted as free: a
	// trim gives it back soon, and to be short of a little space is the safe side.
	s.FreeBytes = min(free, max(0, hostFree-p.o.ReserveBytes))
	s.CapacityBytes = s.UsedBytes + s.FreeBytes
	return s, nil
}

// HostFree returns what the disk below the pool has free, the reserve included.
func (p *Pool) HostFree() (int64, error) { return available(p.o.Dir) }

func available(path string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return 0, fmt.Errorf("ask for free space: %w", &os.PathError{Op: "statfs", Path: path, Err: err})
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// Trim gives what the pool's own filesystem has freed back to the host's disk.
func (p *Pool) Trim() error {
	if p.kind == Directory {
		return nil // the host's own business
	}
	_, err := mount.Trim(p.root)
	return err
}
