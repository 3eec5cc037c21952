package web

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestHandler(t *testing.T) {
	var notReady error = errors.New("volumes: the pool is being checked")
	h := New(Options{
		Version: "v1",
		Ready:   func(context.Context) error { return notReady },
		Sources: []Source{
			{Name: "pods", Help: "Pods by phase.", Labels: []string{"phase"}, Read: func(_ context.Context, put func(float64, ...string)) error {
				put(2, "Running")
				put(1, "Failed")
				return nil
			}},
			{Name: "broken", Help: "Fails.", Read: func(context.Context, func(float64, ...string)) error { return errors.New("no") }},
			{Name: "restarts_total", Help: "Counts.", Counter: true, Read: func(_ context.Context, put func(float64, ...string)) error { put(7); return nil }},
		},
	})
	srv := httptest.NewServer(h)
	defer srv.Close()
	fetch := func(path string) (int, string) {
		resp, err := http.Get(srv.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(b)
	}
	if code, body := fetch("/healthz"); code != 200 || body != "ok\n" {
		t.Errorf("/healthz: %d %q", code, body)
	}
	if code, body := fetch("/readyz"); code != 503 || !strings.Contains(body, "the pool is being checked") {
		t.Errorf("/readyz: %d %q", code, body)
	}
	notReady = nil
	if code, _ := fetch("/readyz"); code != 200 {
		t.Errorf("/readyz when ready: %d", code)
	}
	code, body := fetch("/metrics")
	if code != 200 {
		t.Fatalf("/metrics: %d %s", code, body)
	}
	for _, want := range []string{`orlop_pods{phase="Running"} 2`, `orlop_pods{phase="Failed"} 1`, "# TYPE orlop_restarts_total counter", "orlop_restarts_total 7", `orlop_build_info{version="v1"} 1`} {
		if !strings.Contains(body, want) {
			t.Errorf("/metrics does not contain %s", want)
		}
	}
}
