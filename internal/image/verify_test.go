package image

import (
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/orlop-io/orlop/internal/base/config"
	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/image/imagetest"
)

// TestSignedBy pulls images under a rule that wants them signed.
func TestSignedBy(t *testing.T) {
	right, wrong := imagetest.NewSigner(t), imagetest.NewSigner(t)
	l := build(t, layerOf(imagetest.File("a", "1")))
	other := build(t, layerOf(imagetest.File("a", "2")))
	d, od := l.Manifest.Digest, other.Manifest.Digest
	const sign = "https://sigstore.dev/cosign/sign/v1"
	for _, tt := range []struct {
		what string
		put  func(s *imagetest.Signatures, repo string)
		want string // of the refusal
		kind *errs.Kind
	}{
		{"by the right key", func(s *imagetest.Signatures, repo string) {
			p := right.Payload(d, repo)
			s.Tag(d, p, right.Sign(t, p))
		}, "", nil},
		{"by the right key, no referrers API", func(s *imagetest.Signatures, repo string) {
			s.NoReferrers = true
			p := right.Payload(d, repo)
			s.Tag(d, p, right.Sign(t, p))
		}, "", nil},
		{"by a wrong key", func(s *imagetest.Signatures, repo string) {
			p := wrong.Payload(d, repo)
			s.Tag(d, p, wrong.Sign(t, p))
		}, "none of the keys", nil},
		{"not at all", func(*imagetest.Signatures, string) {}, "it is not signed", nil},
		{"not at all, no referrers API", func(s *imagetest.Signatures, _ string) { s.NoReferrers = true }, "it is not signed", nil},
		{"another image's signature, moved over", func(s *imagetest.Signatures, repo string) {
			p := right.Payload(od, repo)
			s.Tag(d, p, right.Sign(t, p))
		}, "the signature of another image", nil},
		{"a changed payload", func(s *imagetest.Signatures, repo string) {
			p := right.Payload(od, repo)
			s.Tag(d, right.Payload(d, repo), right.Sign(t, p))
		}, "none of the keys", nil},
		{"a payload with other content than its digest", func(s *imagetest.Signatures, repo string) {
			p := right.Payload(d, repo)
			s.Tag(d, p, right.Sign(t, p))
			s.Content[digest.FromBytes(p)] = wrong.Payload(od, repo)
		}, "has the digest", nil},
		{"for another repository", func(s *imagetest.Signatures, _ string) {
			p := right.Payload(d, "elsewhere.example/app")
			s.Tag(d, p, right.Sign(t, p))
		}, "signed as elsewhere.example/app", nil},
		{"no JSON", func(s *imagetest.Signatures, _ string) {
			s.Put(nil)
			s.Tags["sha256-"+d.Encoded()+".sig"] = []byte("{")
		}, "malformed", nil},
		{"by a bundle", func(s *imagetest.Signatures, _ string) { s.Put(nil); s.Bundle(d, right, d, sign) }, "", nil},
		{"by a bundle, no referrers API", func(s *imagetest.Signatures, _ string) { s.NoReferrers = true; s.Put(nil); s.Bundle(d, right, d, sign) }, "", nil},
		{"by a bundle of another image", func(s *imagetest.Signatures, _ string) { s.Put(nil); s.Bundle(d, right, od, sign) }, "another image", nil},
		{"by a bundle of a wrong key", func(s *imagetest.Signatures, _ string) { s.Put(nil); s.Bundle(d, wrong, d, sign) }, "none of the keys", nil},
		{"by an attestation", func(s *imagetest.Signatures, _ string) {
			s.Put(nil)
			s.Bundle(d, right, d, "https://slsa.dev/provenance/v1")
		}, "no image signature", nil},
	} {
		t.Run(tt.what, func(t *testing.T) {
			sigs := &imagetest.Signatures{T: t}
			reg := imagetest.Registry{Fault: sigs.Serve}
			reg.Add("team/app", l)
			host := reg.Serve(t)
			tt.put(sigs, host+"/team/app")
			s := open(t, t.TempDir(), func(c *config.Image) {
				c.Policy.Rules = []config.PolicyRule{{Prefix: host + "/team", Action: "signedBy", Keys: []string{right.Public}}}
			})
			_, err := s.Pull(t.Context(), host+"/team/app:1", PullOptions{})
			if tt.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				if _, err := s.Use(t.Context(), host+"/team/app:1"); err != nil {
					t.Errorf("it may not be used: %v", err)
				}
				return
			}
			var refused *Refusal
			if !errors.As(err, &refused) || !errors.Is(err, errs.PermissionDenied) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("pull: %v; want a refusal that says %q", err, tt.want)
			}
			checkEmpty(t, s)
			for _, r := range reg.Requests() {
				if strings.Contains(r, l.Image.Layers[0].Digest.String()) || strings.Contains(r, l.Image.Config.Digest.String()) {
					t.Errorf("something of the image was fetched: %s", r)
				}
			}
		})
	}
}

