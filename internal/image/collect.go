package image

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/store"
	"golang.org/x/sys/unix"
)

// Collection is what a Collect found and did.
type Collection struct {
	Removed
	// Names are the names of the images that were removed, for people.
	Names []string
	// BeforePercent and AfterPercent of the filesystem were in use, by bytes or
	// inodes, whichever is more.
	BeforePercent, AfterPercent int
	// Short: the low mark was not reached, because what is left must stay.
	Short bool
}

// CollectStats count what collections did since the store was opened.
type CollectStats struct {
	Images      int64
	FreedBytes  int64
	UsedPercent int // at the last look
}

// touch notes that the image is used now. The caller holds mu. It reaches the disk
// with the next collection: a container's start waits for no disk.
func (s *Store) touch(id digest.Digest) {
	s.st.used[id] = time.Now()
	s.st.usedChanged = true
}

// saveUsed writes down when images were used.
func (s *Store) saveUsed() error {
	s.write.Lock()
	defer s.write.Unlock()
	s.mu.Lock()
	if !s.st.usedChanged {
		s.mu.Unlock()
		return nil
	}
	s.st.usedChanged = false
	now := make(map[string]time.Time, len(s.st.used))
	for id, at := range s.st.used {
		if _, ok := s.st.images[id]; ok {
			now[id.String()] = at
		} else {
			delete(s.st.used, id)
		}
	}
	s.mu.Unlock()
	old, err := s.db.used.All()
	if err != nil {
		return err
	}
	return s.o.DB.Update(func(tx store.Tx) error {
		for id, at := range now {
			if err := s.db.used.PutTx(tx, id, at); err != nil {
				return err
			}
		}
		for id := range old {
			if _, ok := now[id]; !ok {
				if err := s.db.used.DeleteTx(tx, id); err != nil {
					return err
				}
			}
		}
		return nil
	})
}

// fsUse is how full a filesystem is, as df(1) reckons: without what is reserved for
// root.
type fsUse struct{ used, total, inodes, maxInodes uint64 }

func (s *Store) fsUse() (fsUse, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(s.root, &fs); err != nil {
		return fsUse{}, fmt.Errorf("statfs %s: %w", s.root, err)
	}
	block := uint64(fs.Bsize)
	u := fsUse{used: (fs.Blocks - fs.Bfree) * block, inodes: fs.Files - fs.Ffree, maxInodes: fs.Files}
	u.total = u.used + fs.Bavail*block
	return u, nil
}

// percent rounds up.
func (u fsUse) percent() int {
	of := func(n, all uint64) int {
		if all == 0 { // filesystems that make inodes as they are needed
			return 0
		}
		return int((n*100 + all - 1) / all)
	}
	return max(of(u.used, u.total), of(u.inodes, u.maxInodes))
}

// Collect removes images, the one used least recently first, if the filesystem is
// fuller than image.gc.highPercent, until it is no fuller than lowPercent. Never
// what inUse claims, what is held, pinned, or younger in use than minAge, and never
// what could not be fetched again: images that were made or imported here.
func (s *Store) Collect(ctx context.Context, inUse func(id digest.Digest) bool) (Collection, error) {
	gc := s.o.Config.GC
	s.mu.Lock()
	for id := range s.st.images { // what runs for a month was used just now
		if inUse(id) {
			s.touch(id)
		}
	}
	s.mu.Unlock()
	if err := s.saveUsed(); err != nil {
		return Collection{}, errs.New(errs.KindOf(err), "note when images were used: %w", err)
	}
	u, err := s.fsUse()
	if err != nil {
		return Collection{}, err
	}
	c := Collection{BeforePercent: u.percent(), AfterPercent: u.percent()}
	defer func() {
		s.mu.Lock()
		s.st.collected.Images += int64(len(c.Images))
		s.st.collected.FreedBytes += c.FreedBytes
		s.st.collected.UsedPercent = c.AfterPercent
		s.mu.Unlock()
	}()
	if c.BeforePercent < gc.HighPercent {
		return c, nil
	}
	for _, id := range s.leastUsed(gc.MinAge) {
		if ctx.Err() != nil {
			return c, ctx.Err()
		}
		now, err := s.fsUse()
		if err != nil {
			return c, err
		}
		// Some filesystems give space back later (XFS): what was removed counts at once.
		now.used = min(now.used, u.used-min(u.used, uint64(c.FreedBytes)))
		if c.AfterPercent = now.percent(); c.AfterPercent <= gc.LowPercent {
			return c, nil
		}
		s.mu.Lock()
		r, ok := s.st.images[id]
		names, _ := s.namesOf(id)
		young := time.Since(s.st.used[id]) < gc.MinAge
		s.mu.Unlock()
		if !ok || r.Pinned || young || inUse(id) {
			continue
		}
		removed, err := s.Remove(ctx, id.String(), inUse)
		if errors.Is(err, errs.InUse) || errors.Is(err, errs.NotFound) {
			continue
		}
		if err != nil {
			return c, err
		}
		c.Untagged = append(c.Untagged, removed.Untagged...)
		c.Images = append(c.Images, removed.Images...)
		c.FreedBytes += removed.FreedBytes
		c.Names = append(c.Names, called(id, names))
		s.o.Log.Info("image removed, since the disk is full", "image", called(id, names), "id", id, "freedBytes", removed.FreedBytes)
	}
	if u, err = s.fsUse(); err != nil {
		return c, err
	}
	c.AfterPercent = u.percent()
	c.Short = c.AfterPercent > gc.LowPercent
	return c, nil
}

// called is what people call an image: a tag, or else whatever names it.
func called(id digest.Digest, names []string) string {
	for _, n := range names {
		if !strings.Contains(n, "@") {
			return n
		}
	}
	if len(names) > 0 {
		return names[0]
	}
	return id.String()
}

// leastUsed returns the images that may go, the one used least recently first.
func (s *Store) leastUsed(minAge time.Duration) []digest.Digest {
	s.mu.Lock()
	defer s.mu.Unlock()
	var ids []digest.Digest
	for id, r := range s.st.images {
		names, _ := s.namesOf(id)
		pulled := slices.ContainsFunc(names, func(n string) bool { return strings.Contains(n, "@") })
		if pulled && !r.Pinned && s.st.holds[id] == 0 && time.Since(s.st.used[id]) >= minAge {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, func(a, b digest.Digest) int {
		return cmp.Or(s.st.used[a].Compare(s.st.used[b]), cmp.Compare(a, b))
	})
	return ids
}

// Collected returns what collections did.
func (s *Store) Collected() CollectStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.st.collected
}

// CollectAlways collects at every image.gc.interval until ctx ends. inUse returns
// what is in use at that moment. report is told of each collection that removed
// something, and of the first that fell short.
func (s *Store) CollectAlways(ctx context.Context, inUse func() func(digest.Digest) bool, report func(Collection)) {
	t := time.NewTicker(s.o.Config.GC.Interval)
	defer t.Stop()
	short := false
	for {
		c, err := s.Collect(ctx, inUse())
		if err != nil && ctx.Err() == nil {
			s.o.Log.Warn("collect images", "err", err)
		}
		if len(c.Images) > 0 || c.Short && !short {
			report(c)
		}
		short = c.Short
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
	}
}
