package pod

import (
	"context"

	"github.com/orlop-io/orlop/internal/base/trace"
)

// span begins a span of the pod: below the request that is carried out, or of a trace of its
// own where the worker acts by itself.
func (w *worker) span(ctx context.Context, name string) (context.Context, *trace.Span) {
	ctx, span := trace.Root(ctx, name)
	span.Set("k8s.namespace.name", w.key.Namespace)
	span.Set("k8s.pod.name", w.key.Name)
	span.Set("orlop.sandbox.id", string(w.id))
	return ctx, span
}
