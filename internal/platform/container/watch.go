package container

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// Watch calls each every interval, and once for each process that the kernel kills for
// want of memory from the kills'th on, until the container or ctx ends.
func (c *Container) Watch(ctx context.Context, interval time.Duration, kills uint64, each func(oom bool) error) error {
	f, err := c.open()
	if err != nil || f == nil {
		return err
	}
	defer f.Close()
	g, err := c.group()
	if err != nil {
		return err
	}
	if g == nil {
		return errs.New(errs.FailedPrecondition, "container %s has no control group to watch", c.rec.ID)
	}
	// The kernel tells of kills by events of files that differ from layout to layout;
	// asking for the count costs a read of one file, five times a second.
	const ask = 200 * time.Millisecond
	next := time.Now().Add(interval)
	for ctx.Err() == nil {
		p := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLIN}}
		n, err := unix.Poll(p, int(max(0, min(ask, time.Until(next)))/time.Millisecond)+1)
		if err != nil && err != unix.EINTR {
			return fmt.Errorf("watch: %w", err)
		}
		now, err := g.OOMKills()
		if err != nil && !errors.Is(err, errs.NotFound) {
			return err
		}
		for ; kills < now; kills++ {
			if err := each(true); err != nil {
				return err
			}
		}
		if n > 0 {
			return nil
		}
		if !time.Now().Before(next) {
			next = next.Add(interval)
			if err := each(false); err != nil && !errors.Is(err, errs.NotFound) {
				return err
			}
		}
	}
	return nil
}
