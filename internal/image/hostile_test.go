package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/orlop-io/orlop/internal/base/config"
	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/image/imagetest"
)

// TestPullHostileImage: images that lie or want out. Each is a clear error and
// leaves nothing, not even a file beside the store.
func TestPullHostileImage(t *testing.T) {
	plain := func(e ...imagetest.Entry) []imagetest.Layer { return []imagetest.Layer{layerOf(e...)} }
	big := strings.Repeat("0123456789abcdef", 1<<16) // 1 MiB
	type change func(*ocispec.Image, *ocispec.Manifest)
	otherDigest := digest.FromString("something else")
	for what, c := range map[string]struct {
		layers []imagetest.Layer
		change change
		kind   error
		want   string
	}{
		"path traversal":          {layers: plain(imagetest.File("../../evil", "x")), kind: errs.Invalid, want: `entry "../../evil"`},
		"symlink escape":          {layers: plain(imagetest.Symlink("l", "/tmp"), imagetest.File("l/evil", "x")), kind: errs.Invalid, want: "absolute symlink"},
		"hard link out":           {layers: plain(imagetest.Hardlink("l", "../../../etc/passwd")), kind: errs.Invalid, want: "goes up"},
		"hard link to nowhere":    {layers: plain(imagetest.Hardlink("l", "etc/passwd")), kind: errs.Invalid, want: "no layer contains"},
		"hard link, upper layer":  {layers: append(plain(imagetest.File("a", "x")), layerOf(imagetest.Hardlink("l", "b"))), kind: errs.Invalid, want: "nor one below"},
		"escape in a lower layer": {layers: append(plain(imagetest.Symlink("l", "../../..")), layerOf(imagetest.File("l/evil", "x"))), kind: errs.Invalid, want: "leaves the layer"},
		"device":                  {layers: plain(imagetest.Entry{Header: tar.Header{Name: "sda", Typeflag: tar.TypeBlock, Devmajor: 8}}), kind: errs.Invalid, want: "device node"},
		"bomb":                    {layers: plain(imagetest.File("a", big), imagetest.File("b", big), imagetest.File("c", big), imagetest.File("d", big), imagetest.File("e", big)), kind: errs.ResourceExhausted, want: "image.maxLayerBytes"},
		"bomb of zeros behind":    {layers: []imagetest.Layer{{Raw: make([]byte, 80<<20)}}, kind: errs.ResourceExhausted, want: "image.maxLayerBytes"},
		"bomb of several layers":  {layers: []imagetest.Layer{layerOf(imagetest.File("a", big+big+big)), layerOf(imagetest.File("b", big+big+big)), layerOf(imagetest.File("c", big+big+big))}, kind: errs.ResourceExhausted, want: "image.maxImageBytes"},
		"many files":              {layers: []imagetest.Layer{layerOf(manyFiles(60)...), layerOf(manyFiles(61)...)}, kind: errs.ResourceExhausted, want: "image.maxFiles"},
		"no archive":              {layers: []imagetest.Layer{{Raw: bytes.Repeat([]byte("garbage!"), 1000)}}, kind: errs.Invalid, want: "no valid tar"},
		"cut archive":             {layers: []imagetest.Layer{{Raw: cutTar(t)}}, kind: errs.Invalid, want: "ends in the middle"},
		"wrong DiffID":            {layers: plain(imagetest.File("a", "x")), change: func(i *ocispec.Image, _ *ocispec.Manifest) { i.RootFS.DiffIDs[0] = otherDigest }, kind: errs.Corrupt, want: "as the image's configuration says"},
		"swapped DiffIDs":         {layers: append(plain(imagetest.File("a", "x")), layerOf(imagetest.File("b", "y"))), change: func(i *ocispec.Image, _ *ocispec.Manifest) { d := i.RootFS.DiffIDs; d[0], d[1] = d[1], d[0] }, kind: errs.Corrupt, want: "as the image's configuration says"},
		"layer counts differ":     {layers: plain(imagetest.File("a", "x")), change: func(i *ocispec.Image, _ *ocispec.Manifest) { i.RootFS.DiffIDs = nil }, kind: errs.Invalid, want: "1 layers, the image's configuration 0"},
		"other layer in manifest": {layers: append(plain(imagetest.File("a", "x")), layerOf(imagetest.File("b", "y"))), change: func(_ *ocispec.Image, m *ocispec.Manifest) { m.Layers[1] = m.Layers[0] }, kind: errs.Corrupt, want: "as the image's configuration says"},
		"size too small":          {layers: plain(imagetest.File("a", "x")), change: func(_ *ocispec.Image, m *ocispec.Manifest) { m.Layers[0].Size-- }, kind: errs.Corrupt, want: "the manifest says"},
		"size too large":          {layers: plain(imagetest.File("a", "x")), change: func(_ *ocispec.Image, m *ocispec.Manifest) { m.Layers[0].Size++ }, kind: errs.Corrupt, want: "the manifest says"},
		"negative size":           {layers: plain(imagetest.File("a", "x")), change: func(_ *ocispec.Image, m *ocispec.Manifest) { m.Layers[0].Size = -1 }, kind: errs.Invalid, want: "size"},
		"digest with a path":      {layers: plain(imagetest.File("a", "x")), change: func(_ *ocispec.Image, m *ocispec.Manifest) { m.Layers[0].Digest = "sha256:../../../../etc/passwd" }, kind: errs.Invalid, want: "no sha256 digest"},
		"DiffID with a path":      {layers: plain(imagetest.File("a", "x")), change: func(i *ocispec.Image, _ *ocispec.Manifest) { i.RootFS.DiffIDs[0] = "sha256:../../x" }, kind: errs.Invalid, want: "no sha256 digest"},
		"unknown media type":      {layers: plain(imagetest.File("a", "x")), change: func(_ *ocispec.Image, m *ocispec.Manifest) { m.Layers[0].MediaType = "application/x-evil" }, kind: errs.Unsupported, want: "application/x-evil"},
		"artifact":                {layers: plain(imagetest.File("a", "x")), change: func(_ *ocispec.Image, m *ocispec.Manifest) { m.MediaType = "application/vnd.cncf.helm" }, kind: errs.Unsupported, want: "not that of a container image"},
		"other platform":          {layers: plain(imagetest.File("a", "x")), change: func(i *ocispec.Image, _ *ocispec.Manifest) { i.Architecture = "s390x" }, kind: errs.Invalid, want: "s390x"},
		"hundreds of layers": {layers: plain(imagetest.File("a", "x")), change: func(i *ocispec.Image, m *ocispec.Manifest) {
			for len(m.Layers) < 300 {
				m.Layers = append(m.Layers, m.Layers[0])
				i.RootFS.DiffIDs = append(i.RootFS.DiffIDs, i.RootFS.DiffIDs[0])
			}
		}, kind: errs.Invalid, want: "300 layers"},
	} {
		t.Run(what, func(t *testing.T) {
			top := t.TempDir()
			s := open(t, filepath.Join(top, "root"), func(c *config.Image) {
				c.MaxLayerBytes, c.MaxImageBytes, c.MaxFiles = 4<<20, 8<<20, 100
			})
			l, err := imagetest.Build(t.TempDir(), c.layers, c.change)
			if err != nil {
				t.Fatal(err)
			}
			name, _ := serve(t, l)
			_, err = s.Pull(t.Context(), name, PullOptions{})
			if !errors.Is(err, c.kind) || !strings.Contains(fmt.Sprint(err), c.want) {
				t.Errorf("error %v\nwant %q of kind %v", err, c.want, c.kind)
			}
			checkEmpty(t, s)
			if left, err := os.ReadDir(top); err != nil || len(left) != 1 {
				t.Errorf("beside the store: %v, %v", left, err)
			}
		})
	}
}

