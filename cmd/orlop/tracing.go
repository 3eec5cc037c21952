package main

import (
	"context"
	"time"

	"github.com/orlop-io/orlop/internal/base/trace"
	"github.com/orlop-io/orlop/internal/base/trace/otlp"
	"github.com/orlop-io/orlop/internal/server/rpc"
)

// lastSpans is how long a daemon that stops waits for the collector to take what is left.
const lastSpans = 2 * time.Second

// openTracing begins to watch requests and, where it is configured, to trace them. Whoever
// opens it closes it. Containers matter more than their traces: what is wrong with the
// collector's settings is logged, and nothing is traced.
func (h *host) openTracing() (end func()) {
	c := h.config.Tracing
	if c.Endpoint == "off" {
		h.watch = rpc.New(nil)
		return func() {}
	}
	t, err := otlp.Open(otlp.Options{
		Endpoint: c.Endpoint, CAFile: c.CAFile, SamplingRatio: c.SamplingRatio,
		Version: version, Instance: h.config.Instance, Log: h.log.With("part", "tracing"),
	})
	if err != nil {
		h.log.Error("nothing is traced; see the settings of tracing", "error", err)
		h.watch = rpc.New(nil)
		return func() {}
	}
	h.tracer, h.watch = t, rpc.New(t)
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), lastSpans)
		defer cancel()
		if err := t.Close(ctx); err != nil {
			h.log.Warn("the last spans were not sent", "error", err)
		}
	}
}

// traced returns a context for what the daemon does by itself.
func (h *host) traced(ctx context.Context) context.Context {
	if h.tracer == nil {
		return ctx
	}
	return trace.WithTracer(ctx, h.tracer)
}
