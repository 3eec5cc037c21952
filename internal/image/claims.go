package image

import (
	"os"

	"github.com/opencontainers/go-digest"

	"github.com/orlop-io/orlop/internal/base/fault"
)

var (
	faultBlobCommitted  = fault.New("image.commit.blob-renamed")
	faultLayerCommitted = fault.New("image.commit.layer-renamed")
)

// claims are what one operation needs to stay while it runs.
type claims struct {
	s      *Store
	layers []layerKey
	blobs  []digest.Digest
}

func (s *Store) newClaims() *claims { return &claims{s: s} }

// layer claims the layer if it is here, if only to be unpacked again.
func (c *claims) layer(key layerKey) (layerRecord, bool) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	return c.layerLocked(key)
}

// ready claims the layer if it is here and unpacked.
func (c *claims) ready(key layerKey) (layerRecord, bool) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	if l := c.s.st.layers[key]; l == nil || !l.ready {
		return layerRecord{}, false
	}
	return c.layerLocked(key)
}

func (c *claims) layerLocked(key layerKey) (layerRecord, bool) {
	l := c.s.st.layers[key]
	if l == nil {
		return layerRecord{}, false
	}
	l.refs++
	c.layers = append(c.layers, key)
	return l.rec, true
}

// blob claims the blob if it is here with that size (any, if negative).
func (c *claims) blob(b blobRef) bool {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	have := c.s.st.blobs[b.Digest]
	if have == nil || b.SizeBytes >= 0 && have.size != b.SizeBytes {
		return false
	}
	have.refs++
	c.blobs = append(c.blobs, b.Digest)
	return true
}

// release gives everything back, and removes what nothing needs then.
func (c *claims) release() {
	c.s.mu.Lock()
	for _, k := range c.layers {
		if l := c.s.st.layers[k]; l != nil {
			l.refs--
		}
	}
	for _, d := range c.blobs {
		if b := c.s.st.blobs[d]; b != nil {
			b.refs--
		}
	}
	c.layers, c.blobs = nil, nil
	c.s.mu.Unlock()
	if _, err := c.s.sweep(nil); err != nil {
		c.s.o.Log.Warn("sweep after an operation", "err", err)
	}
}

// commitBlob puts the verified, synced file in its place and claims it.
func (c *claims) commitBlob(file string, b blobRef) error {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	have := c.s.st.blobs[b.Digest]
	if have == nil || have.size != b.SizeBytes {
		if err := os.Rename(file, c.s.blobPath(b.Digest)); err != nil {
			return err
		}
		refs := 0
		if have != nil {
			refs = have.refs
		}
		have = &blob{size: b.SizeBytes, refs: refs}
		c.s.st.blobs[b.Digest] = have
		faultBlobCommitted.Hit()
	}
	have.refs++
	c.blobs = append(c.blobs, b.Digest)
	return nil
}

// putBlob writes small content (manifests, configurations) and claims it.
func (c *claims) putBlob(mediaType string, data []byte) (blobRef, error) {
	b := blobRef{mediaType, digest.FromBytes(data), int64(len(data))}
	if c.blob(b) {
		return b, nil
	}
	f, err := os.CreateTemp(c.s.dir("tmp"), "blob-")
	if err != nil {
		return b, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if _, err := f.Write(data); err != nil {
		return b, diskError(err)
	}
	if err := f.Sync(); err != nil {
		return b, diskError(err)
	}
	return b, c.commitBlob(f.Name(), b)
}

// commitLayer puts an unpacked directory in its place under the key and claims it.
// Where the layer has come from elsewhere meanwhile, that one is taken.
func (c *claims) commitLayer(key layerKey, diffDir string, rec layerRecord) (layerRecord, error) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	l := c.s.st.layers[key]
	if l == nil || !l.ready {
		rec.Boot, rec.Durable = c.s.boot, false
		rec.Dir = newDirName(c.s.st.layers)
		if err := os.Rename(diffDir, c.s.layerDir(rec)); err != nil {
			return rec, err
		}
		if l == nil {
			l = &layer{}
			c.s.st.layers[key] = l
		}
		l.rec, l.ready = rec, true
		l.saved = false // also where the record is to be replaced
		faultLayerCommitted.Hit()
	}
	l.refs++
	c.layers = append(c.layers, key)
	return l.rec, nil
}

// newDirName returns a short name: the kernel's mount options are limited.
func newDirName(layers map[layerKey]*layer) string {
	taken := make(map[string]bool, len(layers))
	for _, l := range layers {
		taken[l.rec.Dir] = true
	}
	for {
		if n := randomName(); !taken[n] {
			return n
		}
	}
}