func manyFiles(n int) []imagetest.Entry {
	var e []imagetest.Entry
	for i := range n {
		e = append(e, imagetest.File(fmt.Sprintf("f%d-%d", n, i), ""))
	}
	return e
}

func cutTar(t *testing.T) []byte {
	var b bytes.Buffer
	if err := imagetest.Tar(&b, []imagetest.Entry{imagetest.File("f", strings.Repeat("x", 10000))}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()[:5000]
}

// TestPullHostileRegistry: answers that are not what they should be.
func TestPullHostileRegistry(t *testing.T) {
	l := build(t, layerOf(imagetest.File("a", strings.Repeat("content ", 100000))))
	blob := l.Image.Layers[0].Digest.String()
	cfg := l.Image.Config.Digest.String()
	isBlob := func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, blob) }
	isManifest := func(r *http.Request) bool { return strings.Contains(r.URL.Path, "/manifests/") }
	raw, err := os.ReadFile(filepath.Join(l.Dir, "blobs/sha256", l.Image.Layers[0].Digest.Encoded()))
	if err != nil {
		t.Fatal(err)
	}
	answer := func(match func(*http.Request) bool, fn http.HandlerFunc) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if !match(r) {
				return false
			}
			fn(w, r)
			return true
		}
	}
	status := func(code int) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
	}
	var loops atomic.Int64
	for what, c := range map[string]struct {
		fault func(http.ResponseWriter, *http.Request) bool
		kind  error
		want  string
	}{
		"other bytes": {answer(isBlob, func(w http.ResponseWriter, _ *http.Request) {
			b := bytes.Clone(raw)
			b[len(b)/2] ^= 1
			_, _ = w.Write(b)
		}), errs.Corrupt, "digest"},
		"shorter than said": {answer(isBlob, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(raw[:len(raw)/2]) }), errs.Corrupt, "the manifest says"},
		"longer than said":  {answer(isBlob, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(append(bytes.Clone(raw), 'x')) }), errs.Corrupt, "the manifest says"},
		"longer, no length": {answer(isBlob, func(w http.ResponseWriter, _ *http.Request) {
			w.(http.Flusher).Flush()
			_, _ = w.Write(append(bytes.Clone(raw), bytes.Repeat([]byte("x"), 1<<20)...))
		}), errs.Corrupt, "bytes"},
		"always truncated": {answer(isBlob, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(len(raw)))
			_, _ = w.Write(raw[:100])
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}), errs.Unavailable, "broke"},
		"wrong range": {func() func(http.ResponseWriter, *http.Request) bool {
			return answer(isBlob, func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Range") != "" {
					w.Header().Set("Content-Range", fmt.Sprintf("bytes 0-%d/%d", len(raw)-1, len(raw)))
					w.WriteHeader(http.StatusPartialContent)
					_, _ = w.Write(raw)
					return
				}
				w.Header().Set("Content-Length", fmt.Sprint(len(raw)))
				_, _ = w.Write(raw[:100])
				w.(http.Flusher).Flush()
				panic(http.ErrAbortHandler)
			})
		}(), errs.Corrupt, "range"},
		"blob missing":        {answer(isBlob, status(404)), errs.NotFound, "does not have it"},
		"configuration lies":  {answer(func(r *http.Request) bool { return strings.HasSuffix(r.URL.Path, cfg) }, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, l.Image.Config.Size)) }), errs.Corrupt, "configuration"},
		"manifest is huge":    {answer(isManifest, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, maxManifest+10)) }), errs.Invalid, "larger than"},
		"manifest is garbage": {answer(isManifest, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) }), errs.Invalid, "JSON"},
		"manifest of schema 1": {answer(isManifest, func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(`{"schemaVersion":1,"fsLayers":[]}`))
		}), errs.Unsupported, "schema 1"},
		"index and image": {answer(isManifest, func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(`{"schemaVersion":2,"manifests":[],"layers":[],"config":{}}`))
		}), errs.Invalid, "same time"},
		"manifest digest lies": {answer(isManifest, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Docker-Content-Digest", digest.FromString("x").String())
			_, _ = w.Write([]byte("{}"))
		}), errs.Corrupt, "digest"},
		"401 without end": {func(w http.ResponseWriter, r *http.Request) bool {
			loops.Add(1)
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(401)
			return true
		}, errs.Unauthenticated, "docker login"},
		"token loop": {func(w http.ResponseWriter, r *http.Request) bool {
			loops.Add(1)
			if strings.HasPrefix(r.URL.Path, "/token") {
				_ = json.NewEncoder(w).Encode(map[string]string{"token": "t"})
				return true
			}
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+r.Host+`/token",service="s",scope="repository:app:pull"`)
			w.WriteHeader(401)
			return true
		}, errs.Unauthenticated, "docker login"},
		"forbidden": {answer(isManifest, status(403)), errs.PermissionDenied, "does not allow"},
		"redirect loop": {answer(isBlob, func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, r.URL.Path, http.StatusTemporaryRedirect)
		}), errs.Unavailable, "redirected"},
	} {
		t.Run(what, func(t *testing.T) {
			loops.Store(0)
			s := open(t, t.TempDir())
			s.regs.SetTimes(time.Second, time.Millisecond, time.Millisecond)
			r := imagetest.Registry{Fault: c.fault}
			r.Add("app", l)
			_, err := s.Pull(t.Context(), r.Serve(t)+"/app:1", PullOptions{Auth: &Auth{Username: "u", Password: "p"}})
			if !errors.Is(err, c.kind) || !strings.Contains(fmt.Sprint(err), c.want) {
				t.Errorf("error %v\nwant %q of kind %v", err, c.want, c.kind)
			}
			if n := loops.Load(); n > 10 {
				t.Errorf("asked %d times", n)
			}
			checkEmpty(t, s)
		})
	}
}

