package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/image/policy"
	"github.com/orlop-io/orlop/internal/image/registry"
)

// Refusal is the error of an image that image.policy does not allow. Its kind is
// errs.PermissionDenied.
type Refusal struct{ reason string }

func (r *Refusal) Error() string { return r.reason }

// Is gives it its kind.
func (r *Refusal) Is(target error) bool { return target == error(errs.PermissionDenied) }

func refuse(rule policy.Rule, format string, args ...any) error {
	return errs.As(errs.PermissionDenied, &Refusal{fmt.Sprintf("%s does not allow it: %s", rule.Says(), fmt.Sprintf(format, args...))})
}

const (
	maxSignatures = 64       // of one image, that are looked at
	maxSignature  = 64 << 10 // bytes of a payload
	maxBundle     = 1 << 20  // bytes of a bundle: it may carry certificates and log entries
)

// verify finds the signatures of one of the digests, which are an image's manifest
// and the index that names it, and returns those that are right. A place of the
// repository that has none that are right is no reason not to ask the next: a
// mirror may have those of yesterday.
func (s *Store) verify(ctx context.Context, repo *registry.Repository, rule policy.Rule, n Name, digests ...digest.Digest) ([]policy.Signed, error) {
	digests = slices.Compact(digests)
	var last error
	for _, at := range repo.Apart() {
		var why []string
		var failed error
		for _, d := range digests {
			signed, bad, err := signatures(ctx, at, rule, d)
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			if err != nil {
				failed = err
				continue
			}
			for _, err := range bad {
				if !slices.Contains(why, err.Error()) {
					why = append(why, err.Error())
				}
			}
			if len(signed) == 0 {
				continue
			}
			if err := rule.Satisfied(policyName(n), signed, parsePolicyName); err == nil {
				return signed, nil
			} else if !slices.Contains(why, err.Error()) {
				why = append(why, err.Error())
			}
		}
		switch {
		case failed != nil:
			last = errs.New(errs.KindOf(failed), "its signatures: %w", failed)
		case len(why) == 0:
			last = refuse(rule, "it is not signed")
		default:
			last = refuse(rule, "%s", strings.Join(why, "; "))
		}
	}
	return nil, last
}

// signatures returns the signatures of the digest that are right, and what is wrong
// with the others.
func signatures(ctx context.Context, repo *registry.Repository, rule policy.Rule, d digest.Digest) (right []policy.Signed, bad []error, err error) {
	check := func(manifest []byte) error {
		var m ocispec.Manifest
		if err := json.Unmarshal(manifest, &m); err != nil {
			bad = append(bad, fmt.Errorf("a signature's manifest is malformed: %w", err))
			return nil
		}
		for _, l := range m.Layers {
			if len(right)+len(bad) >= maxSignatures {
				return nil
			}
			simple := l.MediaType == policy.SimpleSigning
			if !simple && !strings.HasPrefix(l.MediaType, policy.BundlePrefix) {
				continue
			}
			limit := int64(maxBundle)
			if simple {
				limit = maxSignature
			}
			data, err := smallBlob(ctx, repo, l, limit)
			if err != nil {
				if errors.Is(err, errs.Unavailable) {
					return err
				}
				bad = append(bad, err)
				continue
			}
			var one policy.Signed
			if simple {
				one, err = rule.Simple(data, l.Annotations[policy.SignatureAnnotation], d)
			} else {
				one, err = rule.Bundle(data, d)
			}
			if err != nil {
				bad = append(bad, err)
				continue
			}
			right = append(right, one)
		}
		return nil
	}
	// Where cosign puts signatures: behind a tag made of the digest, or among what
	// refers to the manifest.
	tag := d.Algorithm().String() + "-" + d.Encoded() + ".sig"
	data, _, err := repo.Manifest(ctx, tag, accept, maxManifest)
	if err == nil {
		err = check(data)
	}
	if err != nil && !errors.Is(err, errs.NotFound) {
		return nil, nil, err
	}
	list, err := repo.Referrers(ctx, d, maxManifest)
	if errors.Is(err, errs.NotFound) {
		return right, bad, nil
	}
	if err != nil {
		if len(right) > 0 { // a registry that knows no referrers says so in many ways
			return right, bad, nil
		}
		return nil, nil, err
	}
	var index ocispec.Index
	if err := json.Unmarshal(list, &index); err != nil {
		return right, append(bad, fmt.Errorf("the list of referrers is malformed: %w", err)), nil
	}
	for _, r := range index.Manifests {
		if !signatureArtifact(r.ArtifactType) || len(right)+len(bad) >= maxSignatures {
			continue
		}
		if err := checkDescriptor(r, maxManifest); err != nil {
			bad = append(bad, err)
			continue
		}
		data, _, err := repo.Manifest(ctx, r.Digest.String(), accept, maxManifest)
		if err == nil {
			err = check(data)
		}
		if errors.Is(err, errs.Unavailable) {
			return nil, nil, err
		}
		if err != nil {
			bad = append(bad, err)
		}
	}
	return right, bad, nil
}

