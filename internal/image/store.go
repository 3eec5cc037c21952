package image

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"github.com/orlop-io/orlop/internal/base/config"
	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/store"
	"github.com/orlop-io/orlop/internal/image/policy"
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
//
// Locks: write serialises what changes records (recording an image, tagging,
// removing, sweeping), so that each sees a consistent whole; mu guards the state
// in memory and is never held over a disk write or the network. Reading takes mu
// only. Work on layers holds neither: it claims what it needs to stay.
type Store struct {
	o    Options
	root string // Options.Root/image
	boot string
	db   buckets

	write sync.Mutex

	mu sync.Mutex
	st state

	flights flights
	durable syncer
	regs    registries
	policy  *policy.Policy
}

// Open opens the store, making it where it is missing, and removes what a crash
// has left: content that no record reaches, unfinished downloads, and unpacked
// layers that a power loss may have torn.
func Open(ctx context.Context, o Options) (*Store, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &Store{o: o, root: filepath.Join(o.Root, "image")}
	var err error
	if s.boot, err = bootID(); err != nil {
		return nil, err
	}
	if s.db, err = openBuckets(o.DB); err != nil {
		return nil, fmt.Errorf("open image store %s: %w", s.root, err)
	}
	if s.regs, err = newRegistries(o.Config, o.Log); err != nil {
		return nil, err
	}
	if s.policy, err = policy.New(o.Config.Policy); err != nil {
		return nil, err
	}
	if err := s.load(ctx); err != nil {
		return nil, fmt.Errorf("open image store %s: %w", s.root, err)
	}
	s.startSyncer()
	s.durable.wake() // what a former process had no time for
	return s, nil
}

// CheckConfig tells whether Open would take the configuration: whether the keys and
// certificates that it names can be read.
func CheckConfig(c config.Image) error {
	_, perr := policy.New(c.Policy)
	regs, rerr := newRegistries(c, nil)
	if rerr == nil {
		regs.Close()
	}
	return errors.Join(perr, rerr)
}

// Close waits for background work (making layers durable, when images were used). The DB stays open.
// No method may be running or be called afterwards.
func (s *Store) Close() error {
	s.stopSyncer()
	s.regs.Close()
	return s.saveUsed()
}

// Usage returns the disk space and the number of files that the store takes.
func (s *Store) Usage(ctx context.Context) (bytes, inodes int64, err error) {
	err = filepath.WalkDir(s.root, func(_ string, d fs.DirEntry, err error) error {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil {
			if os.IsNotExist(err) {
				return nil // removed meanwhile
			}
			return err
		}
		info, err := d.Info()
		if err != nil {
			if os.IsNotExist(err) {
				return nil
			}
			return err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			bytes += st.Blocks * 512
		}
		inodes++
		return nil
	})
	if err != nil {
		return 0, 0, errs.New(errs.KindOf(err), "measure the image store: %w", err)
	}
	return bytes, inodes, nil
}

// randomName returns 8 letters and digits.
func randomName() string {
	var b [5]byte
	rand.Read(b[:]) // never fails
	return strings.ToLower(base32.StdEncoding.EncodeToString(b[:]))
}