// TestPullResumes: a connection that breaks, and one that falls silent, is taken up
// where it was.
func TestPullResumes(t *testing.T) {
	l := build(t, imagetest.Layer{Entries: []imagetest.Entry{imagetest.File("a", strings.Repeat("0123456789", 300000))}, Compression: "none"})
	blob := l.Image.Layers[0].Digest.String()
	for what, ranges := range map[string]bool{"ranges": true, "no ranges": false} {
		t.Run(what, func(t *testing.T) {
			var asked atomic.Int64
			r := imagetest.Registry{Fault: func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.HasSuffix(r.URL.Path, blob) {
					return false
				}
				n := asked.Add(1)
				if !ranges {
					r.Header.Del("Range")
				}
				if n > 3 {
					return false
				}
				raw, _ := os.ReadFile(filepath.Join(l.Dir, "blobs/sha256", l.Image.Layers[0].Digest.Encoded()))
				var off int
				if _, err := fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &off); err == nil {
					w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", off, len(raw)-1, len(raw)))
					w.Header().Set("Content-Length", fmt.Sprint(len(raw)-off))
					w.WriteHeader(206)
				} else {
					w.Header().Set("Content-Length", fmt.Sprint(len(raw)))
				}
				_, _ = w.Write(raw[off : off+500000*int(n)-off])
				w.(http.Flusher).Flush()
				if n == 2 {
					<-r.Context().Done() // silent, until the client gives up
					return true
				}
				panic(http.ErrAbortHandler)
			}}
			r.Add("app", l)
			s := open(t, t.TempDir())
			s.regs.SetTimes(300*time.Millisecond, time.Millisecond, time.Millisecond, time.Millisecond, time.Millisecond)
			var retries atomic.Int64
			name := r.Serve(t) + "/app:1"
			img, err := s.Pull(t.Context(), name, PullOptions{Progress: func(p Progress) {
				if p.State == ProgressRetrying {
					retries.Add(1)
				}
			}})
			if err != nil {
				t.Fatal(err)
			}
			if img.UnpackedBytes != 3000000 || asked.Load() != 4 || retries.Load() == 0 {
				t.Errorf("%d bytes, asked %d times, %d retries reported", img.UnpackedBytes, asked.Load(), retries.Load())
			}
		})
	}
}

