// Package trace follows a request through layers and processes: spans, each with a name,
// a beginning and an end, in a tree.
//
// The span of what is being done is in the context. Where there is none — tracing is off,
// or this request is not one of the sample — Start returns a nil *Span, whose methods do
// nothing, and allocates nothing: code that may be traced need not ask whether it is.
//
// Where spans go is a Backend's matter. There are two: package otlp, which the daemon
// links, sends them to a collector; Record keeps their times for whoever asked, so that the
// keeper needs no exporter. This package itself imports next to nothing, because orlop-oci
// pays at every start for what the executor links.
package trace

import (
	"context"
	"time"
)

// Backend is where one span goes. Its methods may be called concurrently.
type Backend interface {
	// Start begins a span below this one.
	Start(name string, at time.Time) Backend
	// Set adds an attribute. After End it does nothing.
	Set(key, value string)
	// End ends the span, which failed where err is not nil. It is called once.
	End(at time.Time, err error)
	// Parent names the span for other processes.
	Parent() Parent
}

// Tracer begins traces.
type Tracer interface {
	// Begin begins the first span that this process has of a trace: below the one that
	// the parent names, if it names one, and else of a trace of its own. It returns nil
	// where the trace is not one of the sample, which is the parent's decision.
	Begin(name string, kind Kind, parent Parent) Backend
}

// Kind says how a span came about.
type Kind int

const (
	Internal Kind = iota // by itself
	Server               // somebody asked for it
)

// Span is one step of what is being done. A nil *Span is one that nobody looks at.
type Span struct{ to Backend }

type (
	spanKey   struct{}
	tracerKey struct{}
)

// current returns the context's span, nil where it has none.
func current(ctx context.Context) *Span {
	s, _ := ctx.Value(spanKey{}).(*Span)
	return s
}

// with returns a context in which the span is the current one.
func with(ctx context.Context, b Backend) (context.Context, *Span) {
	s := &Span{b}
	return context.WithValue(ctx, spanKey{}, s), s
}

// Start begins a span below the context's one. It is ended by End.
func Start(ctx context.Context, name string) (context.Context, *Span) {
	s := current(ctx)
	if s == nil {
		return ctx, nil
	}
	return with(ctx, s.to.Start(name, time.Now()))
}

// WithTracer returns a context in which Root may begin traces.
func WithTracer(ctx context.Context, t Tracer) context.Context {
	if t == nil {
		return ctx
	}
	return context.WithValue(ctx, tracerKey{}, t)
}

// Root is Start, and where the context has no span it begins a trace with the context's
// tracer, if it has one: for what nobody has asked for at this moment.
func Root(ctx context.Context, name string) (context.Context, *Span) {
	if current(ctx) == nil {
		if t, ok := ctx.Value(tracerKey{}).(Tracer); ok {
			return begin(ctx, t.Begin(name, Internal, Parent{}))
		}
	}
	return Start(ctx, name)
}

// Serve begins the span of a request that has come from the parent. t may be nil.
func Serve(ctx context.Context, t Tracer, name string, parent Parent) (context.Context, *Span) {
	if t == nil {
		return ctx, nil
	}
	return begin(ctx, t.Begin(name, Server, parent))
}

func begin(ctx context.Context, b Backend) (context.Context, *Span) {
	if b == nil {
		return ctx, nil
	}
	return with(ctx, b)
}

// Set adds an attribute; an empty value adds none.
func (s *Span) Set(key, value string) {
	if s != nil && value != "" {
		s.to.Set(key, value)
	}
}

// End ends the span. err, which may be nil, points to the error that the step ends with:
//
//	defer span.End(&err)
func (s *Span) End(err *error) {
	if s == nil {
		return
	}
	var failed error
	if err != nil {
		failed = *err
	}
	s.to.End(time.Now(), failed)
}

// Parent names the span for another process; the zero Parent where there is none.
func (s *Span) Parent() Parent {
	if s == nil {
		return Parent{}
	}
	return s.to.Parent()
}
