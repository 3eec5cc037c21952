package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"

	"github.com/orlop-io/orlop/internal/base/atomicfile"
	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/fault"
	"github.com/orlop-io/orlop/internal/base/store"
	"github.com/orlop-io/orlop/internal/image/policy"
	"github.com/orlop-io/orlop/internal/platform/ext4"
)

var (
	faultBeforeRecord = fault.New("image.commit.synced")
	faultRecorded     = fault.New("image.commit.recorded")
	faultOpenCleaned  = fault.New("image.open.temporaries-removed")
)

// state is the records and the content of the store in memory. Every field is
// guarded by Store.mu. Changes of records are serialised by Store.write, reach the
// state file first, and are then made here.
type state struct {
	images map[digest.Digest]imageRecord
	names  map[string]nameRecord
	layers map[layerKey]*layer
	blobs  map[digest.Digest]*blob
	holds  map[digest.Digest]int       // of images
	used   map[digest.Digest]time.Time // when images were used last
	// usedChanged: used is newer than its records.
	usedChanged bool
	collected   CollectStats
}

// layer is an unpacked layer, or one that could be unpacked again.
type layer struct {
	rec   layerRecord
	refs  int  // operations that need it to stay
	saved bool // has a record in the state file
	ready bool // its directory is there, complete
}

// blob is a file of the content store.
type blob struct {
	size int64
	refs int // operations that need it to stay
}

func (s *Store) dir(elem ...string) string {
	return filepath.Join(append([]string{s.root}, elem...)...)
}

func (s *Store) blobPath(d digest.Digest) string {
	return s.dir("blobs", d.Algorithm().String(), d.Encoded())
}

func (s *Store) layerDir(rec layerRecord) string { return s.dir("layers", rec.Dir) }

// load reads records and directories, and removes what no record reaches.
func (s *Store) load(ctx context.Context) error {
	if err := s.makeDirs(); err != nil {
		return err
	}
	// Layers are moved from there with where they lie. A pull after an image was removed took
	// five times as long without; where it does not work, it only takes longer.
	_ = ext4.Spread(s.dir("tmp"))
	if err := s.emptyTemp(ctx); err != nil {
		return err
	}
	faultOpenCleaned.Hit()

	var layers map[string]layerRecord
	var images map[string]imageRecord
	var err error
	if images, err = s.db.images.All(); err != nil {
		return err
	}
	if s.st.names, err = s.db.names.All(); err != nil {
		return err
	}
	if layers, err = s.db.layers.All(); err != nil {
		return err
	}
	s.st.images = make(map[digest.Digest]imageRecord, len(images))
	for _, r := range images {
		s.st.images[r.ID] = r
	}
	s.st.holds = make(map[digest.Digest]int)
	if err := s.loadUsed(); err != nil {
		return err
	}
	if err := s.loadBlobs(); err != nil {
		return err
	}
	if err := s.loadLayers(layers); err != nil {
		return err
	}
	_, err = s.sweep(nil)
	return err
}

// loadUsed reads when images were used last; one that has no record counts as used
// now.
func (s *Store) loadUsed() error {
	records, err := s.db.used.All()
	if err != nil {
		return err
	}
	s.st.used = make(map[digest.Digest]time.Time, len(s.st.images))
	for id := range s.st.images {
		if at, ok := records[id.String()]; ok {
			s.st.used[id] = at
		} else {
			s.touch(id)
		}
	}
	return nil
}

// makeDirs makes the store's directories where they are missing, durably: a blob's
// fsync(2) is of no use if the directory above it can vanish.
func (s *Store) makeDirs() error {
	for _, d := range []string{"layers", "tmp", "blobs/sha256"} {
		if err := os.MkdirAll(s.dir(d), 0o700); err != nil {
			return err
		}
	}
	if _, err := os.Lstat(s.dir("oci-layout")); err == nil {
		return nil // written last: all is there
	}
	for _, d := range []string{s.dir("blobs"), s.root, s.o.Root} {
		if err := atomicfile.SyncDir(d); err != nil {
			return err
		}
	}
	return atomicfile.Write(s.dir("oci-layout"), []byte(`{"imageLayoutVersion":"1.0.0"}`), 0o600, true)
}

