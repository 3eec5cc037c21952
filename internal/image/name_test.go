package image

import (
	"errors"
	"strings"
	"testing"

	"github.com/orlop-io/orlop/internal/base/errs"
)

func TestParseName(t *testing.T) {
	d := "sha256:" + strings.Repeat("a", 64)
	for in, want := range map[string]string{
		"busybox":                              "docker.io/library/busybox:latest",
		"busybox:1.37":                         "docker.io/library/busybox:1.37",
		"a/b":                                  "docker.io/a/b:latest",
		"docker.io/busybox":                    "docker.io/library/busybox:latest",
		"index.docker.io/library/x:1":          "docker.io/library/x:1",
		"localhost/notes:1":                    "localhost/notes:1",
		"localhost:5000/a/b":                   "localhost:5000/a/b:latest",
		"ghcr.io/A":                            "",
		"GHCR.io/a":                            "ghcr.io/a:latest",
		"ghcr.io/a/b@" + d:                     "ghcr.io/a/b@" + d,
		"ghcr.io/a/b:1@" + d:                   "ghcr.io/a/b:1@" + d,
		"[::1]:5000/a":                         "[::1]:5000/a:latest",
		"a__b/c-d.e_f:T_1.2-3":                 "docker.io/a__b/c-d.e_f:T_1.2-3",
		"":                                     "",
		"a:":                                   "",
		"a:b:c":                                "",
		"/a":                                   "",
		"a//b":                                 "",
		"a/":                                   "",
		"a@sha256:short":                       "",
		"a@sha512:" + strings.Repeat("a", 128): "",
		"a@short":                              "",
		"a@":                                   "",
		"../../etc":                            "",
		"ghcr.io/../x":                         "",
		"a b":                                  "",
		"host:99999999/a":                      "",
		"a:" + strings.Repeat("t", 129):        "",
		strings.Repeat("a", 300):               "",
		strings.Repeat("a", 64):                "",
	} {
		n, err := ParseName(in)
		if want == "" {
			if !errors.Is(err, errs.Invalid) {
				t.Errorf("%q: %v, %v; want an error", in, n, err)
			}
			continue
		}
		if err != nil || n.String() != want {
			t.Errorf("%q: %v, %v; want %s", in, n, err, want)
			continue
		}
		if again, err := ParseName(n.String()); err != nil || again != n {
			t.Errorf("%q: not the same when read again: %v, %v", in, again, err)
		}
	}
}

func TestPlatform(t *testing.T) {
	for _, c := range []struct {
		want, is string
		fits     bool
	}{
		{"linux/amd64", "linux/amd64", true},
		{"amd64", "linux/amd64", true},
		{"linux/x86_64", "linux/amd64", true},
		{"linux/amd64", "linux/amd64/v3", false},
		{"linux/arm64", "linux/arm64/v8", true},
		{"linux/arm/v7", "linux/arm/v6", true},
		{"linux/arm/v6", "linux/arm/v7", false},
		{"linux/amd64", "windows/amd64", false},
		{"linux/amd64", "linux/arm64", false},
	} {
		p, err := parsePlatform(c.want)
		if err != nil {
			t.Fatal(err)
		}
		q, err := parsePlatform(c.is)
		if err != nil {
			t.Fatal(err)
		}
		if (p.fits(q) > 0) != c.fits {
			t.Errorf("%s on %s: %v", c.is, c.want, !c.fits)
		}
	}
	for _, bad := range []string{"a/b/c/d", "linux/", "/amd64"} {
		if _, err := parsePlatform(bad); !errors.Is(err, errs.Invalid) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// FuzzParseName: what is read is the same when written and read again, and makes no
// path that leaves its place.
func FuzzParseName(f *testing.F) {
	f.Add("docker.io/library/busybox:latest")
	f.Add("localhost:5000/a/b@sha256:" + strings.Repeat("0", 64))
	f.Fuzz(func(t *testing.T, s string) {
		n, err := ParseName(s)
		if err != nil {
			return
		}
		again, err := ParseName(n.String())
		if err != nil || again != n {
			t.Errorf("%q: %+v, then %+v, %v", s, n, again, err)
		}
		if strings.Contains(n.Repository, "..") || strings.Contains(n.Repository, "//") {
			t.Errorf("%q: repository %q", s, n.Repository)
		}
	})
}

// FuzzManifest: no document of a registry makes us panic, and what passes keeps to
// the limits.
func FuzzManifest(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{"digest":"sha256:`+strings.Repeat("0", 64)+`","size":1},"layers":[]}`), "")
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"platform":{"os":"linux","architecture":"amd64"}}]}`), "application/vnd.oci.image.index.v1+json")
	f.Fuzz(func(t *testing.T, data []byte, mediaType string) {
		d, err := parseDocument(data, mediaType)
		if err != nil {
			return
		}
		want, _ := parsePlatform("linux/amd64")
		if d.isIndex {
			if m, err := choose(&d.index, want); err == nil && m.Digest.Validate() != nil {
				t.Errorf("chose %+v", m)
			}
			return
		}
		for _, l := range d.manifest.Layers {
			if l.Digest.Validate() != nil || l.Size < 0 {
				t.Errorf("layer %+v", l)
			}
		}
		_, _ = parseConfig(data, &d.manifest, want)
	})
}
