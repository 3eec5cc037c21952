package image

import (
	"context"
	"log/slog"
	"sync"

	"github.com/opencontainers/go-digest"
	"github.com/orlop-io/orlop/internal/base/config"
	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/store"
)

// Options say where a Store lives and what bounds it.
type Options struct {
	// Root is the daemon's durable directory; the store uses Root/image.
	Root string
	// DB is the durable state file.
	DB *store.DB
	// Config bounds images and names registries; config.Default().Image is complete.
	Config config.Image
	// Log receives what an operator should know; nil discards.
	Log *slog.Logger
}

// Store keeps images. It is safe for concurrent use; one process at a time may
// have a Root open (the DB's lock sees to that).
type Store struct {
	o  Options
	mu sync.Mutex
}

// Open opens the store, making it where it is missing, and removes what a crash
// has left: content that no record reaches, unfinished downloads, and unpacked
// layers that a power loss may have torn.
func Open(ctx context.Context, o Options) (*Store, error) {
	return &Store{o: o}, nil
}

// Close waits for background work (making layers durable). The DB stays open.
func (s *Store) Close() error { return nil }

// Usage returns the disk space and the number of files that the store takes.
func (s *Store) Usage(ctx context.Context) (bytes, inodes int64, err error) {
	return 0, 0, errs.New(errs.Unsupported, "not built yet")
}

// LayerDirs returns the directories that overlayfs takes as lower ones, topmost
// FIRST, every one completely unpacked (unpacking what is not). The image is
// Hold'ed by the caller or known to InUse while they are mounted. The directories
// must not be written to.
func (s *Store) LayerDirs(ctx context.Context, id digest.Digest) ([]string, error) {
	return nil, errs.New(errs.Unsupported, "not built yet")
}

// Hold keeps the image and its layers from Remove and Prune until release is
// called; it closes the gap between resolving an image and recording its use.
func (s *Store) Hold(id digest.Digest) (release func(), err error) {
	return func() {}, nil
}