// TestSignedIndex: a signature of the index is one for each of its images, and what
// is run is what was verified, whatever the registry says the next time.
func TestSignedIndex(t *testing.T) {
	right := imagetest.NewSigner(t)
	l := build(t, layerOf(imagetest.File("a", "1")))
	evil := build(t, layerOf(imagetest.File("a", "evil")))
	index, err := json.Marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{l.Manifest}})
	if err != nil {
		t.Fatal(err)
	}
	sigs := &imagetest.Signatures{T: t}
	top := sigs.Put(index).Digest
	var asked int
	reg := imagetest.Registry{}
	reg.Add("app", l)
	evilManifest, err := evil.Read(evil.Manifest.Digest)
	if err != nil {
		t.Fatal(err)
	}
	reg.Fault = func(w http.ResponseWriter, r *http.Request) bool {
		switch {
		case strings.HasSuffix(r.URL.Path, "/manifests/1"):
			w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
			if asked++; asked > 1 {
				w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
				w.Write(evilManifest)
				return true
			}
			w.Write(index)
			return true
		case strings.HasSuffix(r.URL.Path, "/manifests/"+l.Manifest.Digest.String()) && asked > 2:
			w.Write(evilManifest) // not what its digest says
			return true
		}
		return sigs.Serve(w, r)
	}
	host := reg.Serve(t)
	p := right.Payload(top, host+"/app")
	sigs.Tag(top, p, right.Sign(t, p))
	s := open(t, t.TempDir(), func(c *config.Image) {
		c.Policy.Rules = []config.PolicyRule{{Prefix: host, Action: "signedBy", Keys: []string{right.Public}}}
	})
	img, err := s.Pull(t.Context(), host+"/app:1", PullOptions{})
	if err != nil || img.Manifest != l.Manifest.Digest {
		t.Fatalf("%v, %v", img.Manifest, err)
	}
	var refused *Refusal
	if _, err := s.Pull(t.Context(), host+"/app:1", PullOptions{}); !errors.As(err, &refused) {
		t.Errorf("another manifest the second time: %v", err)
	}
	if again, err := s.Use(t.Context(), host+"/app:1"); err != nil || again.ID != img.ID {
		t.Errorf("what was verified is no longer what is used: %v, %v", again.ID, err)
	}
	asked = 3
	if _, err := s.Pull(t.Context(), host+"/app@"+l.Manifest.Digest.String(), PullOptions{}); !errors.Is(err, errs.Corrupt) {
		t.Errorf("another manifest behind a digest: %v", err)
	}
}

