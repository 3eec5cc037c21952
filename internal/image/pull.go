package image

import (
	"context"
	"io"
	"os"

	"github.com/opencontainers/go-digest"
	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/fault"
	"github.com/orlop-io/orlop/internal/base/trace"
	"github.com/orlop-io/orlop/internal/image/policy"
	"github.com/orlop-io/orlop/internal/image/registry"
)

// Auth is credentials for one registry. At most one way of them is set.
type Auth struct {
	Username, Password string
	// IdentityToken is exchanged for an access token (OAuth2 refresh token).
	IdentityToken string
	// RegistryToken is sent as it is, as a bearer token.
	RegistryToken string
}

// PullOptions say how to pull.
type PullOptions struct {
	// Auth is for the registry of the name itself, never for a mirror. nil: what
	// the docker configuration has (image.dockerConfig), else anonymous.
	Auth *Auth
	// Platform is os/architecture[/variant]; "" is this machine's.
	Platform string
	// Progress is told how layers come along; nil is fine. Calls come from several
	// goroutines, at most about ten a second per layer, and must not block.
	Progress func(Progress)
}

// Progress is the state of one layer.
type Progress struct {
	Layer digest.Digest // of the compressed layer
	Index int           // position in the image, lowest is 0
	Count int           // layers of the image
	Done  int64         // compressed bytes that have come
	Total int64         // compressed size
	State ProgressState
}

// ProgressState says what is being done to a layer. Layers are unpacked while
// they come, so Unpacking is only what is left after the last byte.
type ProgressState string

const (
	ProgressWaiting     ProgressState = "waiting"
	ProgressDownloading ProgressState = "downloading"
	ProgressRetrying    ProgressState = "retrying"
	ProgressUnpacking   ProgressState = "unpacking"
	ProgressDone        ProgressState = "done"
	ProgressExists      ProgressState = "already here"
)

// Pull fetches the image of that name, unpacks it and records it. It asks the
// registry which image the name means even where the name is known here; layers
// that are here are not fetched again, and layers that another pull is fetching
// are waited for. If it fails or is cancelled, nothing of it is left.
//
// The image must be allowed by image.policy: what is to be signed is verified before
// anything of it is fetched, by the digest that is then run.
//
// Errors: a Refusal, errs.Invalid for a bad name or a hostile image, errs.NotFound,
// errs.Unauthenticated, errs.PermissionDenied, errs.Unavailable for a registry
// out of reach, errs.Corrupt for content that is not what its digest says,
// errs.ResourceExhausted for an image above the limits.
func (s *Store) Pull(ctx context.Context, ref string, o PullOptions) (_ Image, err error) {
	ctx, span := trace.Start(ctx, "image pull")
	defer span.End(&err)
	span.Set("container.image.name", ref)
	n, err := ParseName(ref)
	if err != nil {
		return Image{}, err
	}
	img, err := s.pull(ctx, n, o)
	if err != nil {
		return Image{}, errs.New(errs.KindOf(err), "pull %s: %w", n, err)
	}
	return img, nil
}

var (
	faultManifestHere = fault.New("image.pull.manifest-fetched")
	faultConfigHere   = fault.New("image.pull.config-fetched")
)

