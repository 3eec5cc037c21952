package otlp

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	otel "go.opentelemetry.io/otel/trace"

	"github.com/orlop-io/orlop/internal/base/trace"
)

// span is a trace.Backend.
type span struct {
	tracer otel.Tracer
	s      otel.Span
}

func (s span) Start(name string, at time.Time) trace.Backend {
	_, below := s.tracer.Start(otel.ContextWithSpan(context.Background(), s.s), name, otel.WithTimestamp(at))
	return span{s.tracer, below}
}

func (s span) Set(key, value string) { s.s.SetAttributes(attribute.String(key, value)) }

func (s span) End(at time.Time, err error) {
	if err != nil {
		text := err.Error()
		s.s.SetStatus(codes.Error, text[:min(len(text), maxText)])
	}
	s.s.End(otel.WithTimestamp(at))
}

func (s span) Parent() trace.Parent {
	c := s.s.SpanContext()
	id := trace.ID{Trace: c.TraceID(), Span: c.SpanID(), Sampled: c.IsSampled()}
	return trace.Parent{Traceparent: id.Encode(), State: c.TraceState().String()}
}
