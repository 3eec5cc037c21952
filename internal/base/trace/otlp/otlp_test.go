package otlp_test

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/trace"
	"github.com/orlop-io/orlop/internal/base/trace/otlp"
	"github.com/orlop-io/orlop/internal/base/trace/tracetest"
)

const (
	traceID = "0af7651916cd43dd8448eb211c80319c"
	spanID  = "b7ad6b7169203331"
)

func open(t *testing.T, o otlp.Options) (*otlp.Tracer, func()) {
	t.Helper()
	tracer, err := otlp.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	return tracer, func() {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := tracer.Close(ctx); err != nil {
			t.Error(err)
		}
	}
}

// What comes out at the collector is what happened, below the parent that the request named.
func TestTrace(t *testing.T) {
	c := &tracetest.Collector{}
	srv := httptest.NewServer(c)
	defer srv.Close()
	t.Setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-tenant=orlop")
	tracer, end := open(t, otlp.Options{Endpoint: srv.URL, Version: "v1", Instance: "i"})
	ctx, span := trace.Serve(context.Background(), tracer, "svc/Method", trace.Parent{Traceparent: "00-" + traceID + "-" + spanID + "-01", State: "vendor=x"})
	span.Set("k8s.pod.name", "web")
	below, step := trace.Start(ctx, "step")
	if p := step.Parent(); !strings.HasPrefix(p.Traceparent, "00-"+traceID) || p.State != "vendor=x" {
		t.Errorf("the step is named %+v", p)
	}
	_, call := trace.Start(below, "call")
	at := time.Now().UnixNano()
	call.Replay([]trace.Timing{{Name: "elsewhere", Parent: -1, Begin: at - 2000, End: at - 1000, Err: "broken"}})
	call.End(nil)
	err := errors.New("failed")
	step.End(&err)
	span.End(nil)
	end()

	list := c.Trace(traceID)
	got := make(map[string]tracetest.Span)
	for _, s := range list {
		got[tracetest.Path(list, s)] = s
	}
	root := got["svc/Method"]
	if root.Parent != spanID || root.Kind != "SPAN_KIND_SERVER" || root.Attrs["k8s.pod.name"] != "web" || root.Failed ||
		root.Resource["service.name"] != "orlop" || root.Resource["service.version"] != "v1" || root.Resource["service.instance.id"] != "i" {
		t.Errorf("root: %+v", root)
	}
	if s := got["svc/Method > step"]; !s.Failed || s.Err != "failed" || s.Begin.Before(root.Begin) || s.End.After(root.End) {
		t.Errorf("step: %+v", s)
	}
	if s := got["svc/Method > step > call > elsewhere"]; s.Err != "broken" || s.Begin.UnixNano() != at-2000 || s.End.UnixNano() != at-1000 {
		t.Errorf("elsewhere: %+v", s)
	}
	if len(list) != 4 || len(c.Spans()) != 4 {
		t.Errorf("%d spans of the trace, %d in all: %+v", len(list), len(c.Spans()), got)
	}
	if s := tracer.Stats(); s != (otlp.Stats{Ended: 4, Sent: 4}) {
		t.Errorf("numbers: %+v", s)
	}
	if v := c.Header().Get("x-tenant"); v != "orlop" {
		t.Errorf("the standard variable's header is %q", v)
	}
}

func TestSampling(t *testing.T) {
	c := &tracetest.Collector{}
	srv := httptest.NewServer(c)
	defer srv.Close()
	for _, tt := range []struct {
		name   string
		ratio  float64
		parent string
		want   bool
	}{
		{"own, all", 1, "", true},
		{"own, none", 0, "", false},
		{"the client wants it", 0, "00-" + traceID + "-" + spanID + "-01", true},
		{"the client does not", 1, "00-" + traceID + "-" + spanID + "-00", false},
		{"a parent that is none", 1, "00-" + traceID + "-0000000000000000-01", true},
	} {
		tracer, end := open(t, otlp.Options{Endpoint: srv.URL, SamplingRatio: tt.ratio})
		ctx, span := trace.Serve(context.Background(), tracer, tt.name, trace.Parent{Traceparent: tt.parent})
		if (span != nil) != tt.want {
			t.Errorf("%s: sampled %v", tt.name, span != nil)
		}
		_, below := trace.Start(ctx, "below")
		below.End(nil)
		span.End(nil)
		end()
		if n := tracer.Stats().Sent; (n == 2) != tt.want || n != 0 && n != 2 {
			t.Errorf("%s: %d spans", tt.name, n)
		}
	}
	// What the daemon does by itself begins a trace only where there is none.
	tracer, end := open(t, otlp.Options{Endpoint: srv.URL, SamplingRatio: 1})
	ctx := trace.WithTracer(context.Background(), tracer)
	if _, span := trace.Start(ctx, "step"); span != nil {
		t.Error("a step alone begins a trace")
	}
	ctx, root := trace.Root(ctx, "root")
	_, below := trace.Root(ctx, "below root")
	below.End(nil)
	root.End(nil)
	end()
	list := c.Spans()
	if last := list[len(list)-2:]; tracetest.Path(last, last[0]) != "root > below root" || last[1].Kind != "SPAN_KIND_INTERNAL" {
		t.Errorf("%+v", last)
	}
}

// A collector that is away, or refuses, costs spans and one line in the log, and no time.
func TestNobodyListens(t *testing.T) {
	c := &tracetest.Collector{}
	c.Refuse(http.StatusForbidden)
	srv := httptest.NewServer(c)
	gone := httptest.NewServer(c)
	gone.Close()
	defer srv.Close()
	for _, url := range []string{srv.URL, gone.URL} {
		var out bytes.Buffer
		tracer, err := otlp.Open(otlp.Options{Endpoint: url, SamplingRatio: 1, Log: slog.New(slog.NewTextHandler(&out, nil))})
		if err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		for range 3000 { // more than fit into the queue
			_, span := trace.Serve(context.Background(), tracer, "op", trace.Parent{})
			span.End(nil)
		}
		if d := time.Since(begin); d > 5*time.Second {
			t.Errorf("%s: 3,000 spans took %s", url, d)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		tracer.Close(ctx)
		cancel()
		if s := tracer.Stats(); s.Ended != 3000 || s.Sent != 0 || s.Failed == 0 {
			t.Errorf("%s: numbers %+v", url, s)
		}
		if n := strings.Count(out.String(), "takes no traces"); n != 1 {
			t.Errorf("%s: the log says it %d times: %s", url, n, out.String())
		}
	}
}

func TestAuthorities(t *testing.T) {
	c := &tracetest.Collector{}
	srv := httptest.NewTLSServer(c)
	defer srv.Close()
	file := filepath.Join(t.TempDir(), "ca.pem")
	os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: srv.Certificate().Raw}), 0o644)
	tracer, end := open(t, otlp.Options{Endpoint: srv.URL, CAFile: file, SamplingRatio: 1})
	_, span := trace.Serve(context.Background(), tracer, "op", trace.Parent{})
	span.End(nil)
	end()
	if len(c.Spans()) != 1 {
		t.Errorf("%d spans, numbers %+v", len(c.Spans()), tracer.Stats())
	}
	empty := filepath.Join(t.TempDir(), "empty.pem")
	os.WriteFile(empty, nil, 0o644)
	for _, file := range []string{empty, empty + ".missing"} {
		if _, err := otlp.Open(otlp.Options{Endpoint: srv.URL, CAFile: file}); !errors.Is(err, errs.Invalid) {
			t.Errorf("%s: %v", file, err)
		}
	}
}
