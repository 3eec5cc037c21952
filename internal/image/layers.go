package image

import (
	"context"
	"errors"
	"io"
	"os"

	"github.com/opencontainers/go-digest"
	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/fault"
)

var faultRestored = fault.New("image.restore.recorded")

// layerOut is what came of the work on a layer.
type layerOut struct {
	key  layerKey // "" where the layer has to be unpacked above those below it
	blob blobRef
	diff digest.Digest
}

// layerSpec is one layer that an image needs.
type layerSpec struct {
	blob   blobRef
	diffID digest.Digest // "" where it is not known yet (pack)
	bottom bool
	chain  digest.Digest
	// open returns the compressed layer where it is not here.
	open     func(context.Context, *flight) (io.ReadCloser, error)
	budget   *budget
	progress func(progressNote)
}

func (p *layerSpec) note(n progressNote) {
	if p.progress != nil {
		p.progress(n)
	}
}

// ensureLayer brings the layer here, claimed by c. A layer that depends on those
// below it, and is not the lowest, is only brought as a blob: its key is "".
func (s *Store) ensureLayer(ctx context.Context, c *claims, p layerSpec) (layerOut, error) {
	for _, key := range []layerKey{diffKey(p.diffID), chainKey(p.chain)} {
		if rec, ok := c.ready(key); ok {
			p.note(progressNote{p.blob.SizeBytes, ProgressExists})
			return layerOut{key, rec.Blob, rec.DiffID}, p.budget.add(rec.Bytes, rec.Files)
		}
	}
	have, asked := c.blob(p.blob), p.blob
	if !have {
		// Above other layers it may be here, from whatever blob.
		if blob, ok := c.anyChain(p.diffID); ok {
			p.blob, have = blob, true
			if !p.bottom {
				p.note(progressNote{p.blob.SizeBytes, ProgressExists})
				return layerOut{"", blob, p.diffID}, nil
			}
		}
	}
	name := p.diffID.String()
	if p.bottom {
		name += " at the bottom"
	}
	var out layerOut
	for {
		mine := false // whether the work is done for us, with our source and our limits
		err := s.join(ctx, name, p.progress, func(ctx context.Context, f *flight) (layerOut, error) {
			mine = true
			out, err := s.layerIn(ctx, f, p, have)
			if have && errors.Is(err, errs.Corrupt) && !s.intact(p.blob.Digest) {
				s.o.Log.Warn("a blob has changed on the disk; fetching it again", "blob", p.blob.Digest, "err", err)
				s.distrust(p.blob.Digest)
				p.blob, have = asked, false
				out, err = s.layerIn(ctx, f, p, false)
			}
			return out, err
		}, func(o layerOut) error {
			out = o
			return s.claimLayer(c, p, o, mine)
		})
		if err == nil || ctx.Err() != nil || mine {
			return out, err
		}
		// What another pull failed of (its registry, its limits) need not be our fault.
	}
}

// claimLayer claims what the work on a layer has brought for the whole operation:
// the claim of the work ends with it.
func (s *Store) claimLayer(c *claims, p layerSpec, o layerOut, mine bool) error {
	if o.key == "" {
		if c.blob(blobRef{Digest: o.blob.Digest, SizeBytes: -1}) {
			return nil
		}
	} else if rec, ok := c.layer(o.key); ok {
		if rec.Blob.Digest != p.blob.Digest {
			c.blob(p.blob)
		}
		if !mine {
			return p.budget.add(rec.Bytes, rec.Files)
		}
		return nil
	}
	return errs.New(errs.Internal, "layer %s is gone while it is used", p.diffID)
}

// anyChain claims a layer of that DiffID which is keyed by a chain, and returns
// its blob if that is here.
func (c *claims) anyChain(diffID digest.Digest) (blobRef, bool) {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	for k, l := range c.s.st.layers {
		if l.rec.DiffID == diffID && c.s.st.blobs[l.rec.Blob.Digest] != nil {
			c.layerLocked(k)
			return l.rec.Blob, true
		}
	}
	return blobRef{}, false
}

