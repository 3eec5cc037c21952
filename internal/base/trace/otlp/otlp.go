// Package otlp sends traces to a collector of OpenTelemetry, by OTLP over HTTP
// (https://opentelemetry.io/docs/specs/otlp/#otlphttp).
//
// Nobody waits for the collector: spans go into a queue of a fixed length and from there in
// batches. Where the collector is slow or away, spans are lost and counted, and the log says
// so from time to time.
package otlp

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	otel "go.opentelemetry.io/otel/trace"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/trace"
)

// Options say where traces go and which.
type Options struct {
	// Endpoint is an http or https URL. Without a path it is the collector's root, below
	// which /v1/traces is; with one it is used as it is.
	Endpoint string
	// CAFile is a PEM file of authorities to trust besides the system's; "": none.
	CAFile string
	// SamplingRatio is the share, 0 to 1, of the traces that begin here. Whether those
	// are sampled that began elsewhere is decided there.
	SamplingRatio float64
	// Version and Instance tell who sends.
	Version, Instance string
	Log               *slog.Logger // nil: none
}

const (
	defaultPath = "/v1/traces"
	// queue is how many spans wait at most; about a kilobyte each.
	queue = 2048
	// exportTimeout bounds one batch with its retries.
	exportTimeout = 30 * time.Second
	// complainEvery is how often the log says that spans are lost.
	complainEvery = time.Minute
	// maxText bounds an attribute's value and an error's text, in bytes.
	maxText = 4 << 10
)

// Tracer sends traces. It is safe for concurrent use.
type Tracer struct {
	provider *sdk.TracerProvider
	tracer   otel.Tracer
	sender   *sender
}

// Open returns a Tracer. It does not ask whether anybody listens.
func Open(o Options) (*Tracer, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	u, err := url.Parse(o.Endpoint)
	if err != nil {
		return nil, errs.New(errs.Invalid, "tracing endpoint: %w", err)
	}
	if u.Path == "" || u.Path == "/" {
		u.Path = defaultPath
	}
	options := []otlptracehttp.Option{otlptracehttp.WithEndpointURL(u.String()), otlptracehttp.WithTimeout(exportTimeout / 3)}
	if o.CAFile != "" {
		roots, err := authorities(o.CAFile)
		if err != nil {
			return nil, err
		}
		options = append(options, otlptracehttp.WithTLSClientConfig(&tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}))
	}
	exporter, err := otlptracehttp.New(context.Background(), options...)
	if err != nil {
		return nil, fmt.Errorf("tracing: %w", err)
	}
	host, _ := os.Hostname()
	limits := sdk.NewSpanLimits()
	limits.AttributeValueLengthLimit = maxText
	t := &Tracer{sender: &sender{SpanExporter: exporter, log: o.Log, endpoint: u.Redacted()}}
	t.provider = sdk.NewTracerProvider(
		sdk.WithSampler(sdk.ParentBased(sdk.TraceIDRatioBased(o.SamplingRatio))),
		sdk.WithRawSpanLimits(limits),
		sdk.WithSpanProcessor(&t.sender.ended),
		sdk.WithBatcher(t.sender, sdk.WithMaxQueueSize(queue), sdk.WithExportTimeout(exportTimeout)),
		// Named as the semantic conventions want.
		sdk.WithResource(resource.NewSchemaless(
			attribute.String("service.name", "orlop"), attribute.String("service.version", o.Version), attribute.String("service.instance.id", o.Instance),
			attribute.String("host.name", host), attribute.Int("process.pid", os.Getpid()),
		)),
	)
	o.Log.Info("traces are sent", "endpoint", u.Redacted(), "samplingRatio", o.SamplingRatio)
	t.tracer = t.provider.Tracer("github.com/orlop-io/orlop", otel.WithInstrumentationVersion(o.Version))
	return t, nil
}

// authorities are the system's and those in the file.
func authorities(file string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, errs.New(errs.Invalid, "tracing: read the authorities: %w", err)
	}
	roots, err := x509.SystemCertPool()
	if err != nil {
		roots = x509.NewCertPool()
	}
	if !roots.AppendCertsFromPEM(pem) {
		return nil, errs.New(errs.Invalid, "tracing: %s holds no certificate in PEM form", file)
	}
	return roots, nil
}

// Close sends what waits, as far as ctx lets it, and ends. Spans that end later are lost.
func (t *Tracer) Close(ctx context.Context) error { return t.provider.Shutdown(ctx) }

// Stats are numbers of spans since Open.
type Stats struct {
	Ended  uint64 // those of the sample
	Sent   uint64
	Failed uint64 // the collector did not take them
}

// Stats returns the numbers. What has ended and was neither sent nor failed waits, or did
// not fit into the queue.
func (t *Tracer) Stats() Stats {
	return Stats{t.sender.ended.n.Load(), t.sender.sent.Load(), t.sender.failed.Load()}
}

// Begin implements trace.Tracer.
func (t *Tracer) Begin(name string, kind trace.Kind, parent trace.Parent) trace.Backend {
	ctx := context.Background()
	if id, ok := parent.Decode(); ok {
		c := otel.SpanContextConfig{TraceID: id.Trace, SpanID: id.Span, Remote: true}
		if id.Sampled {
			c.TraceFlags = otel.FlagsSampled
		}
		if state, err := otel.ParseTraceState(parent.State); err == nil { // else it is none, as the specification wants
			c.TraceState = state
		}
		ctx = otel.ContextWithRemoteSpanContext(ctx, otel.NewSpanContext(c))
	}
	kinds := [...]otel.SpanKind{trace.Internal: otel.SpanKindInternal, trace.Server: otel.SpanKindServer}
	_, s := t.tracer.Start(ctx, name, otel.WithSpanKind(kinds[kind]))
	if !s.IsRecording() {
		return nil
	}
	return span{t.tracer, s}
}

// sender sends batches and counts.
type sender struct {
	sdk.SpanExporter
	log          *slog.Logger
	endpoint     string
	ended        counter
	sent, failed atomic.Uint64

	mu   sync.Mutex
	said time.Time
}

// ExportSpans returns no error: it says itself what is lost.
func (s *sender) ExportSpans(ctx context.Context, spans []sdk.ReadOnlySpan) error {
	err := s.SpanExporter.ExportSpans(ctx, spans)
	if err == nil {
		s.sent.Add(uint64(len(spans)))
		return nil
	}
	failed := s.failed.Add(uint64(len(spans)))
	s.mu.Lock()
	defer s.mu.Unlock()
	if now := time.Now(); now.Sub(s.said) >= complainEvery {
		s.said = now
		s.log.Warn("the collector takes no traces; nothing else is affected", "endpoint", s.endpoint, "lost", failed, "error", err)
	}
	return nil
}

// counter counts the spans that end.
type counter struct{ n atomic.Uint64 }

func (c *counter) OnEnd(s sdk.ReadOnlySpan) {
	if s.SpanContext().IsSampled() {
		c.n.Add(1)
	}
}
func (*counter) OnStart(context.Context, sdk.ReadWriteSpan) {}
func (*counter) Shutdown(context.Context) error             { return nil }
func (*counter) ForceFlush(context.Context) error           { return nil }
