// Package web serves what machines and people read over plain HTTP: /metrics for
// Prometheus, /healthz and /readyz for whoever watches the daemon.
package web

import (
	"context"
	"fmt"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Options say what stands behind the paths.
type Options struct {
	Version string
	// Ready returns nil once every domain has been opened and reconciled, and the
	// reason otherwise. It must answer quickly.
	Ready func(context.Context) error
	// Sources are read at each scrape.
	Sources []Source
	// Collectors are metrics that are kept elsewhere.
	Collectors []prometheus.Collector
}

// Source is one gauge or counter, or a family of them, that a domain knows.
type Source struct {
	Name    string // without the prefix orlop_
	Help    string
	Counter bool     // else a gauge
	Labels  []string // names
	// Read reports the values; it calls put once for each combination of labels.
	Read func(ctx context.Context, put func(value float64, labels ...string)) error
}

// scrapeTimeout bounds what one scrape may wait for all sources.
const scrapeTimeout = 5 * time.Second

// New returns the handler of /metrics, /healthz and /readyz.
func New(o Options) http.Handler {
	reg := prometheus.NewRegistry()
	build := prometheus.NewGauge(prometheus.GaugeOpts{
		Name: "orlop_build_info", Help: "1, with the version as a label.", ConstLabels: prometheus.Labels{"version": o.Version},
	})
	build.Set(1)
	reg.MustRegister(build, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	for _, s := range o.Sources {
		reg.MustRegister(newCollector(s))
	}
	reg.MustRegister(o.Collectors...)
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError, MaxRequestsInFlight: 4}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		if err := o.Ready(r.Context()); err != nil {
			http.Error(w, "not ready: "+err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ready")
	})
	return mux
}

type collector struct {
	Source
	desc *prometheus.Desc
	kind prometheus.ValueType
}

func newCollector(s Source) collector {
	c := collector{s, prometheus.NewDesc("orlop_"+s.Name, s.Help, s.Labels, nil), prometheus.GaugeValue}
	if s.Counter {
		c.kind = prometheus.CounterValue
	}
	return c
}

// Describe implements prometheus.Collector.
func (c collector) Describe(ch chan<- *prometheus.Desc) { ch <- c.desc }

// Collect implements prometheus.Collector. A source that fails is reported as an
// invalid metric; the others are served all the same.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	err := c.Read(ctx, func(v float64, labels ...string) {
		m, err := prometheus.NewConstMetric(c.desc, c.kind, v, labels...)
		if err != nil {
			m = prometheus.NewInvalidMetric(c.desc, err)
		}
		ch <- m
	})
	if err != nil {
		ch <- prometheus.NewInvalidMetric(c.desc, err)
	}
}
