package image

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/orlop-io/orlop/internal/base/config"
	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/image/imagetest"
)

// hosts is a directory of hosts' directories, used by a store.
type hosts string

// put writes a file below it.
func (h hosts) put(t testing.TB, name, text string) {
	t.Helper()
	path := filepath.Join(string(h), name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func openWithHosts(t testing.TB) (*Store, hosts) {
	h := hosts(t.TempDir())
	s := open(t, t.TempDir(), func(c *config.Image) { c.HostsDirs = []string{string(h)} })
	s.regs.SetTimes(time.Second, 5*time.Millisecond)
	return s, h
}

// serveTLS serves the registry with TLS and returns its address and its authority's
// certificate.
func serveTLS(t testing.TB, g http.Handler, clients *x509.CertPool) (host, ca string) {
	s := httptest.NewUnstartedServer(g)
	if clients != nil {
		s.TLS = &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: clients}
	}
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "https://"), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
}

// clientCertificate returns a certificate and its key, and the pool that has it.
func clientCertificate(t testing.TB) (cert, key string, pool *x509.CertPool) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "node"}, NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, k.Public(), k)
	if err != nil {
		t.Fatal(err)
	}
	kder, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	cert = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	key = string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: kder}))
	pool = x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(cert))
	return cert, key, pool
}

// TestHostsTLS pulls from registries whose certificates, and ours, are in the
// directories, and changes them while the store is open.
func TestHostsTLS(t *testing.T) {
	l := build(t, layerOf(imagetest.File("a", "1")))
	cert, key, pool := clientCertificate(t)
	var g imagetest.Registry
	g.Add("app", l)
	host, ca := serveTLS(t, &g, nil)
	strict, strictCA := serveTLS(t, &g, pool)
	for _, tt := range []struct {
		what, host string
		files      map[string]string
		want       string // of the error
	}{
		{"no authority", host, nil, "is not trusted"},
		{"an authority", host, map[string]string{"hosts.toml": `ca = "ca.pem"`, "ca.pem": ca}, ""},
		{"no verification", host, map[string]string{"hosts.toml": `skip_verify = true`}, ""},
		{"Docker's layout", host, map[string]string{"ca.crt": ca}, ""},
		{"no client certificate", strict, map[string]string{"ca.crt": strictCA}, "certificate required"},
		{"a client certificate", strict, map[string]string{"hosts.toml": `ca = ["ca.pem"]` + "\n" + `client = [["c.pem", "k.pem"]]`, "ca.pem": strictCA, "c.pem": cert, "k.pem": key}, ""},
		{"a client certificate in one file", strict, map[string]string{"hosts.toml": `ca = "ca.pem"` + "\n" + `client = "both.pem"`, "ca.pem": strictCA, "both.pem": cert + key}, ""},
		{"a client certificate in Docker's layout", strict, map[string]string{"ca.crt": strictCA, "c.cert": cert, "c.key": key}, ""},
		{"a key that is another's", strict, map[string]string{"ca.crt": strictCA, "c.cert": cert, "c.key": ca}, "no client certificate with its key"},
	} {
		t.Run(tt.what, func(t *testing.T) {
			s, h := openWithHosts(t)
			for name, text := range tt.files {
				h.put(t, tt.host+"/"+name, text)
			}
			_, err := s.Pull(t.Context(), tt.host+"/app:1", PullOptions{})
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("pull: %v; want %q", err, tt.want)
			}
			if tt.want != "" {
				checkEmpty(t, s)
			}
		})
	}
	t.Run("changed meanwhile", func(t *testing.T) {
		s, h := openWithHosts(t)
		if _, err := s.Pull(t.Context(), host+"/app:1", PullOptions{}); err == nil {
			t.Fatal("pulled without an authority")
		}
		h.put(t, host+"/hosts.toml", `ca = "ca.pem"`)
		h.put(t, host+"/ca.pem", ca)
		if _, err := s.Pull(t.Context(), host+"/app:1", PullOptions{}); err != nil {
			t.Fatal(err)
		}
		h.put(t, host+"/ca.pem", cert) // another authority, in the same file
		if _, err := s.Pull(t.Context(), host+"/app:1", PullOptions{}); err == nil || !strings.Contains(err.Error(), "is not trusted") {
			t.Errorf("with another authority: %v", err)
		}
		h.put(t, host+"/hosts.toml", "ca = 1\n")
		if _, err := s.Pull(t.Context(), host+"/app:1", PullOptions{}); !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "hosts.toml:1: ca") {
			t.Errorf("with a bad file: %v", err)
		}
	})
}

