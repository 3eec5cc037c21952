package imagetest

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// Registry serves layouts, read-only, from the disk: /v2/<name>/… reads the layout
// that was added under that name; tags and digests are both found.
type Registry struct {
	// Fault, if not nil, may answer a request itself, by returning true.
	Fault func(w http.ResponseWriter, r *http.Request) bool

	mu       sync.Mutex
	layouts  map[string]*Layout
	requests []string // guarded by mu: METHOD path [range]
}

// Add serves the layout under the name.
func (g *Registry) Add(name string, l *Layout) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.layouts == nil {
		g.layouts = make(map[string]*Layout)
	}
	g.layouts[name] = l
}

// Requests returns what has been asked for so far.
func (g *Registry) Requests() []string {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]string(nil), g.requests...)
}

// ServeHTTP implements http.Handler.
func (g *Registry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g.mu.Lock()
	what := r.Method + " " + r.URL.Path
	if h := r.Header.Get("Range"); h != "" {
		what += " " + h
	}
	g.requests = append(g.requests, what)
	g.mu.Unlock()
	if g.Fault != nil && g.Fault(w, r) {
		return
	}
	path, ok := strings.CutPrefix(r.URL.Path, "/v2/")
	if !ok {
		http.NotFound(w, r)
		return
	}
	if path == "" {
		w.WriteHeader(http.StatusOK)
		return
	}
	kind := "/blobs/"
	i := strings.LastIndex(path, kind)
	if i < 0 {
		kind = "/manifests/"
		i = strings.LastIndex(path, kind)
	}
	if i < 0 {
		http.NotFound(w, r)
		return
	}
	g.mu.Lock()
	l := g.layouts[path[:i]]
	g.mu.Unlock()
	if l == nil {
		http.NotFound(w, r)
		return
	}
	ref := path[i+len(kind):]
	w.Header().Set("Content-Type", "application/octet-stream")
	if kind == "/manifests/" {
		if !strings.HasPrefix(ref, "sha256:") {
			ref = l.Manifest.Digest.String()
		}
		w.Header().Set("Content-Type", l.Manifest.MediaType)
	}
	hex := strings.TrimPrefix(ref, "sha256:")
	f, err := os.Open(filepath.Join(l.Dir, "blobs/sha256", filepath.Base(hex)))
	if err != nil {
		http.NotFound(w, r)
		return
	}
	defer f.Close()
	w.Header().Set("Docker-Content-Digest", "sha256:"+hex)
	http.ServeContent(w, r, "", time.Time{}, f)
}

// Serve starts the registry on a loopback address, until the test ends, and
// returns its host and port.
func (g *Registry) Serve(t testing.TB) string {
	s := httptest.NewServer(g)
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}
