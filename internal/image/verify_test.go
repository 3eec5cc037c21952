package image

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/orlop-io/orlop/internal/base/config"
	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/image/imagetest"
	"github.com/orlop-io/orlop/internal/image/policy"
)

// signer signs as cosign does.
type signer struct {
	key    *ecdsa.PrivateKey
	public string
}

func newSigner(t testing.TB) signer {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(k.Public())
	if err != nil {
		t.Fatal(err)
	}
	return signer{k, string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))}
}

func (s signer) sign(t testing.TB, b []byte) []byte {
	t.Helper()
	sum := sha256.Sum256(b)
	sig, err := ecdsa.SignASN1(rand.Reader, s.key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	return sig
}

func (s signer) payload(d digest.Digest, as string) []byte {
	return fmt.Appendf(nil, `{"critical":{"identity":{"docker-reference":%q},"image":{"docker-manifest-digest":%q},"type":"cosign container image signature"},"optional":null}`, as, d)
}

// signatureSet is a registry's signature manifests: by tag, and by what they refer to.
type signatureSet struct {
	t  testing.TB
	mu sync.Mutex
	// tags and lists are answered under the repository's manifests and referrers;
	// content is by digest.
	tags, lists map[string][]byte
	content     map[digest.Digest][]byte
	noReferrers bool
}

func (s *signatureSet) put(data []byte) ocispec.Descriptor {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := ocispec.Descriptor{Digest: digest.FromBytes(data), Size: int64(len(data))}
	if s.content == nil {
		s.content, s.tags, s.lists = make(map[digest.Digest][]byte), make(map[string][]byte), make(map[string][]byte)
	}
	s.content[d.Digest] = data
	return d
}

func (s *signatureSet) manifest(layers ...ocispec.Descriptor) []byte {
	data, err := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Layers: layers,
		Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromString("{}"), Size: 2},
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return data
}

// tag puts a payload with its signature behind the tag for the digest.
func (s *signatureSet) tag(of digest.Digest, payload, signature []byte) {
	l := s.put(payload)
	l.MediaType = policy.SimpleSigning
	l.Annotations = map[string]string{policy.SignatureAnnotation: base64.StdEncoding.EncodeToString(signature)}
	s.tags["sha256-"+of.Encoded()+".sig"] = s.manifest(l)
}

// bundle puts sigstore's bundle among what refers to the digest.
func (s *signatureSet) bundle(of digest.Digest, by signer, subject digest.Digest, predicate string) {
	st := fmt.Appendf(nil, `{"_type":"https://in-toto.io/Statement/v1","subject":[{"digest":{"sha256":%q}}],"predicateType":%q,"predicate":{}}`, subject.Encoded(), predicate)
	const kind = "application/vnd.in-toto+json"
	b, err := json.Marshal(map[string]any{"dsseEnvelope": map[string]any{
		"payload": st, "payloadType": kind, "signatures": []any{map[string]any{"sig": by.sign(s.t, fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(kind), kind, len(st), st))}},
	}})
	if err != nil {
		s.t.Fatal(err)
	}
	l := s.put(b)
	l.MediaType = "application/vnd.dev.sigstore.bundle.v0.3+json"
	m := s.put(s.manifest(l))
	m.MediaType, m.ArtifactType = ocispec.MediaTypeImageManifest, l.MediaType
	list, err := json.Marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{m}})
	if err != nil {
		s.t.Fatal(err)
	}
	s.lists[of.String()] = list
}

// serve answers for what it has.
func (s *signatureSet) serve(w http.ResponseWriter, r *http.Request) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := strings.LastIndexByte(r.URL.Path, '/')
	ref := r.URL.Path[i+1:]
	switch {
	case strings.HasSuffix(r.URL.Path[:i], "/referrers"):
		if s.noReferrers {
			w.WriteHeader(http.StatusMethodNotAllowed)
			return true
		}
		data, ok := s.lists[ref]
		if !ok {
			data = []byte(`{"schemaVersion":2,"manifests":[]}`)
		}
		w.Write(data)
		return true
	case strings.HasSuffix(r.URL.Path[:i], "/manifests") && strings.HasPrefix(ref, "sha256-"):
		data, ok := s.tags[ref]
		if !ok && s.noReferrers {
			data, ok = s.lists[strings.Replace(ref, "-", ":", 1)]
		}
		if !ok {
			http.NotFound(w, r)
			return true
		}
		w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
		w.Write(data)
		return true
	}
	if data, ok := s.content[digest.Digest(ref)]; ok {
		w.Write(data)
		return true
	}
	return false
}

