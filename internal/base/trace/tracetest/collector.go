// Package tracetest has a collector of OpenTelemetry for tests.
package tracetest

import (
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	common "go.opentelemetry.io/proto/otlp/common/v1"
	"google.golang.org/protobuf/proto"
)

// Span is one that a Collector was sent.
type Span struct {
	Trace, ID, Parent string // hexadecimal; Parent is "" for the first
	Name              string
	Kind              string // SPAN_KIND_SERVER, …
	Begin, End        time.Time
	Attrs             map[string]string
	Failed            bool
	Err               string
	Resource          map[string]string // of who sent it
}

// Collector keeps the spans that it is sent, by OTLP over HTTP at /v1/traces.
type Collector struct {
	mu     sync.Mutex
	spans  []Span
	header http.Header
	refuse int
}

// Refuse makes it answer with the status from now on, and take nothing; 0 ends that.
func (c *Collector) Refuse(status int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refuse = status
}

// ServeHTTP implements http.Handler.
func (c *Collector) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.header = r.Header
	if c.refuse != 0 {
		http.Error(w, "refused", c.refuse)
		return
	}
	if r.Method != http.MethodPost || r.URL.Path != "/v1/traces" || r.Header.Get("Content-Type") != "application/x-protobuf" {
		http.Error(w, fmt.Sprintf("%s %s with %q is no export of traces", r.Method, r.URL, r.Header.Get("Content-Type")), http.StatusBadRequest)
		return
	}
	body, err := io.ReadAll(r.Body)
	var m collector.ExportTraceServiceRequest
	if err == nil {
		err = proto.Unmarshal(body, &m)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	for _, rs := range m.ResourceSpans {
		resource := attributes(rs.GetResource().GetAttributes())
		for _, ss := range rs.ScopeSpans {
			for _, s := range ss.Spans {
				c.spans = append(c.spans, Span{
					Trace: hex.EncodeToString(s.TraceId), ID: hex.EncodeToString(s.SpanId), Parent: hex.EncodeToString(s.ParentSpanId),
					Name: s.Name, Kind: s.Kind.String(), Begin: time.Unix(0, int64(s.StartTimeUnixNano)), End: time.Unix(0, int64(s.EndTimeUnixNano)),
					Attrs: attributes(s.Attributes), Failed: s.GetStatus().GetCode() == 2, Err: s.GetStatus().GetMessage(), Resource: resource,
				})
			}
		}
	}
	w.Header().Set("Content-Type", "application/x-protobuf")
	answer, _ := proto.Marshal(&collector.ExportTraceServiceResponse{})
	w.Write(answer)
}

func attributes(list []*common.KeyValue) map[string]string {
	m := make(map[string]string, len(list))
	for _, a := range list {
		switch v := a.GetValue().GetValue().(type) {
		case *common.AnyValue_StringValue:
			m[a.Key] = v.StringValue
		default:
			m[a.Key] = strings.TrimSpace(fmt.Sprint(a.GetValue()))
		}
	}
	return m
}

// Header is that of the last request.
func (c *Collector) Header() http.Header {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.header
}

// Spans returns what has come.
func (c *Collector) Spans() []Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Span(nil), c.spans...)
}

// Trace returns the spans of one trace.
func (c *Collector) Trace(id string) (list []Span) {
	for _, s := range c.Spans() {
		if s.Trace == id {
			list = append(list, s)
		}
	}
	return list
}

// Tree shows spans as a person reads them: indented, in order, with what each took.
func Tree(list []Span) string {
	sorted := slices.Clone(list)
	slices.SortStableFunc(sorted, func(a, b Span) int { return a.Begin.Compare(b.Begin) })
	var out strings.Builder
	var below func(parent, indent string)
	below = func(parent, indent string) {
		for _, s := range sorted {
			if s.Parent == parent {
				fmt.Fprintf(&out, "%8.2f ms  %s%s %s\n", s.End.Sub(s.Begin).Seconds()*1e3, indent, s.Name, s.Err)
				below(s.ID, indent+"  ")
			}
		}
	}
	known := make(map[string]bool)
	for _, s := range sorted {
		known[s.ID] = true
	}
	roots := make(map[string]bool)
	for _, s := range sorted {
		if !known[s.Parent] && !roots[s.Parent] {
			roots[s.Parent] = true
			below(s.Parent, "")
		}
	}
	return out.String()
}

// Path returns the names from the first span that is there to s, the last of them.
func Path(list []Span, s Span) string {
	for _, above := range list {
		if above.ID == s.Parent {
			return Path(list, above) + " > " + s.Name
		}
	}
	return s.Name
}
