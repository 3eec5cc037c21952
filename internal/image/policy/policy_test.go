package policy

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/orlop-io/orlop/internal/base/config"
	"github.com/orlop-io/orlop/internal/base/errs"
)

func publicPEM(t testing.TB, public crypto.PublicKey) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

func signed(t testing.TB, keys ...string) Rule {
	t.Helper()
	p, err := New(config.ImagePolicy{Rules: []config.PolicyRule{{Prefix: "reg.example/team", Action: "signedBy", Keys: keys}}})
	if err != nil {
		t.Fatal(err)
	}
	return p.Rule("reg.example/team/app")
}

func payload(d digest.Digest, as string) []byte {
	return fmt.Appendf(nil, `{"critical":{"identity":{"docker-reference":%q},"image":{"docker-manifest-digest":%q},"type":%q},"optional":null}`, as, d, simpleType)
}

// Every kind of key that sigstore's tools sign with, by the standard library's own
// signers.
func TestKeys(t *testing.T) {
	curves := map[string]elliptic.Curve{"P-256": elliptic.P256(), "P-384": elliptic.P384(), "P-521": elliptic.P521()}
	sign := make(map[string]func([]byte) []byte)
	public := make(map[string]crypto.PublicKey)
	ec := func(name string, c elliptic.Curve, sum func([]byte) []byte) {
		k, err := ecdsa.GenerateKey(c, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		public[name] = k.Public()
		sign[name] = func(b []byte) []byte {
			sig, err := ecdsa.SignASN1(rand.Reader, k, sum(b))
			if err != nil {
				t.Fatal(err)
			}
			return sig
		}
	}
	for name, c := range curves {
		ec(name, c, func(b []byte) []byte { s := sha256.Sum256(b); return s[:] })
	}
	ec("P-384 with SHA-384", elliptic.P384(), func(b []byte) []byte { s := sha512.Sum384(b); return s[:] })
	ec("P-521 with SHA-512", elliptic.P521(), func(b []byte) []byte { s := sha512.Sum512(b); return s[:] })
	rk, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	public["RSA"] = rk.Public()
	sign["RSA"] = func(b []byte) []byte {
		s := sha256.Sum256(b)
		sig, err := rsa.SignPKCS1v15(rand.Reader, rk, crypto.SHA256, s[:])
		if err != nil {
			t.Fatal(err)
		}
		return sig
	}
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public["Ed25519"] = pub
	sign["Ed25519"] = func(b []byte) []byte { return ed25519.Sign(priv, b) }

	d := digest.FromString("image")
	for name := range sign {
		r := signed(t, publicPEM(t, public[name]))
		p := payload(d, "reg.example/team/app")
		sig := sign[name](p)
		s, err := r.Simple(p, base64.StdEncoding.EncodeToString(sig), d)
		if err != nil || s.Key != r.Keys[0].Fingerprint || s.As != "reg.example/team/app" {
			t.Errorf("%s: %+v, %v", name, s, err)
		}
		sig[len(sig)/2] ^= 1
		if _, err := r.Simple(p, base64.StdEncoding.EncodeToString(sig), d); err == nil {
			t.Errorf("%s: a changed signature is taken", name)
		}
		sig[len(sig)/2] ^= 1
		p[len(p)-3] ^= 1
		if _, err := r.Simple(p, base64.StdEncoding.EncodeToString(sig), d); err == nil {
			t.Errorf("%s: a changed payload is taken", name)
		}
	}
	other := signed(t, publicPEM(t, public["P-384"]), publicPEM(t, public["RSA"]))
	p := payload(d, "x")
	if _, err := other.Simple(p, base64.StdEncoding.EncodeToString(sign["P-256"](p)), d); err == nil || !strings.Contains(err.Error(), "none of the keys") {
		t.Errorf("another key's: %v", err)
	}
}

func TestBundle(t *testing.T) {
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	r := signed(t, publicPEM(t, pub))
	d := digest.FromString("image")
	bundle := func(predicate, payloadType, subject string) []byte {
		st := fmt.Appendf(nil, `{"_type":"https://in-toto.io/Statement/v1","subject":[{"digest":{"sha256":%q}}],"predicateType":%q,"predicate":{}}`, subject, predicate)
		b, err := json.Marshal(map[string]any{"mediaType": BundlePrefix + ".v0.3+json", "dsseEnvelope": map[string]any{
			"payload": st, "payloadType": payloadType, "signatures": []any{map[string]any{"sig": ed25519.Sign(priv, preAuth(payloadType, st))}},
		}})
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	if s, err := r.Bundle(bundle(signPredicate, statementType, d.Encoded()), d); err != nil || s.As != "" || s.Key == "" {
		t.Errorf("%+v, %v", s, err)
	}
	for what, b := range map[string][]byte{
		"an attestation, no signature": bundle("https://slsa.dev/provenance/v1", statementType, d.Encoded()),
		"another image's":              bundle(signPredicate, statementType, digest.FromString("other").Encoded()),
		"no statement":                 bundle(signPredicate, "text/plain", d.Encoded()),
		"no envelope":                  []byte(`{"messageSignature":{}}`),
		"no signature":                 []byte(`{"dsseEnvelope":{"payloadType":"application/vnd.in-toto+json","payload":"e30="}}`),
		"no JSON":                      []byte(`{`),
	} {
		if _, err := r.Bundle(b, d); err == nil {
			t.Errorf("%s is taken", what)
		}
	}
	// The encoding's own example (DSSE, protocol.md).
	if got := string(preAuth("http://example.com/HelloWorld", []byte("hello world"))); got != "DSSEv1 29 http://example.com/HelloWorld 11 hello world" {
		t.Errorf("encoding %q", got)
	}
}

func TestRule(t *testing.T) {
	p, err := New(config.ImagePolicy{Default: "reject", Rules: []config.PolicyRule{
		{Prefix: "reg.example", Action: "accept"}, {Prefix: "reg.example/team/", Action: "reject"}, {Prefix: "Reg.Example:443/team/app", Action: "accept"},
		{Prefix: "registry-1.docker.io", Action: "accept"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	for repo, want := range map[string]string{
		"reg.example/x": "reg.example", "reg.example/team/x": "reg.example/team", "reg.example/team": "reg.example/team", "reg.example/teams/x": "reg.example",
		"reg.example/team/app": "reg.example/team/app", "reg.example/team/app/x": "reg.example/team/app", "reg.example.org/x": "", "reg.example:5000/x": "", "reg.example:443/team/x": "reg.example/team", "hub.example/x": "", "index.docker.io/library/x": "docker.io",
	} {
		if r := p.Rule(repo); r.Prefix != want || want == "" && r.Action != Reject {
			t.Errorf("%s: the rule for %q, not %q", repo, r.Prefix, want)
		}
	}
}

// What a signature names must be what is asked for, by the rule.
func TestSatisfied(t *testing.T) {
	pub, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	r := signed(t, publicPEM(t, pub))
	parse := func(s string) (Name, error) {
		n := Name{Repository: s}
		if i := strings.LastIndexByte(s, ':'); i > strings.LastIndexByte(s, '/') {
			n.Repository, n.Tag = s[:i], s[i+1:]
		}
		return n, nil
	}
	for _, tt := range []struct {
		as, signedAs, tag string
		good              bool
	}{
		{"reg.example/team/app", "", "1", true},
		{"reg.example/team/app:1", "", "1", true},
		{"reg.example/team/app:2", "", "1", false},
		{"reg.example/team/app:2", "", "", true}, // asked for by digest
		{"reg.example/team/other", "", "1", false},
		{"upstream.example/apps/app", "", "1", false},
		{"upstream.example/apps/app", "upstream.example/apps", "1", true},
		{"upstream.example/apps/other", "upstream.example/apps", "1", false},
		{"reg.example/team/app", "upstream.example/apps", "1", false},
		{"anything", "*", "1", true},
		{"", "", "1", true}, // a bundle names none
	} {
		r.SignedAs = tt.signedAs
		err := r.Satisfied(Name{Repository: "reg.example/team/app", Tag: tt.tag}, []Signed{{Key: r.Keys[0].Fingerprint, As: tt.as}}, parse)
		if (err == nil) != tt.good {
			t.Errorf("%+v: %v", tt, err)
		}
	}
	if err := r.Satisfied(Name{}, []Signed{{Key: "sha256:other"}}, parse); err == nil {
		t.Error("another key satisfies")
	}
}

func TestNew(t *testing.T) {
	dir := t.TempDir()
	pub, priv, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	small, err := x509.MarshalPKIXPublicKey(mustRSA(t, 1024))
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(priv)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "two.pub")
	if err := os.WriteFile(file, []byte(publicPEM(t, pub)+publicPEM(t, mustRSA(t, 2048))), 0o600); err != nil {
		t.Fatal(err)
	}
	if r := signed(t, file); len(r.Keys) != 2 || r.Keys[0].Fingerprint == r.Keys[1].Fingerprint {
		t.Errorf("%+v", r.Keys)
	}
	for key, want := range map[string]string{
		filepath.Join(dir, "missing"):                                               "no such file",
		string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: small})):    "1024 bits",
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})): "public keys are wanted",
		"-----BEGIN PUBLIC KEY-----":                                                "no public key",
	} {
		_, err := New(config.ImagePolicy{Rules: []config.PolicyRule{{Prefix: "a", Action: "signedBy", Keys: []string{key}}}})
		if !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "rules[0]") {
			t.Errorf("%q: %v", key, err)
		}
	}
	if _, err := New(config.ImagePolicy{Rules: []config.PolicyRule{{Prefix: "a", Action: "accept"}, {Prefix: "a/", Action: "reject"}}}); err == nil {
		t.Error("two rules for one prefix")
	}
}

func mustRSA(t testing.TB, bits int) crypto.PublicKey {
	t.Helper()
	t.Setenv("GODEBUG", "rsa1024min=0")
	k, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return k.Public()
}

func FuzzSignatures(f *testing.F) {
	pub, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	r := signed(f, publicPEM(f, pub))
	d := digest.FromString("image")
	f.Add(payload(d, "a"), "AAAA")
	f.Add([]byte(`{"dsseEnvelope":{"payloadType":"application/vnd.in-toto+json","payload":"e30=","signatures":[{"sig":"AAAA"}]}}`), "")
	f.Fuzz(func(t *testing.T, data []byte, sig string) {
		if _, err := r.Simple(data, sig, d); err == nil {
			t.Fatal("taken")
		}
		if _, err := r.Bundle(data, d); err == nil {
			t.Fatal("taken")
		}
	})
}