// TestSignedBy pulls images under a rule that wants them signed.
func TestSignedBy(t *testing.T) {
	right, wrong := newSigner(t), newSigner(t)
	l := build(t, layerOf(imagetest.File("a", "1")))
	other := build(t, layerOf(imagetest.File("a", "2")))
	d, od := l.Manifest.Digest, other.Manifest.Digest
	const sign = "https://sigstore.dev/cosign/sign/v1"
	for _, tt := range []struct {
		what string
		put  func(s *signatureSet, repo string)
		want string // of the refusal
		kind *errs.Kind
	}{
		{"by the right key", func(s *signatureSet, repo string) {
			p := right.payload(d, repo)
			s.tag(d, p, right.sign(t, p))
		}, "", nil},
		{"by the right key, no referrers API", func(s *signatureSet, repo string) {
			s.noReferrers = true
			p := right.payload(d, repo)
			s.tag(d, p, right.sign(t, p))
		}, "", nil},
		{"by a wrong key", func(s *signatureSet, repo string) {
			p := wrong.payload(d, repo)
			s.tag(d, p, wrong.sign(t, p))
		}, "none of the keys", nil},
		{"not at all", func(*signatureSet, string) {}, "it is not signed", nil},
		{"not at all, no referrers API", func(s *signatureSet, _ string) { s.noReferrers = true }, "it is not signed", nil},
		{"another image's signature, moved over", func(s *signatureSet, repo string) {
			p := right.payload(od, repo)
			s.tag(d, p, right.sign(t, p))
		}, "the signature of another image", nil},
		{"a changed payload", func(s *signatureSet, repo string) {
			p := right.payload(od, repo)
			s.tag(d, right.payload(d, repo), right.sign(t, p))
		}, "none of the keys", nil},
		{"a payload with other content than its digest", func(s *signatureSet, repo string) {
			p := right.payload(d, repo)
			s.tag(d, p, right.sign(t, p))
			s.content[digest.FromBytes(p)] = wrong.payload(od, repo)
		}, "has the digest", nil},
		{"for another repository", func(s *signatureSet, _ string) {
			p := right.payload(d, "elsewhere.example/app")
			s.tag(d, p, right.sign(t, p))
		}, "signed as elsewhere.example/app", nil},
		{"no JSON", func(s *signatureSet, _ string) { s.put(nil); s.tags["sha256-"+d.Encoded()+".sig"] = []byte("{") }, "malformed", nil},
		{"by a bundle", func(s *signatureSet, _ string) { s.put(nil); s.bundle(d, right, d, sign) }, "", nil},
		{"by a bundle, no referrers API", func(s *signatureSet, _ string) { s.noReferrers = true; s.put(nil); s.bundle(d, right, d, sign) }, "", nil},
		{"by a bundle of another image", func(s *signatureSet, _ string) { s.put(nil); s.bundle(d, right, od, sign) }, "another image", nil},
		{"by a bundle of a wrong key", func(s *signatureSet, _ string) { s.put(nil); s.bundle(d, wrong, d, sign) }, "none of the keys", nil},
		{"by an attestation", func(s *signatureSet, _ string) { s.put(nil); s.bundle(d, right, d, "https://slsa.dev/provenance/v1") }, "no image signature", nil},
	} {
		t.Run(tt.what, func(t *testing.T) {
			sigs := &signatureSet{t: t}
			reg := imagetest.Registry{Fault: sigs.serve}
			reg.Add("team/app", l)
			host := reg.Serve(t)
			tt.put(sigs, host+"/team/app")
			s := open(t, t.TempDir(), func(c *config.Image) {
				c.Policy.Rules = []config.PolicyRule{{Prefix: host + "/team", Action: "signedBy", Keys: []string{right.public}}}
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
	right := newSigner(t)
	l := build(t, layerOf(imagetest.File("a", "1")))
	evil := build(t, layerOf(imagetest.File("a", "evil")))
	index, err := json.Marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{l.Manifest}})
	if err != nil {
		t.Fatal(err)
	}
	sigs := &signatureSet{t: t}
	top := sigs.put(index).Digest
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
		return sigs.serve(w, r)
	}
	host := reg.Serve(t)
	p := right.payload(top, host+"/app")
	sigs.tag(top, p, right.sign(t, p))
	s := open(t, t.TempDir(), func(c *config.Image) {
		c.Policy.Rules = []config.PolicyRule{{Prefix: host, Action: "signedBy", Keys: []string{right.public}}}
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
	first, second := newSigner(t), newSigner(t)
	l := build(t, layerOf(imagetest.File("a", "1")))
	sigs := &signatureSet{t: t}
	reg := imagetest.Registry{Fault: sigs.serve}
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
	step("signatures are wanted", []config.PolicyRule{rule("signedBy", first.public)}, func(t *testing.T, s *Store) {
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
		p := first.payload(l.Manifest.Digest, host+"/app")
		sigs.tag(l.Manifest.Digest, p, first.sign(t, p))
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
	step("after a restart", []config.PolicyRule{rule("signedBy", second.public, first.public)}, func(t *testing.T, s *Store) {
		if _, err := s.Use(t.Context(), name); err != nil {
			t.Error(err)
		}
	})
	step("another key", []config.PolicyRule{rule("signedBy", second.public)}, func(t *testing.T, s *Store) {
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
	right := newSigner(t)
	l := build(t, layerOf(imagetest.File("a", "1")))
	var regs [2]imagetest.Registry
	var sigs [2]signatureSet
	var at [2]string
	for i := range regs {
		sigs[i].t = t
		regs[i].Fault = sigs[i].serve
		regs[i].Add("app", l)
		at[i] = regs[i].Serve(t)
	}
	p := right.payload(l.Manifest.Digest, at[1]+"/app")
	sigs[1].tag(l.Manifest.Digest, p, right.sign(t, p))
	s := open(t, t.TempDir(), func(c *config.Image) {
		c.Registries = []config.Registry{{Host: at[1], Mirrors: []string{at[0]}}}
		c.Policy.Rules = []config.PolicyRule{{Prefix: at[1], Action: "signedBy", Keys: []string{right.public}}}
	})
	if _, err := s.Pull(t.Context(), at[1]+"/app:1", PullOptions{}); err != nil {
		t.Error(err)
	}
}
