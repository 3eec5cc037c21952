package policy

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/orlop-io/orlop/internal/base/errs"
)

// What signatures are in registries as.
const (
	// SimpleSigning is a layer whose content is a payload and whose annotation
	// SignatureAnnotation is the signature.
	SimpleSigning = "application/vnd.dev.cosign.simplesigning.v1+json"
	// SignatureAnnotation has the signature in base64.
	SignatureAnnotation = "dev.cosignproject.cosign/signature"
	// BundlePrefix begins the media types of sigstore's bundle, which end in a version.
	BundlePrefix = "application/vnd.dev.sigstore.bundle"
)

// Types of what is signed.
const (
	simpleType    = "cosign container image signature"
	statementType = "application/vnd.in-toto+json"
	signPredicate = "https://sigstore.dev/cosign/sign/v1"
)

// Signed is a signature that is right.
type Signed struct {
	// Key is the fingerprint of the key.
	Key string
	// As is the image name that was signed; "" where the form has none.
	As string `json:",omitempty"`
}

// Simple verifies a payload of simple signing with the keys of the rule, and that it
// is for the digest.
func (r Rule) Simple(payload []byte, signature string, d digest.Digest) (Signed, error) {
	raw, err := base64.StdEncoding.DecodeString(signature)
	if err != nil {
		return Signed{}, fmt.Errorf("the signature is not base64: %w", err)
	}
	key, err := r.verified(payload, raw)
	if err != nil {
		return Signed{}, err
	}
	var p struct {
		Critical struct {
			Identity struct {
				Reference string `json:"docker-reference"`
			} `json:"identity"`
			Image struct {
				Digest string `json:"docker-manifest-digest"`
			} `json:"image"`
			Type string `json:"type"`
		} `json:"critical"`
	}
	if err := json.Unmarshal(payload, &p); err != nil {
		return Signed{}, fmt.Errorf("what is signed is no JSON: %w", err)
	}
	c := p.Critical
	if c.Type != simpleType {
		return Signed{}, fmt.Errorf("what is signed is a %q, no %s", c.Type, simpleType)
	}
	if c.Image.Digest != d.String() {
		return Signed{}, fmt.Errorf("it is the signature of another image, %s", c.Image.Digest)
	}
	if c.Identity.Reference == "" {
		return Signed{}, fmt.Errorf("what is signed names no repository")
	}
	return Signed{Key: key, As: c.Identity.Reference}, nil
}

// Bundle verifies sigstore's bundle with the keys of the rule, and that it is an
// image signature (not an attestation of something else about it) for the digest.
// Entries of transparency logs are not looked at: the keys are known beforehand.
func (r Rule) Bundle(data []byte, d digest.Digest) (Signed, error) {
	var b struct {
		Envelope *struct {
			Payload    []byte `json:"payload"`
			Type       string `json:"payloadType"`
			Signatures []struct {
				Sig []byte `json:"sig"`
			} `json:"signatures"`
		} `json:"dsseEnvelope"`
	}
	if err := json.Unmarshal(data, &b); err != nil {
		return Signed{}, fmt.Errorf("the bundle is malformed: %w", err)
	}
	e := b.Envelope
	if e == nil || e.Type != statementType {
		return Signed{}, fmt.Errorf("the bundle has no in-toto statement")
	}
	var key string
	err := fmt.Errorf("the bundle has no signature")
	for _, s := range e.Signatures {
		if key, err = r.verified(preAuth(e.Type, e.Payload), s.Sig); err == nil {
			break
		}
	}
	if err != nil {
		return Signed{}, err
	}
	var st struct {
		Subject []struct {
			Digest map[string]string `json:"digest"`
		} `json:"subject"`
		PredicateType string `json:"predicateType"`
	}
	if err := json.Unmarshal(e.Payload, &st); err != nil {
		return Signed{}, fmt.Errorf("what is signed is no JSON: %w", err)
	}
	if st.PredicateType != signPredicate {
		return Signed{}, fmt.Errorf("what is signed is a %q, no image signature", st.PredicateType)
	}
	for _, s := range st.Subject {
		if s.Digest["sha256"] == d.Encoded() {
			return Signed{Key: key}, nil
		}
	}
	return Signed{}, fmt.Errorf("it is the signature of another image")
}

// preAuth is what is signed of an envelope (DSSE, Pre-Authentication Encoding).
func preAuth(payloadType string, payload []byte) []byte {
	return fmt.Appendf(nil, "DSSEv1 %d %s %d %s", len(payloadType), payloadType, len(payload), payload)
}

// verified returns the fingerprint of the key that has made the signature.
func (r Rule) verified(message, signature []byte) (string, error) {
	for _, k := range r.Keys {
		if verify(k.public, message, signature) {
			return k.Fingerprint, nil
		}
	}
	return "", fmt.Errorf("it is made by none of the keys")
}

// Name is an image name as the rules see it.
type Name struct {
	Repository string // host/path
	Tag        string // "" where the name has none
	Digest     digest.Digest
}

// Satisfied tells whether one of the signatures meets the rule for the image of
// that name. parse reads the names that were signed.
func (r Rule) Satisfied(n Name, all []Signed, parse func(string) (Name, error)) error {
	var why []string
	for _, s := range all {
		err := r.meets(n, s, parse)
		if err == nil {
			return nil
		}
		if !slices.Contains(why, err.Error()) {
			why = append(why, err.Error())
		}
	}
	return errs.New(errs.PermissionDenied, "%s", strings.Join(why, "; "))
}

func (r Rule) meets(n Name, s Signed, parse func(string) (Name, error)) error {
	if !r.Key(s.Key) {
		return fmt.Errorf("it is signed by another key")
	}
	if s.As == "" || r.SignedAs == "*" {
		return nil
	}
	as, err := parse(s.As)
	if err != nil {
		return fmt.Errorf("it is signed as %q, which is no image name", s.As)
	}
	want := normal(n.Repository)
	if r.SignedAs != "" {
		want = normal(r.SignedAs) + strings.TrimPrefix(want, r.Prefix)
	}
	if normal(as.Repository) != want {
		return fmt.Errorf("it is signed as %s, not as %s (signedAs in image.policy allows that)", as.Repository, want)
	}
	// A tag that was signed binds whoever asks by a tag, as with containers-policy.json.
	if strings.HasSuffix(s.As, ":"+as.Tag) && n.Tag != "" && as.Tag != n.Tag {
		return fmt.Errorf("it is signed as %s, not with the tag %s", s.As, n.Tag)
	}
	return nil
}
