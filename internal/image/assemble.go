package image

import (
	"context"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/fault"
	"github.com/orlop-io/orlop/internal/base/trace"
	"golang.org/x/sync/errgroup"
)

var faultLayersHere = fault.New("image.assemble.layers-here")

// openLayer returns compressed layer i; note may tell of retries. It is nil where
// the blobs are in the store already.
type openLayer func(ctx context.Context, i int, note func(progressNote)) (io.ReadCloser, error)

// assemble brings all layers of the image here, in parallel, and fills in their
// keys. What it brought is claimed by c.
func (s *Store) assemble(ctx context.Context, c *claims, img *imageRecord, open openLayer, progress func(Progress)) error {
	b := s.newBudget()
	outs := make([]layerOut, len(img.Layers))
	report := newReporter(img.Layers, progress)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(max(1, s.o.Config.Parallel))
	first := make(map[digest.Digest]int) // DiffID → where it occurs first
	for i, ref := range img.Layers {
		if _, again := first[ref.DiffID]; again {
			report.note(i, progressNote{ref.Blob.SizeBytes, ProgressExists})
			continue
		}
		first[ref.DiffID] = i
		if most := s.o.Config.MaxLayerBytes; most > 0 && ref.Blob.SizeBytes > most {
			return errs.New(errs.ResourceExhausted, "layer %d has %d bytes compressed; image.maxLayerBytes allows %d unpacked", i, ref.Blob.SizeBytes, most)
		}
		g.Go(func() (err error) {
			lctx, span := trace.Start(gctx, "image layer")
			defer span.End(&err)
			span.Set("oci.digest", string(ref.Blob.Digest))
			out, err := s.ensureLayer(lctx, c, layerSpec{
				blob: ref.Blob, diffID: ref.DiffID, bottom: i == 0, chain: chainID(img.Layers[:i+1]), budget: b,
				open: func(ctx context.Context, f *flight) (io.ReadCloser, error) {
					if open == nil {
						return nil, errs.New(errs.Corrupt, "its content has changed on the disk")
					}
					return open(ctx, i, f.note)
				},
				progress: func(n progressNote) { report.note(i, n) },
			})
			if err != nil {
				return errs.New(errs.KindOf(err), "layer %d (%s): %w", i, short(ref.Blob.Digest), err)
			}
			outs[i] = out
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return err
	}
	for i := range img.Layers {
		ref := &img.Layers[i]
		out := outs[first[ref.DiffID]]
		ref.Key = out.key
		if i != first[ref.DiffID] && strings.HasPrefix(string(out.key), "chain:") {
			out.key, ref.Key = "", "" // right in the other place, but not here
		}
		if out.key == "" {
			key, err := s.mergeLayer(ctx, c, img.Layers, i, out.blob, b)
			if err != nil {
				return errs.New(errs.KindOf(err), "layer %d (%s): %w", i, short(ref.Blob.Digest), err)
			}
			ref.Key = key
			report.note(i, progressNote{ref.Blob.SizeBytes, ProgressDone})
		}
	}
	faultLayersHere.Hit()
	return nil
}

// short is a digest as people read it.
func short(d digest.Digest) string {
	if e := d.Encoded(); len(e) > 12 {
		return e[:12]
	}
	return d.String()
}

// reporter turns the notes of the layers into calls of the caller's function, at
// most ten a second per layer.
type reporter struct {
	fn     func(Progress)
	layers []layerRef
	mu     sync.Mutex
	last   []time.Time
	state  []ProgressState
}

func newReporter(layers []layerRef, fn func(Progress)) *reporter {
	r := &reporter{fn: fn, layers: layers, last: make([]time.Time, len(layers)), state: make([]ProgressState, len(layers))}
	for i := range layers {
		r.note(i, progressNote{0, ProgressWaiting})
	}
	return r
}

func (r *reporter) note(i int, n progressNote) {
	if r.fn == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	if n.state == r.state[i] && now.Sub(r.last[i]) < 100*time.Millisecond {
		return
	}
	r.state[i], r.last[i] = n.state, now
	r.fn(Progress{
		Layer: r.layers[i].Blob.Digest, Index: i, Count: len(r.layers),
		Done: n.done, Total: r.layers[i].Blob.SizeBytes, State: n.state,
	})
}