// layerIn is the work of ensureLayer that is shared.
func (s *Store) layerIn(ctx context.Context, f *flight, p layerSpec, have bool) (layerOut, error) {
	in := &ingest{
		s: s, blob: p.blob, keep: !have, diffID: p.diffID, budget: p.budget,
		open: func(ctx context.Context) (io.ReadCloser, error) {
			if have {
				return os.Open(s.blobPath(p.blob.Digest))
			}
			return p.open(ctx, f)
		},
		progress: func(done int64) {
			state := ProgressDownloading
			if done == p.blob.SizeBytes {
				state = ProgressUnpacking
			}
			f.note(progressNote{done, state})
		},
	}
	defer in.discard()
	if err := in.run(ctx); err != nil {
		return layerOut{}, err
	}
	if have {
		f.claims.blob(in.blob)
	} else if err := f.claims.commitBlob(in.blobFile(), in.blob); err != nil {
		return layerOut{}, err
	}
	out := layerOut{blob: in.blob, diff: in.diffID}
	switch {
	case in.res.Dependent == "":
		out.key = diffKey(in.diffID)
	case p.bottom && in.res.Missing != "":
		return layerOut{}, errs.New(errs.Invalid, "it has a hard link to %q, which no layer contains", in.res.Missing)
	case p.bottom:
		out.key = chainKey(in.diffID) // the ChainID of a lowest layer is its DiffID
	default:
		s.o.Log.Debug("layer depends on those below it", "layer", in.diffID, "why", in.res.Dependent)
		// What was counted is counted again when it is unpacked above them.
		p.budget.bytes.Add(-in.res.Bytes)
		p.budget.files.Add(-in.res.Files)
		f.note(progressNote{p.blob.SizeBytes, ProgressUnpacking})
		return out, nil
	}
	if _, err := f.claims.commitLayer(out.key, in.diffDir(), in.record()); err != nil {
		return layerOut{}, err
	}
	f.note(progressNote{in.blob.SizeBytes, ProgressDone})
	return out, nil
}

func (in *ingest) record() layerRecord {
	return layerRecord{DiffID: in.diffID, Blob: in.blob, Bytes: in.res.Bytes, Files: in.res.Files, OpaqueRoot: in.res.OpaqueRoot}
}

// mergeLayer unpacks layer i of refs, whose blob is here, above those below it,
// which have their keys, and returns its key.
func (s *Store) mergeLayer(ctx context.Context, c *claims, refs []layerRef, i int, blob blobRef, b *budget) (layerKey, error) {
	key := chainKey(chainID(refs[:i+1]))
	if _, ok := c.ready(key); ok {
		return key, nil
	}
	for j := range i {
		if err := s.ensureReady(ctx, c, refs, j); err != nil {
			return "", err
		}
	}
	lower, err := s.stack(refs[:i])
	if err != nil {
		return "", err
	}
	err = s.join(ctx, string(key), nil, func(ctx context.Context, f *flight) (layerOut, error) {
		in := &ingest{
			s: s, blob: blob, diffID: refs[i].DiffID, budget: b, lower: lower,
			open: func(context.Context) (io.ReadCloser, error) { return os.Open(s.blobPath(blob.Digest)) },
		}
		defer in.discard()
		if err := in.run(ctx); err != nil {
			return layerOut{}, err
		}
		_, err := f.claims.commitLayer(key, in.diffDir(), in.record())
		return layerOut{key: key}, err
	}, func(layerOut) error {
		if _, ok := c.layer(key); !ok {
			return errs.New(errs.Internal, "layer %s is gone while it is used", key)
		}
		return nil
	})
	return key, err
}

// chainID is the image-spec's ChainID of the layers (config.md, "Layer ChainID").
func chainID(refs []layerRef) digest.Digest {
	var id digest.Digest
	for _, r := range refs {
		if id == "" {
			id = r.DiffID
		} else {
			id = digest.FromString(id.String() + " " + r.DiffID.String())
		}
	}
	return id
}

// stack returns the directories of the layers, topmost first. A layer that occurs
// twice is only put in its upper place, where it says everything that it says in
// the lower one: overlayfs refuses the same directory twice.
func (s *Store) stack(refs []layerRef) ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var dirs []string
	seen := make(map[layerKey]bool)
	for i := len(refs) - 1; i >= 0; i-- {
		key := refs[i].Key
		if seen[key] {
			continue
		}
		seen[key] = true
		l := s.st.layers[key]
		if l == nil || !l.ready {
			return nil, errs.New(errs.Corrupt, "layer %s is not here; pull the image again", refs[i].DiffID)
		}
		dirs = append(dirs, s.layerDir(l.rec))
		if l.rec.OpaqueRoot {
			break
		}
	}
	return dirs, nil
}