func (s *Store) pull(ctx context.Context, n Name, o PullOptions) (Image, error) {
	want, err := parsePlatform(o.Platform)
	if err != nil {
		return Image{}, err
	}
	rule := s.policy.Rule(n.Host + "/" + n.Repository)
	if rule.Action == policy.Reject {
		return Image{}, refuse(rule, "it is rejected")
	}
	repo, err := s.regs.Repository(n.Host, n.Repository, o.Auth.config())
	if err != nil {
		return Image{}, err
	}
	tagOrDigest := n.Tag
	if n.Digest != "" {
		tagOrDigest = n.Digest.String()
	}
	tctx, span := trace.Start(ctx, "image manifest")
	doc, top, err := fetchManifest(tctx, repo, tagOrDigest, want)
	span.End(&err)
	if err != nil {
		return Image{}, err
	}
	var signed []policy.Signed
	if rule.Action == policy.SignedBy {
		// A signature of the index is one of all its images, which it names by digest.
		if signed, err = s.verify(ctx, repo, rule, n, top, doc.digest()); err != nil {
			return Image{}, err
		}
	}
	c := s.newClaims()
	defer c.release()
	if _, err := c.putBlob(doc.mediaType, doc.data); err != nil {
		return Image{}, err
	}
	faultManifestHere.Hit()
	tctx, span = trace.Start(ctx, "image configuration")
	data, err := s.fetchConfig(tctx, c, repo, refOf(doc.manifest.Config))
	span.End(&err)
	if err != nil {
		return Image{}, err
	}
	cfg, err := parseConfig(data, &doc.manifest, want)
	if err != nil {
		return Image{}, err
	}
	if _, err := c.putBlob(doc.manifest.Config.MediaType, data); err != nil {
		return Image{}, err
	}
	faultConfigHere.Hit()
	rec := newRecord(doc, cfg)
	err = s.assemble(ctx, c, &rec, func(ctx context.Context, i int, note func(progressNote)) (io.ReadCloser, error) {
		l := rec.Layers[i].Blob
		var broken func(error)
		if note != nil {
			broken = func(err error) {
				s.o.Log.Info("connection broke; going on from there", "image", n, "layer", l.Digest, "err", err)
				note(progressNote{0, ProgressRetrying})
			}
		}
		return repo.Blob(ctx, l.Digest, l.SizeBytes, broken)
	}, o.Progress)
	if err != nil {
		return Image{}, err
	}
	names := []string{n.digested(top)}
	if n.Digest == "" {
		names = append(names, n.tagged())
	}
	if err := s.record(rec, names, rec.Manifest.Digest, signed); err != nil {
		return Image{}, err
	}
	return s.Resolve(ctx, rec.ID.String())
}

// fetchManifest returns the image's manifest for the platform, and the digest of
// what the registry answered with, which is an index's where it has one.
func fetchManifest(ctx context.Context, repo *registry.Repository, ref string, want platform) (*document, digest.Digest, error) {
	data, mediaType, err := repo.Manifest(ctx, ref, accept, maxManifest)
	if err != nil {
		return nil, "", err
	}
	doc, err := parseDocument(data, mediaType)
	if err != nil {
		return nil, "", err
	}
	top := doc.digest()
	if !doc.isIndex {
		return doc, top, nil
	}
	d, err := choose(&doc.index, want)
	if err != nil {
		return nil, "", err
	}
	if data, mediaType, err = repo.Manifest(ctx, d.Digest.String(), accept, maxManifest); err != nil {
		return nil, "", err
	}
	if d.Size != int64(len(data)) {
		return nil, "", errs.New(errs.Corrupt, "the manifest for %s has %d bytes, the index says %d", want, len(data), d.Size)
	}
	if doc, err = parseDocument(data, mediaType); err != nil {
		return nil, "", err
	}
	if doc.isIndex {
		return nil, "", errs.New(errs.Invalid, "the index names another index where an image should be")
	}
	return doc, top, nil
}

// fetchConfig returns the image's configuration, from here if it is.
func (s *Store) fetchConfig(ctx context.Context, c *claims, repo *registry.Repository, b blobRef) ([]byte, error) {
	if c.blob(b) {
		return os.ReadFile(s.blobPath(b.Digest))
	}
	r, err := repo.Blob(ctx, b.Digest, b.SizeBytes, nil)
	if err != nil {
		return nil, errs.New(errs.KindOf(err), "the image's configuration: %w", err)
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, b.SizeBytes+1))
	if err != nil {
		return nil, errs.New(errs.KindOf(err), "the image's configuration: %w", err)
	}
	if got := digest.FromBytes(data); got != b.Digest {
		return nil, errs.New(errs.Corrupt, "the image's configuration has the digest %s, not %s", got, b.Digest)
	}
	return data, nil
}
