package imagetest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Signer signs as cosign does.
type Signer struct {
	key    *ecdsa.PrivateKey
	Public string // key, in PEM
}

// NewSigner makes a key.
func NewSigner(t testing.TB) Signer {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKIXPublicKey(k.Public())
	if err != nil {
		t.Fatal(err)
	}
	return Signer{k, string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))}
}

// Sign returns the signature of b.
func (s Signer) Sign(t testing.TB, b []byte) []byte {
	t.Helper()
	sum := sha256.Sum256(b)
	sig, err := ecdsa.SignASN1(rand.Reader, s.key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	return sig
}

// Payload is what is signed of an image: its digest, and the name it is signed as.
func (s Signer) Payload(d digest.Digest, as string) []byte {
	return fmt.Appendf(nil, `{"critical":{"identity":{"docker-reference":%q},"image":{"docker-manifest-digest":%q},"type":"cosign container image signature"},"optional":null}`, as, d)
}

// Signatures are a registry's signature manifests: by tag, and by what they refer to.
type Signatures struct {
	T  testing.TB
	mu sync.Mutex
	// Tags and lists are answered under the repository's manifests and referrers;
	// Content is by digest.
	Tags, lists map[string][]byte
	Content     map[digest.Digest][]byte
	NoReferrers bool // the registry does not know of that API
}

// Put adds content, which is found by its digest.
func (s *Signatures) Put(data []byte) ocispec.Descriptor {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := ocispec.Descriptor{Digest: digest.FromBytes(data), Size: int64(len(data))}
	if s.Content == nil {
		s.Content, s.Tags, s.lists = make(map[digest.Digest][]byte), make(map[string][]byte), make(map[string][]byte)
	}
	s.Content[d.Digest] = data
	return d
}

func (s *Signatures) manifest(layers ...ocispec.Descriptor) []byte {
	data, err := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Layers: layers,
		Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromString("{}"), Size: 2},
	})
	if err != nil {
		s.T.Fatal(err)
	}
	return data
}

// Tag puts a payload with its signature behind the tag for the digest.
func (s *Signatures) Tag(of digest.Digest, payload, signature []byte) {
	l := s.Put(payload)
	l.MediaType = "application/vnd.dev.cosign.simplesigning.v1+json"
	l.Annotations = map[string]string{"dev.cosignproject.cosign/signature": base64.StdEncoding.EncodeToString(signature)}
	m := s.manifest(l)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.Tags["sha256-"+of.Encoded()+".sig"] = m
}

// Bundle puts sigstore's bundle among what refers to the digest.
func (s *Signatures) Bundle(of digest.Digest, by Signer, subject digest.Digest, predicate string) {
	st := fmt.Appendf(nil, `{"_type":"https://in-toto.io/Statement/v1","subject":[{"digest":{"sha256":%q}}],"predicateType":%q,"predicate":{}}`, subject.Encoded(), predicate)
	const kind = "application/vnd.in-toto+json"
	b, err := json.Marshal(map[string]any{"dsseEnvelope": map[string]any{
		"payload": st, "payloadType": kind, "signatures": []any{map[string]any{"sig": by.Sign(s.T, fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(kind), kind, len(st), st))}},
	}})
	if err != nil {
		s.T.Fatal(err)
	}
	l := s.Put(b)
	l.MediaType = "application/vnd.dev.sigstore.bundle.v0.3+json"
	m := s.Put(s.manifest(l))
	m.MediaType, m.ArtifactType = ocispec.MediaTypeImageManifest, l.MediaType
	list, err := json.Marshal(ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{m}})
	if err != nil {
		s.T.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lists[of.String()] = list
}

// Serve, as a Registry's Fault, answers for what it has.
func (s *Signatures) Serve(w http.ResponseWriter, r *http.Request) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := strings.LastIndexByte(r.URL.Path, '/')
	ref := r.URL.Path[i+1:]
	switch {
	case strings.HasSuffix(r.URL.Path[:i], "/referrers"):
		if s.NoReferrers {
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
		data, ok := s.Tags[ref]
		if !ok && s.NoReferrers {
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
	if data, ok := s.Content[digest.Digest(ref)]; ok {
		w.Write(data)
		return true
	}
	return false
}
