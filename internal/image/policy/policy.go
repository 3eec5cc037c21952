// Package policy says which images may be pulled and run, by their names and by
// signatures with keys that the configuration has.
//
// A rule is for a registry, or a path below it, in whole components; the longest
// one that fits a name decides, and image.policy.default where none does. A rule
// accepts, rejects, or asks for a signature with one of its keys.
//
// What is signed is the digest of an image's manifest or of the index that has it.
// Two forms are read (docs/design/images.md): what cosign has written since its
// beginning, a "simple signing" payload, which also names a repository; and
// sigstore's bundle with an in-toto statement, which names digests alone.
package policy

import (
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/orlop-io/orlop/internal/base/config"
	"github.com/orlop-io/orlop/internal/base/errs"
)

// Action is what a rule does.
type Action string

const (
	Accept   Action = "accept"
	Reject   Action = "reject"
	SignedBy Action = "signedBy"
)

// Rule is what is said of the images below a prefix.
type Rule struct {
	// Prefix is host[/path]; "" is the default's.
	Prefix string
	Action Action
	Keys   []Key
	// SignedAs takes the prefix's place in what signatures name; "*" leaves unasked
	// what they name.
	SignedAs string
}

// Policy is all rules. It does not change and is safe for concurrent use.
type Policy struct {
	rules []Rule // longest prefix first; the last one is the default's
}

// Key is a public key.
type Key struct {
	// Fingerprint names the key: sha256: and the digest of its SubjectPublicKeyInfo.
	Fingerprint string
	public      crypto.PublicKey
}

// New reads the rules and their key files. Errors are errs.Invalid.
func New(c config.ImagePolicy) (*Policy, error) {
	p := &Policy{}
	for i, r := range c.Rules {
		bad := func(err error) (*Policy, error) {
			return nil, errs.New(errs.Invalid, "image.policy.rules[%d] (%s): %w", i, r.Prefix, err)
		}
		rule := Rule{Prefix: normal(strings.TrimSuffix(r.Prefix, "/")), Action: Action(r.Action), SignedAs: strings.TrimSuffix(r.SignedAs, "/")}
		if slices.ContainsFunc(p.rules, func(o Rule) bool { return o.Prefix == rule.Prefix }) {
			return bad(fmt.Errorf("the prefix has a rule already"))
		}
		for _, k := range r.Keys {
			keys, err := readKeys(k)
			if err != nil {
				return bad(err)
			}
			rule.Keys = append(rule.Keys, keys...)
		}
		p.rules = append(p.rules, rule)
	}
	slices.SortStableFunc(p.rules, func(a, b Rule) int { return len(b.Prefix) - len(a.Prefix) })
	def := Accept
	if c.Default != "" {
		def = Action(c.Default)
	}
	p.rules = append(p.rules, Rule{Action: def})
	return p, nil
}

// normal gives a repository the one form in which rules are compared: the same
// registry must not be another one by its spelling.
func normal(repository string) string {
	host, path, below := strings.Cut(strings.ToLower(repository), "/")
	host = strings.TrimSuffix(host, ":443")
	if host == "index.docker.io" || host == "registry-1.docker.io" {
		host = "docker.io"
	}
	if !below {
		return host
	}
	return host + "/" + path
}

// AcceptsAll tells that nothing is ever refused.
func (p *Policy) AcceptsAll() bool { return len(p.rules) == 1 && p.rules[0].Action == Accept }

// Rule returns the rule for a repository, host/path.
func (p *Policy) Rule(repository string) Rule {
	repository = normal(repository)
	for _, r := range p.rules {
		if r.Prefix == "" || repository == r.Prefix || strings.HasPrefix(repository, r.Prefix+"/") {
			return r
		}
	}
	return Rule{Action: Reject} // not reached: the default fits all
}

// Says names the rule in messages.
func (r Rule) Says() string {
	if r.Prefix == "" {
		return "image.policy.default"
	}
	return fmt.Sprintf("the rule for %s in image.policy", r.Prefix)
}

// Key returns the key of that fingerprint.
func (r Rule) Key(fingerprint string) bool {
	return slices.ContainsFunc(r.Keys, func(k Key) bool { return k.Fingerprint == fingerprint })
}

// readKeys reads the public keys of a PEM text or of the file of that name.
func readKeys(s string) ([]Key, error) {
	data, what := []byte(s), "the inline key"
	if !strings.Contains(s, "-----BEGIN") {
		var err error
		if data, err = os.ReadFile(s); err != nil {
			return nil, err
		}
		what = s
	}
	var keys []Key
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			break
		}
		var public any
		var err error
		switch block.Type {
		case "PUBLIC KEY":
			public, err = x509.ParsePKIXPublicKey(block.Bytes)
		case "RSA PUBLIC KEY":
			public, err = x509.ParsePKCS1PublicKey(block.Bytes)
		default:
			return nil, fmt.Errorf("%s has a %q, where public keys are wanted (cosign public-key, openssl pkey -pubout)", what, block.Type)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", what, err)
		}
		k, err := newKey(public)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", what, err)
		}
		keys = append(keys, k)
	}
	if len(keys) == 0 {
		return nil, fmt.Errorf("%s has no public key in PEM format", what)
	}
	return keys, nil
}

func newKey(public crypto.PublicKey) (Key, error) {
	if err := usable(public); err != nil {
		return Key{}, err
	}
	der, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return Key{}, err
	}
	sum := sha256.Sum256(der)
	return Key{Fingerprint: "sha256:" + hex.EncodeToString(sum[:]), public: public}, nil
}
