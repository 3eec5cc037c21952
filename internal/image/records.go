package image

import (
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/orlop-io/orlop/internal/base/store"
	"github.com/orlop-io/orlop/internal/image/policy"
)

// The records of the durable state file (docs/design/images.md). Buckets:
//
//	image.images  image ID → imageRecord
//	image.names   full name or repository@digest → nameRecord
//	image.layers  layer key → layerRecord
//	image.used    image ID → when it was used last, some minutes late

// imageRecord is an image by its configuration's digest. Several manifests may
// share one configuration (the same layers compressed otherwise).
type imageRecord struct {
	ID       digest.Digest
	Config   blobRef
	Layers   []layerRef // lowest first
	Manifest blobRef    // the one that came last
	// Others are manifests that came before and are still named by digest.
	Others   []manifestRef `json:",omitempty"`
	Platform string
	Created  time.Time `json:",omitzero"`
	Run      ocispec.ImageConfig
	Pinned   bool `json:",omitempty"`
}

// manifestRef is a manifest with the layers that it names.
type manifestRef struct {
	Manifest blobRef
	Blobs    []blobRef
}

// blobRef is one file of the content store.
type blobRef struct {
	MediaType string
	Digest    digest.Digest
	SizeBytes int64
}

// layerRef is one layer of an image.
type layerRef struct {
	// Blob is the compressed layer that the manifest names. It is not here if the
	// layer had come before, compressed otherwise.
	Blob   blobRef
	DiffID digest.Digest
	Key    layerKey
}

// layerKey names an unpacked layer: its DiffID, or "chain:" and the ChainID where
// its content depends on the layers below it.
type layerKey string

func diffKey(d digest.Digest) layerKey      { return layerKey(d) }
func chainKey(chain digest.Digest) layerKey { return layerKey("chain:" + chain) }

// nameRecord is what a name means.
type nameRecord struct {
	ID digest.Digest
	// Manifest is the manifest of the image that the name was given for.
	Manifest digest.Digest
	// Signed are the signatures that were found right when the image was pulled by
	// this name; none where none were asked for.
	Signed []policy.Signed `json:",omitempty"`
}

// layerRecord is one unpacked layer.
type layerRecord struct {
	DiffID digest.Digest
	// Blob is what it was, and can again be, unpacked from.
	Blob blobRef
	// Dir is its directory's name below layers/.
	Dir          string
	Bytes, Files int64
	// OpaqueRoot: it hides all layers below.
	OpaqueRoot bool `json:",omitempty"`
	// Durable: the unpacked files are on the disk. Until then a power loss may have
	// torn them, so that they count only in the boot that made them.
	Durable bool
	Boot    string
}

type buckets struct {
	images store.Bucket[imageRecord]
	names  store.Bucket[nameRecord]
	layers store.Bucket[layerRecord]
	used   store.Bucket[time.Time]
}

func openBuckets(db *store.DB) (b buckets, err error) {
	if b.images, err = store.NewBucket[imageRecord](db, "image.images"); err != nil {
		return b, err
	}
	if b.names, err = store.NewBucket[nameRecord](db, "image.names"); err != nil {
		return b, err
	}
	if b.used, err = store.NewBucket[time.Time](db, "image.used"); err != nil {
		return b, err
	}
	b.layers, err = store.NewBucket[layerRecord](db, "image.layers")
	return b, err
}
