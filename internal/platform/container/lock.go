package container

import (
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// acquire takes the lock of a container's directory. Where another process holds it, it waits
// until ctx ends: errs.InUse. A directory that is gone meanwhile is errs.NotFound.
func acquire(ctx context.Context, dir string) (*os.File, error) {
	wait := time.Millisecond
	for {
		fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		if err == unix.ENOENT {
			return nil, errs.New(errs.NotFound, "lock %s: container does not exist", dir)
		}
		if err != nil {
			return nil, fmt.Errorf("lock container: open %s: %w", dir, err)
		}
		f := os.NewFile(uintptr(fd), dir)
		err = unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
		if err == nil && same(f, dir) {
			return f, nil
		}
		f.Close()
		if err == nil {
			continue // it was deleted, and perhaps made again, while we opened it
		}
		if err != unix.EWOULDBLOCK && err != unix.EINTR {
			return nil, fmt.Errorf("lock %s: %w", dir, err)
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil, errs.New(errs.InUse, "%s is held by another command that is at work on the container", dir)
		case <-t.C:
		}
		wait = min(2*wait, 20*time.Millisecond)
	}
}

// same tells whether the open directory is still the one that has the name.
func same(f *os.File, dir string) bool {
	var a, b unix.Stat_t
	return unix.Fstat(int(f.Fd()), &a) == nil && unix.Lstat(dir, &b) == nil && a.Dev == b.Dev && a.Ino == b.Ino
}

// held tells whether somebody has the lock.
func held(dir string) bool {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	return unix.Flock(fd, unix.LOCK_SH|unix.LOCK_NB) == unix.EWOULDBLOCK
}

// hold takes the container's lock and reads the record again.
func (c *Container) hold(ctx context.Context) error {
	if c.lock != nil {
		return nil
	}
	f, err := acquire(ctx, c.dir)
	if err != nil {
		return err
	}
	if c.proc != nil { // ours: nobody else writes what it is
		err = unix.Access(c.dir+"/state.json", unix.F_OK)
		if err == unix.ENOENT {
			err = errs.New(errs.NotFound, "%s: container does not exist", c.rec.ID)
		}
	} else {
		err = c.read()
	}
	if err != nil {
		f.Close()
		return err
	}
	c.lock = f
	return nil
}

// release lets go of the lock.
func (c *Container) release() {
	if c.lock != nil {
		c.lock.Close()
		c.lock = nil
	}
}
