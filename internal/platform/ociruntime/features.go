package ociruntime

import (
	"context"
	"encoding/json"
	"slices"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go/features"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// Features is what of a runtime's features callers have to know before they ask for it.
type Features struct {
	// RecursiveReadOnly: mounts may have the option rro.
	RecursiveReadOnly bool
	// IDMappedMounts: mounts may have mappings of their own.
	IDMappedMounts bool
}

// featuresTimeout is short: whoever asks waits for all handlers.
const featuresTimeout = 5 * time.Second

// Features asks the runtime (features.md). One that does not know the command, which is
// older than it, has none of them: errs.Unsupported.
func (r *Runtime) Features(ctx context.Context) (Features, error) {
	raw, err := r.run(ctx, call{args: []string{"features"}, limit: min(r.Limit(), featuresTimeout)})
	if err != nil {
		if errs.KindOf(err) == errs.FailedPrecondition && unix.Access(r.Path, unix.X_OK) == nil {
			return Features{}, errs.As(errs.Unsupported, err)
		}
		return Features{}, err
	}
	return parseFeatures(raw)
}

func parseFeatures(raw []byte) (out Features, err error) {
	var f features.Features
	if err := json.Unmarshal(raw, &f); err != nil {
		return out, errs.New(errs.Unsupported, "read the runtime's features: %w", err)
	}
	out.RecursiveReadOnly = slices.Contains(f.MountOptions, "rro")
	if f.Linux != nil && f.Linux.MountExtensions != nil && f.Linux.MountExtensions.IDMap != nil && f.Linux.MountExtensions.IDMap.Enabled != nil {
		out.IDMappedMounts = *f.Linux.MountExtensions.IDMap.Enabled
	}
	return out, nil
}