// ensureReady unpacks layer i again if its directory was lost (see
// layerRecord.Durable).
func (s *Store) ensureReady(ctx context.Context, c *claims, refs []layerRef, i int) error {
	key := refs[i].Key
	s.mu.Lock()
	l := s.st.layers[key]
	var rec layerRecord
	var ready bool
	if l != nil {
		rec, ready = l.rec, l.ready
	}
	s.mu.Unlock()
	if ready {
		return nil
	}
	if l == nil {
		return errs.New(errs.Corrupt, "layer %s is not here; pull the image again", refs[i].DiffID)
	}
	var lower []string
	if key != diffKey(rec.DiffID) && i > 0 {
		for j := range i {
			if err := s.ensureReady(ctx, c, refs, j); err != nil {
				return err
			}
		}
		var err error
		if lower, err = s.stack(refs[:i]); err != nil {
			return err
		}
	}
	return s.join(ctx, "again "+string(key), nil, func(ctx context.Context, f *flight) (layerOut, error) {
		// It was within the limits once; they may have been lowered since.
		in := &ingest{
			s: s, blob: rec.Blob, diffID: rec.DiffID, budget: &budget{}, lower: lower,
			open: func(context.Context) (io.ReadCloser, error) { return os.Open(s.blobPath(rec.Blob.Digest)) },
		}
		defer in.discard()
		if err := in.run(ctx); err != nil {
			return layerOut{}, errs.New(errs.KindOf(err), "unpack layer %s again: %w", rec.DiffID, err)
		}
		if _, err := f.claims.commitLayer(key, in.diffDir(), in.record()); err != nil {
			return layerOut{}, err
		}
		return layerOut{key: key}, s.saveLayer(key)
	}, func(layerOut) error { return nil })
}

// saveLayer records a layer that images have already.
func (s *Store) saveLayer(key layerKey) error {
	s.write.Lock()
	defer s.write.Unlock()
	s.mu.Lock()
	l := s.st.layers[key]
	var rec layerRecord
	if l != nil {
		rec = l.rec
	}
	s.mu.Unlock()
	if l == nil {
		return errs.New(errs.Internal, "layer %s is gone while it is used", key)
	}
	if err := s.db.layers.Put(string(key), rec); err != nil {
		return err
	}
	faultRestored.Hit()
	s.mu.Lock()
	l.saved = true
	s.mu.Unlock()
	s.durable.wake()
	return nil
}

// LayerDirs returns the directories that overlayfs takes as lower ones, topmost
// FIRST, every one completely unpacked (unpacking what is not). The image is
// Hold'ed by the caller or known to InUse while they are mounted. The directories
// must not be written to. An image without layers has one empty directory.
func (s *Store) LayerDirs(ctx context.Context, id digest.Digest) ([]string, error) {
	s.mu.Lock()
	img, ok := s.st.images[id]
	s.mu.Unlock()
	if !ok {
		return nil, notHere(id.String())
	}
	if len(img.Layers) == 0 {
		empty := s.dir("empty")
		return []string{empty}, os.MkdirAll(empty, 0o755)
	}
	if dirs, err := s.stack(img.Layers); err == nil {
		return dirs, nil
	}
	c := s.newClaims()
	defer c.release()
	for i, l := range img.Layers {
		c.layer(l.Key)
		if err := s.ensureReady(ctx, c, img.Layers, i); err != nil {
			return nil, errs.New(errs.KindOf(err), "image %s: %w", id, err)
		}
	}
	return s.stack(img.Layers)
}

// Hold keeps the image and its layers from Remove and Prune until release is
// called; it closes the gap between resolving an image and recording its use.
// Calling release again does nothing.
func (s *Store) Hold(id digest.Digest) (release func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.st.images[id]; !ok {
		return nil, notHere(id.String())
	}
	s.st.holds[id]++
	s.touch(id)
	held := true
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if !held {
			return
		}
		held = false
		if s.st.holds[id]--; s.st.holds[id] == 0 {
			delete(s.st.holds, id)
		}
	}, nil
}

func notHere(name string) error {
	return errs.New(errs.NotFound, "image %q is not here; pull it with: orlop image pull %s", name, name)
}