// TestHostsMirrors asks mirrors in order, each for what it may be asked for.
func TestHostsMirrors(t *testing.T) {
	l := build(t, layerOf(imagetest.File("a", "1")), layerOf(imagetest.File("b", "2")))
	var full, lacks, origin imagetest.Registry
	full.Add("app", l)
	origin.Add("app", l)
	var broken imagetest.Registry // has the manifest, and none of the blobs
	broken.Add("app", l)
	broken.Fault = func(w http.ResponseWriter, r *http.Request) bool {
		if strings.Contains(r.URL.Path, "/blobs/") {
			http.NotFound(w, r)
			return true
		}
		return false
	}
	down := httptest.NewServer(nil)
	down.Close()
	addr := map[string]string{"full": full.Serve(t), "lacks": lacks.Serve(t), "broken": broken.Serve(t), "origin": origin.Serve(t), "down": strings.TrimPrefix(down.URL, "http://")}
	for _, tt := range []struct {
		what, text string
		name       string
		asked      string // who gave it
		manifests  map[string]int
		want       *errs.Kind
	}{
		{"the first that has it", `[host."http://full"]` + "\n" + `[host."http://broken"]`, "reg.invalid", "full", map[string]int{"full": 1, "broken": 0}, nil},
		{"one is down, one lacks it", `[host."http://down"]` + "\n" + `[host."http://lacks"]` + "\n" + `[host."http://full"]`, "reg.invalid", "full", map[string]int{"lacks": 1, "full": 1}, nil},
		{"blobs come from elsewhere", `[host."http://broken"]` + "\n" + `[host."http://full"]`, "reg.invalid", "full", map[string]int{"broken": 1, "full": 0}, nil},
		{"one that may not resolve", `[host."http://full"]` + "\n" + `capabilities = ["pull"]`, "origin", "full", map[string]int{"full": 0, "origin": 1}, nil},
		{"the registry itself at last", `[host."http://lacks"]`, "origin", "origin", map[string]int{"lacks": 1, "origin": 1}, nil},
		{"no mirror has it", `server = "http://lacks"`, "reg.invalid", "", map[string]int{"lacks": 1}, errs.NotFound},
		{"nobody may say what a tag means", `capabilities = ["pull"]`, "origin", "", map[string]int{"origin": 0}, errs.Invalid},
	} {
		t.Run(tt.what, func(t *testing.T) {
			s, h := openWithHosts(t)
			text, name := tt.text, tt.name
			for who, a := range addr {
				text = strings.ReplaceAll(text, "http://"+who+`"`, "http://"+a+`"`)
			}
			if a := addr[name]; a != "" {
				name = a
			}
			h.put(t, name+"/hosts.toml", text)
			before := make(map[string]int)
			regs := map[string]*imagetest.Registry{"full": &full, "lacks": &lacks, "broken": &broken, "origin": &origin}
			for who, g := range regs {
				before[who] = len(g.Requests())
			}
			_, err := s.Pull(t.Context(), name+"/app:1", PullOptions{})
			if tt.want == nil && err != nil || tt.want != nil && !errors.Is(err, tt.want) {
				t.Fatalf("pull: %v", err)
			}
			for who, g := range regs {
				manifests, blobs := 0, 0
				for _, r := range g.Requests()[before[who]:] {
					if strings.Contains(r, "/manifests/") {
						manifests++
					} else if strings.Contains(r, "/blobs/") {
						blobs++
					}
				}
				if n, ok := tt.manifests[who]; ok && n != manifests {
					t.Errorf("%s was asked for %d manifests, not %d", who, manifests, n)
				}
				if (who == "full" || who == "origin") && (blobs > 0) != (who == tt.asked) {
					t.Errorf("%s was asked for %d blobs", who, blobs)
				}
			}
		})
	}
}

// TestHostsPath pulls from a mirror under another path, which wants a header and
// knows for whom it stands, and has nothing at /v2/.
func TestHostsPath(t *testing.T) {
	l := build(t, layerOf(imagetest.File("a", "1")))
	var g imagetest.Registry
	g.Add("team/app", l)
	var asked []string
	mirror := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.String())
		rest, ok := strings.CutPrefix(r.URL.Path, "/mirrors/oci")
		switch {
		case !ok || rest == "/":
			http.NotFound(w, r)
		case r.Header.Get("X-Node") != "one" || r.URL.Query().Get("ns") != "reg.invalid":
			http.Error(w, "who are you?", http.StatusForbidden)
		case r.Header.Get("Authorization") == "":
			w.Header().Set("WWW-Authenticate", `Basic realm="mirror"`)
			w.WriteHeader(http.StatusUnauthorized)
		default:
			if u, p, _ := r.BasicAuth(); u != "mirror" || p != "secret" {
				http.Error(w, "wrong", http.StatusForbidden)
				return
			}
			r.URL.Path = "/v2" + rest
			g.ServeHTTP(w, r)
		}
	}))
	defer mirror.Close()
	host := strings.TrimPrefix(mirror.URL, "http://")
	docker := t.TempDir()
	if err := os.WriteFile(docker+"/config.json", fmt.Appendf(nil, `{"auths":{%q:{"username":"mirror","password":"secret"}}}`, host), 0o600); err != nil {
		t.Fatal(err)
	}
	h := hosts(t.TempDir())
	s := open(t, t.TempDir(), func(c *config.Image) { c.HostsDirs, c.DockerConfig = []string{string(h)}, docker })
	h.put(t, "_default/hosts.toml", fmt.Sprintf("server = \"http://%s/mirrors/oci\"\noverride_path = true\n[header]\nx-node = \"one\"\n", host))
	// What is given with the pull is for the registry of the name, never for a mirror.
	given := &Auth{Username: "registry", Password: "own"}
	if _, err := s.Pull(t.Context(), "reg.invalid/team/app:1", PullOptions{Auth: given}); err != nil {
		t.Fatal(err, asked)
	}
	for _, a := range asked {
		if !strings.HasPrefix(a, "/mirrors/oci/team/app/") {
			t.Errorf("asked for %s", a)
		}
	}
}
