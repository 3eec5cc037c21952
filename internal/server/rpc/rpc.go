// Package rpc watches what servers are asked for: how long each request takes
// (orlop_request_duration_seconds), and where it belongs in a trace.
package rpc

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/orlop-io/orlop/internal/base/trace"
)

// Watcher watches requests. It is a prometheus.Collector. A nil Watcher watches nothing.
type Watcher struct {
	*prometheus.HistogramVec
	tracer trace.Tracer
}

// New returns a Watcher; the tracer may be nil.
func New(t trace.Tracer) *Watcher {
	return &Watcher{tracer: t, HistogramVec: prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "orlop_request_duration_seconds", Help: "How long requests take, by server, method and the code of the answer.",
		Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120},
	}, []string{"server", "method", "code"})}
}

// Request is one that has come.
type Request struct {
	Server string // cri, control
	System string // the protocol, as OpenTelemetry names it
	Method string // package.Service/Method
	Parent trace.Parent
	// Looks: it changes nothing, and may come every second. It is traced only where the
	// client has begun a trace.
	Looks bool
}

// Call is a request under way.
type Call struct {
	w     *Watcher
	r     Request
	begin time.Time
	span  *trace.Span
}

// Begin begins to watch a request. What is done for it is done with the context.
func (w *Watcher) Begin(ctx context.Context, r Request) (context.Context, *Call) {
	if w == nil {
		return ctx, nil
	}
	c := &Call{w: w, r: r, begin: time.Now()}
	if _, asked := r.Parent.Decode(); asked || !r.Looks {
		ctx, c.span = trace.Serve(ctx, w.tracer, r.Method, r.Parent)
		c.span.Set("rpc.system.name", r.System)
		c.span.Set("rpc.method", r.Method)
	}
	return ctx, c
}

// Traced tells whether anybody will see what Set is given.
func (c *Call) Traced() bool { return c != nil && c.span != nil }

// Set adds an attribute to the request's span.
func (c *Call) Set(key, value string) {
	if c != nil {
		c.span.Set(key, value)
	}
}

// End ends the watch with the code of the answer, by its name in the protocol.
func (c *Call) End(code string, err error) {
	if c == nil {
		return
	}
	c.w.WithLabelValues(c.r.Server, c.r.Method, code).Observe(time.Since(c.begin).Seconds())
	c.span.Set("rpc.response.status_code", code)
	c.span.End(&err)
}
