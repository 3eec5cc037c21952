package image

import (
	"os"
	"sync"

	"github.com/orlop-io/orlop/internal/base/fault"
	"github.com/orlop-io/orlop/internal/base/store"
	"golang.org/x/sys/unix"
)

var (
	faultSynced  = fault.New("image.durable.filesystem-synced")
	faultDurable = fault.New("image.durable.recorded")
)

// syncer makes unpacked layers durable in the background: one syncfs(2) instead of
// an fsync(2) per file, and nobody waits for it. Until it is done a layer counts
// only in the boot that made it, since its blob is on the disk.
type syncer struct {
	poke chan struct{}
	stop chan struct{}
	done sync.WaitGroup
	once sync.Once
}

func (d *syncer) wake() {
	select {
	case d.poke <- struct{}{}:
	default:
	}
}

func (s *Store) startSyncer() {
	d := &s.durable
	d.poke, d.stop = make(chan struct{}, 1), make(chan struct{})
	d.done.Go(func() {
		for {
			select {
			case <-d.poke:
			case <-d.stop:
				select {
				case <-d.poke:
				default:
					return
				}
			}
			if err := s.makeDurable(); err != nil {
				s.o.Log.Warn("make layers durable", "err", err)
			}
		}
	})
}

// stopSyncer ends it after what it has been woken for.
func (s *Store) stopSyncer() {
	s.durable.once.Do(func() { close(s.durable.stop) })
	s.durable.done.Wait()
}

func (s *Store) makeDurable() error {
	s.mu.Lock()
	todo := make(map[layerKey]string) // to the directory that was synced
	for k, l := range s.st.layers {
		if l.saved && l.ready && !l.rec.Durable {
			todo[k] = l.rec.Dir
		}
	}
	s.mu.Unlock()
	if len(todo) == 0 {
		return nil
	}
	f, err := os.Open(s.dir("layers"))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return err
	}
	faultSynced.Hit()
	s.write.Lock()
	defer s.write.Unlock()
	err = s.o.DB.Update(func(tx store.Tx) error {
		for k, dir := range todo {
			rec, ok := s.savedLayer(k, dir)
			if !ok {
				continue
			}
			rec.Durable = true
			if err := s.db.layers.PutTx(tx, string(k), rec); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	faultDurable.Hit()
	s.mu.Lock()
	for k, dir := range todo {
		if l := s.st.layers[k]; l != nil && l.saved && l.rec.Dir == dir {
			l.rec.Durable = true
		}
	}
	s.mu.Unlock()
	return nil
}

// savedLayer returns the record of the layer if it is saved and still lies in dir.
func (s *Store) savedLayer(k layerKey, dir string) (layerRecord, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.st.layers[k]
	if l == nil || !l.saved || l.rec.Dir != dir {
		return layerRecord{}, false
	}
	return l.rec, true
}