// TestPullCredentials: credentials reach the registry that they are for, and
// nobody else: not the target of a redirect, not a mirror.
func TestPullCredentials(t *testing.T) {
	l := build(t, layerOf(imagetest.File("a", "x")))
	var other imagetest.Registry
	var leaked atomic.Int64
	other.Fault = func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") != "" || r.Header.Get("Cookie") != "" {
			leaked.Add(1)
		}
		return false
	}
	other.Add("app", l)
	elsewhere := httptest.NewServer(&other)
	defer elsewhere.Close()
	// The other host must have another name, not only another port.
	elsewhereURL := strings.Replace(elsewhere.URL, "127.0.0.1", "localhost", 1)

	var authed atomic.Int64
	reg := imagetest.Registry{Fault: func(w http.ResponseWriter, r *http.Request) bool {
		if u, p, ok := r.BasicAuth(); !ok || u != "user" || p != "secret" {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(401)
			return true
		}
		authed.Add(1)
		if strings.Contains(r.URL.Path, "/blobs/") {
			http.Redirect(w, r, elsewhereURL+r.URL.Path, http.StatusTemporaryRedirect)
			return true
		}
		return false
	}}
	reg.Add("app", l)
	host := reg.Serve(t)

	given := &Auth{Username: "user", Password: "secret"}
	s := open(t, t.TempDir())
	if _, err := s.Pull(t.Context(), host+"/app:1", PullOptions{}); !errors.Is(err, errs.Unauthenticated) {
		t.Errorf("without credentials: %v", err)
	}
	checkEmpty(t, s)
	if _, err := s.Pull(t.Context(), host+"/app:1", PullOptions{Auth: given}); err != nil {
		t.Fatal(err)
	}

	// From docker's configuration: in it, and by a credential helper.
	for what, conf := range map[string]string{
		"configuration": fmt.Sprintf(`{"auths":{%q:{"username":"user","password":"secret"}}}`, host),
		"helper":        fmt.Sprintf(`{"credHelpers":{%q:"orlop-test"}}`, host),
	} {
		t.Run(what, func(t *testing.T) {
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(conf), 0o600); err != nil {
				t.Fatal(err)
			}
			helper := "#!/bin/sh\ncat >/dev/null\necho '{\"ServerURL\":\"x\",\"Username\":\"user\",\"Secret\":\"secret\"}'\n"
			if err := os.WriteFile(filepath.Join(dir, "docker-credential-orlop-test"), []byte(helper), 0o755); err != nil {
				t.Fatal(err)
			}
			t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
			s := open(t, t.TempDir(), func(c *config.Image) { c.DockerConfig = dir })
			if _, err := s.Pull(t.Context(), host+"/app:1", PullOptions{}); err != nil {
				t.Error(err)
			}
		})
	}

	// A mirror that does not have it is passed over, without credentials.
	t.Run("mirror", func(t *testing.T) {
		empty := imagetest.Registry{Fault: other.Fault}
		mirror := empty.Serve(t)
		s := open(t, t.TempDir(), func(c *config.Image) {
			c.Registries = []config.Registry{{Host: host, Mirrors: []string{mirror}}}
		})
		if _, err := s.Pull(t.Context(), host+"/app:1", PullOptions{Auth: given}); err != nil {
			t.Error(err)
		}
		if len(empty.Requests()) == 0 {
			t.Error("the mirror was not asked")
		}
	})
	t.Run("mirror has it", func(t *testing.T) {
		var m imagetest.Registry
		m.Add("mirrored/app", l)
		mirror := m.Serve(t)
		s := open(t, t.TempDir(), func(c *config.Image) {
			c.Registries = []config.Registry{{Host: "registry.invalid", Mirrors: []string{"http://" + mirror + "/mirrored"}}}
		})
		img, err := s.Pull(t.Context(), "registry.invalid/app:1", PullOptions{Auth: given})
		if err != nil || img.Names[0] != "registry.invalid/app:1" {
			t.Errorf("%+v, %v", img.Names, err)
		}
	})
	if leaked.Load() > 0 {
		t.Errorf("credentials went to another host %d times", leaked.Load())
	}
	if authed.Load() == 0 {
		t.Error("credentials never reached the registry")
	}
}