// signatureArtifact tells the artifact types that have signatures. Lists behind a tag
// may not have the type.
func signatureArtifact(t string) bool {
	return t == "" || strings.HasPrefix(t, policy.BundlePrefix) || t == "application/vnd.dev.cosign.artifact.sig.v1+json" || t == ocispec.MediaTypeImageConfig
}

// smallBlob fetches and verifies a blob.
func smallBlob(ctx context.Context, repo *registry.Repository, d ocispec.Descriptor, limit int64) ([]byte, error) {
	if err := checkDescriptor(d, limit); err != nil {
		return nil, err
	}
	r, err := repo.Blob(ctx, d.Digest, d.Size, nil)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, d.Size+1))
	if err != nil {
		return nil, err
	}
	if got := digest.FromBytes(data); got != d.Digest {
		return nil, errs.New(errs.Corrupt, "blob %s has the digest %s", d.Digest, got)
	}
	return data, nil
}

func policyName(n Name) policy.Name {
	return policy.Name{Repository: n.Host + "/" + n.Repository, Tag: n.Tag, Digest: n.Digest}
}

func parsePolicyName(s string) (policy.Name, error) {
	n, err := ParseName(s)
	return policyName(n), err
}

// allowed tells whether the present policy lets the image run that was found by
// that full name, or by its ID (""): then one of its names must be allowed. The
// caller holds mu.
func (s *Store) allowed(r imageRecord, name string) error {
	if s.policy.AcceptsAll() { // every start asks
		return nil
	}
	if name != "" {
		return s.allowedName(name, s.st.names[name])
	}
	names, _ := s.namesOf(r.ID)
	if len(names) == 0 { // made here, or what is left of an older one
		if rule := s.policy.Rule(""); rule.Action != policy.Accept {
			return refuse(rule, "it has no name that a rule could be for")
		}
		return nil
	}
	var last error
	for _, n := range names {
		if last = s.allowedName(n, s.st.names[n]); last == nil {
			return nil
		}
	}
	return last
}

func (s *Store) allowedName(name string, to nameRecord) error {
	n, err := ParseName(name)
	if err != nil {
		return err
	}
	rule := s.policy.Rule(n.Host + "/" + n.Repository)
	switch rule.Action {
	case policy.Accept:
		return nil
	case policy.SignedBy:
		if len(to.Signed) == 0 {
			return refuse(rule, "it is here, but its signature was not verified; pull it: orlop image pull %s", n)
		}
		if err := rule.Satisfied(policyName(n), to.Signed, parsePolicyName); err != nil {
			return refuse(rule, "it was verified before as that rule was another one: %v; pull it again: orlop image pull %s", err, n)
		}
		return nil
	}
	return refuse(rule, "it is rejected")
}

// Use is Resolve for whoever means to run the image: it must be allowed by the
// present image.policy, whatever that was when it came here, and counts as used.
//
// An image whose signature is not known to be right is NotFound, so that it is
// pulled again, and verified then; one that the policy rejects is a Refusal.
func (s *Store) Use(ctx context.Context, nameOrID string) (Image, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, name, err := s.find(nameOrID)
	if err != nil {
		return Image{}, err
	}
	if err := s.allowed(r, name); err != nil {
		if name != "" && s.ruleOf(name).Action == policy.SignedBy {
			return Image{}, errs.New(errs.NotFound, "image %q: %w", nameOrID, err)
		}
		return Image{}, errs.New(errs.PermissionDenied, "image %q: %w", nameOrID, err)
	}
	s.touch(r.ID)
	return s.describe(r), nil
}

func (s *Store) ruleOf(name string) policy.Rule {
	n, err := ParseName(name)
	if err != nil {
		return policy.Rule{Action: policy.Reject}
	}
	return s.policy.Rule(n.Host + "/" + n.Repository)
}
