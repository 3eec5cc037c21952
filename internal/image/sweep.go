package image

import (
	"errors"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/orlop-io/orlop/internal/base/fault"
	"github.com/orlop-io/orlop/internal/base/store"
)

var (
	faultSweepRecorded = fault.New("image.sweep.recorded")
	faultSweepMoved    = fault.New("image.sweep.moved")
)

// change is what a sweep takes besides garbage.
type change struct {
	images []digest.Digest
	names  []string
}

// settle makes the change fit the state as it is now, under the locks: images that
// have been held meanwhile stay with their names, and all names of those that go,
// go too.
func (ch *change) settle(st *state) {
	names := make(map[string]bool)
	ch.names = slices.DeleteFunc(ch.names, func(n string) bool {
		id := st.names[n].ID
		return id == "" || slices.Contains(ch.images, id) // decided below
	})
	for _, n := range ch.names {
		names[n] = true
	}
	ch.images = slices.DeleteFunc(ch.images, func(id digest.Digest) bool {
		_, here := st.images[id]
		return !here || st.holds[id] > 0
	})
	for n, to := range st.names {
		if slices.Contains(ch.images, to.ID) {
			names[n] = true
		}
	}
	ch.names = slices.Sorted(maps.Keys(names))
}

// sweep removes the given records, then all content that no record and no running
// operation reaches. It returns the bytes given back. A crash in the middle leaves
// directories and files without records, which the next Open removes.
func (s *Store) sweep(ch *change) (freed int64, err error) {
	s.write.Lock()
	defer s.write.Unlock()
	s.mu.Lock()
	images, names := s.st.images, s.st.names
	if ch != nil {
		images, names = maps.Clone(images), maps.Clone(names)
		ch.settle(&s.st)
		for _, n := range ch.names {
			delete(names, n)
		}
		for _, id := range ch.images {
			delete(images, id)
		}
	}
	keys, blobs := s.reachable(images)
	doomed := make(map[layerKey]*layer)
	for k, l := range s.st.layers {
		if !keys[k] {
			doomed[k] = l
		}
	}
	var doomedBlobs []digest.Digest
	for d := range s.st.blobs {
		if !blobs[d] {
			doomedBlobs = append(doomedBlobs, d)
		}
	}
	if ch == nil && len(doomed) == 0 && len(doomedBlobs) == 0 {
		s.mu.Unlock()
		return 0, nil
	}
	// From here on no operation can claim them.
	for k := range doomed {
		delete(s.st.layers, k)
	}
	gone := make(map[digest.Digest]*blob, len(doomedBlobs))
	for _, d := range doomedBlobs {
		gone[d] = s.st.blobs[d]
		delete(s.st.blobs, d)
	}
	s.mu.Unlock()

	err = s.o.DB.Update(func(tx store.Tx) error {
		if ch != nil {
			for _, n := range ch.names {
				if err := s.db.names.DeleteTx(tx, n); err != nil {
					return err
				}
			}
			for _, id := range ch.images {
				if err := s.db.images.DeleteTx(tx, id.String()); err != nil {
					return err
				}
			}
		}
		for k, l := range doomed {
			if l.saved {
				if err := s.db.layers.DeleteTx(tx, string(k)); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		s.mu.Lock() // as it was
		for k, l := range doomed {
			if s.st.layers[k] == nil {
				s.st.layers[k] = l
			}
		}
		for d, b := range gone {
			if s.st.blobs[d] == nil {
				s.st.blobs[d] = b
			}
		}
		s.mu.Unlock()
		return 0, err
	}
	faultSweepRecorded.Hit()

	trash, err := os.MkdirTemp(s.dir("tmp"), "trash-")
	if err != nil {
		return 0, err
	}
	s.mu.Lock()
	s.st.images, s.st.names = images, names
	var errAll error
	for d, b := range gone {
		if s.st.blobs[d] != nil {
			continue // has come again meanwhile
		}
		freed += max(0, b.size)
		if err := os.Rename(s.blobPath(d), filepath.Join(trash, d.Encoded())); err != nil && !errors.Is(err, os.ErrNotExist) {
			errAll = errors.Join(errAll, err)
		}
	}
	s.mu.Unlock()
	for _, l := range doomed {
		if !l.ready {
			continue
		}
		freed += l.rec.Bytes
		if err := os.Rename(s.layerDir(l.rec), filepath.Join(trash, l.rec.Dir)); err != nil && !errors.Is(err, os.ErrNotExist) {
			errAll = errors.Join(errAll, err)
		}
	}
	faultSweepMoved.Hit()
	removeAll(s.o.Log, trash)
	return freed, errAll
}

// reachable returns the layers and blobs that the images and running operations
// need. The caller holds mu.
func (s *Store) reachable(images map[digest.Digest]imageRecord) (map[layerKey]bool, map[digest.Digest]bool) {
	keys, blobs := make(map[layerKey]bool), make(map[digest.Digest]bool)
	for _, img := range images {
		blobs[img.Config.Digest] = true
		for _, m := range append([]manifestRef{img.ref()}, img.Others...) {
			blobs[m.Manifest.Digest] = true
			for _, b := range m.Blobs {
				blobs[b.Digest] = true
			}
		}
		for _, l := range img.Layers {
			keys[l.Key] = true
		}
	}
	for k, l := range s.st.layers {
		if l.refs > 0 {
			keys[k] = true
		}
		if keys[k] {
			blobs[l.rec.Blob.Digest] = true
		}
	}
	for d, b := range s.st.blobs {
		if b.refs > 0 {
			blobs[d] = true
		}
	}
	return keys, blobs
}

// removeAll removes a directory below tmp. What cannot be removed now is removed
// by the next Open.
func removeAll(log *slog.Logger, path string) {
	if err := os.RemoveAll(path); err != nil {
		log.Warn("remove", "path", path, "err", err)
	}
}