// TestPlainHTTP: nothing but loopback is asked by plain HTTP unless configured, and
// no redirect leads there from HTTPS.
func TestPlainHTTP(t *testing.T) {
	l := build(t, layerOf(imagetest.File("a", "x")))
	var reg imagetest.Registry
	reg.Add("app", l)
	plain := httptest.NewServer(&reg)
	defer plain.Close()
	secure := imagetest.Registry{Fault: func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/blobs/") {
			http.Redirect(w, r, plain.URL+r.URL.Path, http.StatusTemporaryRedirect)
			return true
		}
		return false
	}}
	secure.Add("app", l)
	ts := httptest.NewTLSServer(&secure)
	defer ts.Close()
	host := strings.TrimPrefix(ts.URL, "https://")
	s := open(t, t.TempDir(), func(c *config.Image) { c.Registries = []config.Registry{{Host: host, SkipVerify: true}} })
	s.regs.SetTimes(time.Second, time.Millisecond)
	if _, err := s.Pull(t.Context(), host+"/app:1", PullOptions{}); !errors.Is(err, errs.PermissionDenied) {
		t.Errorf("redirect from HTTPS: %v", err)
	}
	checkEmpty(t, s)
	if _, err := s.Pull(t.Context(), "10.255.255.1.invalid/app:1", PullOptions{}); !errors.Is(err, errs.Unavailable) {
		t.Errorf("no such host: %v", err)
	}
}
