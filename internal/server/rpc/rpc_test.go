package rpc_test

import (
	"context"
	"errors"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/orlop-io/orlop/internal/base/trace"
	"github.com/orlop-io/orlop/internal/base/trace/otlp"
	"github.com/orlop-io/orlop/internal/base/trace/tracetest"
	"github.com/orlop-io/orlop/internal/server/rpc"
)

const parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

func TestWatcher(t *testing.T) {
	c := &tracetest.Collector{}
	srv := httptest.NewServer(c)
	defer srv.Close()
	tracer, err := otlp.Open(otlp.Options{Endpoint: srv.URL, SamplingRatio: 1})
	if err != nil {
		t.Fatal(err)
	}
	w := rpc.New(tracer)
	do := func(r rpc.Request, code string, err error) {
		ctx, call := w.Begin(context.Background(), r)
		call.Set("k", "v")
		_, step := trace.Start(ctx, "step")
		if (step != nil) != call.Traced() {
			t.Errorf("%s: the context has a span: %v; the call: %v", r.Method, step != nil, call.Traced())
		}
		step.End(nil)
		call.End(code, err)
	}
	do(rpc.Request{Server: "cri", System: "grpc", Method: "S/Run"}, "OK", nil)
	do(rpc.Request{Server: "cri", System: "grpc", Method: "S/Run"}, "NotFound", errors.New("gone"))
	do(rpc.Request{Server: "cri", Method: "S/List", Looks: true}, "OK", nil)
	do(rpc.Request{Server: "cri", Method: "S/Status", Looks: true, Parent: trace.Parent{Traceparent: parent}}, "OK", nil)
	do(rpc.Request{Server: "cri", Method: "S/Stats", Looks: true, Parent: trace.Parent{Traceparent: "rubbish"}}, "OK", nil)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := tracer.Close(ctx); err != nil {
		t.Fatal(err)
	}
	n := make(map[string]int)
	for _, s := range c.Spans() {
		n[s.Name]++
		if s.Name == "S/Run" && (s.Failed != (s.Attrs["rpc.response.status_code"] == "NotFound") || s.Attrs["rpc.method"] != "S/Run" || s.Attrs["rpc.system.name"] != "grpc" || s.Attrs["k"] != "v") {
			t.Errorf("%+v", s)
		}
	}
	if n["S/Run"] != 2 || n["S/Status"] != 1 || n["S/List"] != 0 || n["S/Stats"] != 0 || n["step"] != 3 {
		t.Errorf("spans: %v", n)
	}

	reg := prometheus.NewRegistry()
	reg.MustRegister(w)
	answer := httptest.NewRecorder()
	promhttp.HandlerFor(reg, promhttp.HandlerOpts{}).ServeHTTP(answer, httptest.NewRequest("GET", "/metrics", nil))
	for _, want := range []string{
		`orlop_request_duration_seconds_count{code="OK",method="S/Run",server="cri"} 1`, `orlop_request_duration_seconds_count{code="NotFound",method="S/Run",server="cri"} 1`,
		`orlop_request_duration_seconds_bucket{code="OK",method="S/List",server="cri",le="120"} 1`,
	} {
		if !strings.Contains(answer.Body.String(), want) {
			t.Errorf("metrics do not say %s:\n%s", want, answer.Body)
		}
	}

	// Without a watcher everything goes on.
	var none *rpc.Watcher
	_, call := none.Begin(context.Background(), rpc.Request{})
	call.Set("k", "v")
	if call.Traced() {
		t.Error("nobody watches, and yet it is traced")
	}
	call.End("OK", nil)
}
