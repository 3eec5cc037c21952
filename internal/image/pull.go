package image

import (
	"context"

	"github.com/opencontainers/go-digest"
	"github.com/orlop-io/orlop/internal/base/errs"
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
// Errors: errs.Invalid for a bad name or a hostile image, errs.NotFound,
// errs.Unauthenticated, errs.PermissionDenied, errs.Unavailable for a registry
// out of reach, errs.Corrupt for content that is not what its digest says,
// errs.ResourceExhausted for an image above the limits.
func (s *Store) Pull(ctx context.Context, ref string, o PullOptions) (Image, error) {
	return Image{}, errs.New(errs.Unsupported, "not built yet")
}
