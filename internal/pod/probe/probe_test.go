package probe

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/orlop-io/orlop/internal/base/errs"
)

func TestRun(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("/ok", func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Ask") != "yes" {
			w.WriteHeader(http.StatusTeapot)
		}
	})
	mux.HandleFunc("/away", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://elsewhere.invalid/", http.StatusFound)
	})
	mux.HandleFunc("/here", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/gone", http.StatusFound) })
	mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	mux.HandleFunc("/loop", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/loop", http.StatusFound) })
	mux.HandleFunc("/stall", func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(http.StatusOK)
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	mux.HandleFunc("/big", func(w http.ResponseWriter, r *http.Request) {
		for r.Context().Err() == nil { // without end: the probe must not read it all
			w.Write(make([]byte, 4096))
		}
	})
	mux.HandleFunc("/agent", func(w http.ResponseWriter, r *http.Request) {
		if r.UserAgent() != r.URL.Query().Get("is") || r.URL.Query().Get("host") != "" && r.Host != r.URL.Query().Get("host") {
			w.WriteHeader(http.StatusTeapot)
		}
	})
	plain := httptest.NewServer(mux)
	defer plain.Close()
	secure := httptest.NewTLSServer(mux)
	defer secure.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := grpc.NewServer()
	hs := health.NewServer()
	hs.SetServingStatus("up", grpc_health_v1.HealthCheckResponse_SERVING)
	hs.SetServingStatus("down", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	grpc_health_v1.RegisterHealthServer(g, hs)
	go g.Serve(l)
	defer g.Stop()
	port := func(addr string) uint16 { return netip.MustParseAddrPort(addr).Port() }
	pp, sp, gp := port(plain.Listener.Addr().String()), port(secure.Listener.Addr().String()), port(l.Addr().String())
	closed, _ := net.Listen("tcp", "127.0.0.1:0")
	cp := port(closed.Addr().String())
	closed.Close()

	target := Target{Addr: "127.0.0.1", Dial: (&net.Dialer{}).DialContext,
		Exec: func(_ context.Context, argv []string) (int, []byte, error) {
			switch argv[0] {
			case "broken":
				return 0, nil, errors.New("cannot be run")
			case "away":
				return 0, nil, errs.New(errs.Unavailable, "nobody runs it")
			case "slow":
				return 0, nil, context.DeadlineExceeded
			}
			return len(argv) - 1, []byte("said this"), nil
		}}
	ask := [][2]string{{"X-Ask", "yes"}}
	for _, tt := range []struct {
		name string
		c    Check
		want string // part of the message; "" is success
	}{
		{"http", Check{HTTP: &HTTP{Scheme: "http", Port: pp, Path: "/ok", Headers: ask}}, ""},
		{"http status", Check{HTTP: &HTTP{Scheme: "http", Port: pp, Path: "ok"}}, "418"},
		{"https", Check{HTTP: &HTTP{Scheme: "https", Port: sp, Path: "/ok", Headers: ask}}, ""},
		{"redirect away", Check{HTTP: &HTTP{Scheme: "http", Port: pp, Path: "/away"}}, ""},
		{"redirect here", Check{HTTP: &HTTP{Scheme: "http", Port: pp, Path: "/here"}}, "404"},
		{"redirect loop", Check{HTTP: &HTTP{Scheme: "http", Port: pp, Path: "/loop"}}, "redirects"},
		{"http stalls", Check{HTTP: &HTTP{Scheme: "http", Port: pp, Path: "/stall"}}, "deadline"},
		{"http endless", Check{HTTP: &HTTP{Scheme: "http", Port: pp, Path: "/big"}}, ""},
		{"agent", Check{HTTP: &HTTP{Port: pp, Path: "/agent?is=orlop-probe"}}, ""},
		{"own agent and host", Check{HTTP: &HTTP{Scheme: "HTTP", Port: pp, Path: "/agent?is=me&host=example.org", Headers: [][2]string{{"user-agent", "me"}, {"Host", "example.org"}}}}, ""},
		{"http time-out", Check{HTTP: &HTTP{Scheme: "http", Port: pp, Path: "/slow"}}, "deadline"},
		{"http refused", Check{HTTP: &HTTP{Scheme: "http", Port: cp}}, "refused"},
		{"tcp", Check{TCP: &TCP{Port: pp}}, ""},
		{"tcp refused", Check{TCP: &TCP{Host: "127.0.0.1", Port: cp}}, "refused"},
		{"grpc", Check{GRPC: &GRPC{Port: gp, Service: "up"}}, ""},
		{"grpc down", Check{GRPC: &GRPC{Port: gp, Service: "down"}}, "NOT_SERVING"},
		{"grpc unknown", Check{GRPC: &GRPC{Port: gp, Service: "other"}}, "unknown service"},
		{"exec", Check{Exec: []string{"true"}}, ""},
		{"exec fails", Check{Exec: []string{"a", "b"}}, "ended with 1: said this"},
		{"exec broken", Check{Exec: []string{"broken"}}, "cannot be run"},
		{"exec takes too long", Check{Exec: []string{"slow"}}, "in time"},
		{"exec cannot be tried", Check{Exec: []string{"away"}}, "nobody runs it"},
		{"nothing", Check{}, "nothing to do"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			defer cancel()
			o := Run(ctx, tt.c, target)
			if o.OK != (tt.want == "") || !strings.Contains(o.Message, tt.want) || o.Unknown != (tt.name == "exec cannot be tried") {
				t.Errorf("%+v", o)
			}
		})
	}
}