// emptyTemp removes what unfinished work of a former process has left.
func (s *Store) emptyTemp(ctx context.Context) error {
	left, err := os.ReadDir(s.dir("tmp"))
	if err != nil {
		return err
	}
	for _, e := range left {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := os.RemoveAll(s.dir("tmp", e.Name())); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) loadBlobs() error {
	s.st.blobs = make(map[digest.Digest]*blob)
	files, err := os.ReadDir(s.dir("blobs/sha256"))
	if err != nil {
		return err
	}
	for _, e := range files {
		d := digest.NewDigestFromEncoded(digest.SHA256, e.Name())
		info, err := e.Info()
		if err != nil {
			return err
		}
		if d.Validate() != nil || !info.Mode().IsRegular() {
			s.o.Log.Warn("removing what is no blob", "path", s.dir("blobs/sha256", e.Name()))
			if err := os.RemoveAll(s.dir("blobs/sha256", e.Name())); err != nil {
				return err
			}
			continue
		}
		s.st.blobs[d] = &blob{size: info.Size()}
	}
	return nil
}

func (s *Store) loadLayers(records map[string]layerRecord) error {
	s.st.layers = make(map[layerKey]*layer, len(records))
	known := make(map[string]bool)
	for key, rec := range records {
		l := &layer{rec: rec, saved: true}
		s.st.layers[layerKey(key)] = l
		if !rec.Durable && rec.Boot != s.boot {
			// The machine went down before the files were surely on the disk.
			s.o.Log.Info("layer will be unpacked again, since the machine went down before it was on the disk", "layer", rec.DiffID)
			continue
		}
		if _, err := os.Lstat(s.layerDir(rec)); err == nil {
			l.ready = true
			known[rec.Dir] = true
		} else if !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if b := s.st.blobs[rec.Blob.Digest]; !l.ready && (b == nil || b.size != rec.Blob.SizeBytes) {
			s.o.Log.Error("a layer is lost: neither its files nor its blob are here; pull its images again", "layer", rec.DiffID)
			delete(s.st.layers, layerKey(key))
		}
	}
	dirs, err := os.ReadDir(s.dir("layers"))
	if err != nil {
		return err
	}
	for _, e := range dirs {
		if !known[e.Name()] {
			if err := os.RemoveAll(s.dir("layers", e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

// intact tells whether the blob's content is still what its digest says.
func (s *Store) intact(d digest.Digest) bool {
	f, err := os.Open(s.blobPath(d))
	if err != nil {
		return false
	}
	defer f.Close()
	got, err := digest.FromReader(f)
	return err == nil && got == d
}

// distrust forgets a blob whose content has been found not to be what its digest
// says, so that it can come again.
func (s *Store) distrust(d digest.Digest) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if b := s.st.blobs[d]; b != nil {
		b.size = -1 // no blob has it: whoever looks for this one does not find it
	}
}

// record makes the image and its names durable: everything that it reaches is on
// the disk (but unpacked layers, see layerRecord.Durable) before its record is.
// signed are the signatures by which the names were verified.
func (s *Store) record(img imageRecord, names []string, manifest digest.Digest, signed []policy.Signed) error {
	s.write.Lock()
	defer s.write.Unlock()
	if err := atomicfile.SyncDir(s.dir("blobs/sha256")); err != nil {
		return err
	}
	faultBeforeRecord.Hit()
	s.mu.Lock()
	if old, ok := s.st.images[img.ID]; ok {
		img = merge(old, img)
	}
	fresh := make(map[layerKey]layerRecord)
	for _, ref := range img.Layers {
		l := s.st.layers[ref.Key]
		if l == nil {
			s.mu.Unlock()
			return errs.New(errs.Internal, "record image %s: layer %s is gone", img.ID, ref.Key)
		}
		if !l.saved {
			fresh[ref.Key] = l.rec
		}
	}
	s.mu.Unlock()
	err := s.o.DB.Update(func(tx store.Tx) error {
		for k, rec := range fresh {
			if err := s.db.layers.PutTx(tx, string(k), rec); err != nil {
				return err
			}
		}
		if err := s.db.images.PutTx(tx, img.ID.String(), img); err != nil {
			return err
		}
		for _, n := range names {
			if err := s.db.names.PutTx(tx, n, nameRecord{img.ID, manifest, signed}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	faultRecorded.Hit()
	s.mu.Lock()
	s.st.images[img.ID] = img
	s.touch(img.ID)
	for _, n := range names {
		s.st.names[n] = nameRecord{img.ID, manifest, signed}
	}
	for k := range fresh {
		s.st.layers[k].saved = true
	}
	s.mu.Unlock()
	s.durable.wake()
	return nil
}

// merge keeps the older manifests of the same image.
func merge(old, img imageRecord) imageRecord {
	img.Pinned = img.Pinned || old.Pinned
	img.Others = nil
	for _, m := range append(old.Others, old.ref()) {
		if m.Manifest.Digest != img.Manifest.Digest {
			img.Others = append(img.Others, m)
		}
	}
	if n := len(img.Others); n > maxOtherManifests {
		img.Others = img.Others[n-maxOtherManifests:]
	}
	return img
}

// maxOtherManifests bounds what repeated pulls of recompressed images keep.
const maxOtherManifests = 8

func (r *imageRecord) ref() manifestRef {
	m := manifestRef{Manifest: r.Manifest}
	for _, l := range r.Layers {
		m.Blobs = append(m.Blobs, l.Blob)
	}
	return m
}

// describe returns the image as callers see it. The caller holds mu.
func (s *Store) describe(r imageRecord) Image {
	img := Image{
		ID: r.ID, Manifest: r.Manifest.Digest, Created: r.Created, Platform: r.Platform,
		Config: r.Run, Labels: r.Run.Labels, Pinned: r.Pinned, Unpacked: true,
		SizeBytes: r.Manifest.SizeBytes + r.Config.SizeBytes,
	}
	for _, l := range r.Layers {
		img.Layers = append(img.Layers, l.DiffID)
		img.SizeBytes += l.Blob.SizeBytes
		if have := s.st.layers[l.Key]; have == nil || !have.ready {
			img.Unpacked = false
		} else {
			img.UnpackedBytes += have.rec.Bytes
		}
	}
	for n, to := range s.st.names {
		if to.ID != r.ID {
			continue
		}
		if strings.Contains(n, "@") {
			img.Digests = append(img.Digests, n)
		} else {
			img.Names = append(img.Names, n)
		}
	}
	slices.Sort(img.Names)
	slices.Sort(img.Digests)
	return img
}

// bootID is the kernel's name for this run of the machine.
func bootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read the boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}