// TestPolicyChange: what is here already must be allowed by the policy of today.
func TestPolicyChange(t *testing.T) {
	first, second := imagetest.NewSigner(t), imagetest.NewSigner(t)
	l := build(t, layerOf(imagetest.File("a", "1")))
	sigs := &imagetest.Signatures{T: t}
	reg := imagetest.Registry{Fault: sigs.Serve}
	reg.Add("app", l)
	host := reg.Serve(t)
	name := host + "/app:1"
	dir := t.TempDir()
	with := func(rules ...config.PolicyRule) func(*config.Image) {
		return func(c *config.Image) { c.Policy.Rules = rules }
	}
	rule := func(action string, keys ...string) config.PolicyRule {
		return config.PolicyRule{Prefix: host, Action: action, Keys: keys}
	}
	step := func(what string, rules []config.PolicyRule, do func(t *testing.T, s *Store)) {
		t.Helper()
		if !t.Run(what, func(t *testing.T) { do(t, open(t, dir, with(rules...))) }) {
			t.FailNow()
		}
	}
	mustPull := func(t *testing.T, s *Store) Image {
		t.Helper()
		img, err := s.Pull(t.Context(), name, PullOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return img
	}
	var id string
	step("no policy", nil, func(t *testing.T, s *Store) {
		id = mustPull(t, s).ID.String()
		if _, err := s.Use(t.Context(), name); err != nil {
			t.Error(err)
		}
	})
	step("signatures are wanted", []config.PolicyRule{rule("signedBy", first.Public)}, func(t *testing.T, s *Store) {
		// Asked for by name it must be pulled again; the ID says nothing of whence.
		if _, err := s.Use(t.Context(), name); !errors.Is(err, errs.NotFound) {
			t.Errorf("by name: %v", err)
		}
		var refused *Refusal
		if _, err := s.Use(t.Context(), id); !errors.As(err, &refused) {
			t.Errorf("by ID: %v", err)
		}
		if _, err := s.Resolve(t.Context(), name); err != nil {
			t.Errorf("it is not even here: %v", err)
		}
		if _, err := s.Pull(t.Context(), name, PullOptions{}); !errors.As(err, &refused) {
			t.Errorf("pulled unsigned: %v", err)
		}
		p := first.Payload(l.Manifest.Digest, host+"/app")
		sigs.Tag(l.Manifest.Digest, p, first.Sign(t, p))
		mustPull(t, s)
		for _, ref := range []string{name, id} {
			if _, err := s.Use(t.Context(), ref); err != nil {
				t.Error(err)
			}
		}
		// A name that was given here is not what was signed.
		if err := s.Tag(t.Context(), name, host+"/other:1"); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Use(t.Context(), host+"/other:1"); !errors.Is(err, errs.NotFound) {
			t.Errorf("by a given name: %v", err)
		}
	})
	step("after a restart", []config.PolicyRule{rule("signedBy", second.Public, first.Public)}, func(t *testing.T, s *Store) {
		if _, err := s.Use(t.Context(), name); err != nil {
			t.Error(err)
		}
	})
	step("another key", []config.PolicyRule{rule("signedBy", second.Public)}, func(t *testing.T, s *Store) {
		if _, err := s.Use(t.Context(), name); !errors.Is(err, errs.NotFound) || !strings.Contains(err.Error(), "another key") {
			t.Errorf("%v", err)
		}
	})
	step("rejected", []config.PolicyRule{rule("reject")}, func(t *testing.T, s *Store) {
		before := len(reg.Requests())
		var refused *Refusal
		if _, err := s.Use(t.Context(), name); !errors.As(err, &refused) || errors.Is(err, errs.NotFound) {
			t.Errorf("use: %v", err)
		}
		if _, err := s.Pull(t.Context(), name, PullOptions{}); !errors.As(err, &refused) {
			t.Errorf("pull: %v", err)
		}
		if n := len(reg.Requests()); n > before {
			t.Errorf("the registry was asked %d times", n-before)
		}
	})
}

// TestSignatureMirror: a mirror with signatures of yesterday is passed over.
func TestSignatureMirror(t *testing.T) {
	right := imagetest.NewSigner(t)
	l := build(t, layerOf(imagetest.File("a", "1")))
	var regs [2]imagetest.Registry
	var sigs [2]imagetest.Signatures
	var at [2]string
	for i := range regs {
		sigs[i].T = t
		regs[i].Fault = sigs[i].Serve
		regs[i].Add("app", l)
		at[i] = regs[i].Serve(t)
	}
	p := right.Payload(l.Manifest.Digest, at[1]+"/app")
	sigs[1].Tag(l.Manifest.Digest, p, right.Sign(t, p))
	s := open(t, t.TempDir(), func(c *config.Image) {
		c.Registries = []config.Registry{{Host: at[1], Mirrors: []string{at[0]}}}
		c.Policy.Rules = []config.PolicyRule{{Prefix: at[1], Action: "signedBy", Keys: []string{right.Public}}}
	})
	if _, err := s.Pull(t.Context(), at[1]+"/app:1", PullOptions{}); err != nil {
		t.Error(err)
	}
}
