// Package store keeps Orlop's state in bbolt, as typed buckets of JSON values.
//
// There are two files (docs/design/state.md): a volatile one on tmpfs for what
// dies with the machine (pods, containers, attachments), never fsynced so that a
// start waits for no disk; and a durable one for what outlives it (manifests,
// images, volumes, address blocks), fsynced before a write returns.
package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/orlop-io/orlop/internal/base/errs"
	bolt "go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// Durability says when a write is safe.
type Durability bool

const (
	// Volatile writes survive the process, not the machine.
	Volatile Durability = false
	// Durable writes are on the disk before they return.
	Durable Durability = true
)

// DB is an open state file. It is safe for concurrent use; write transactions
// are serial.
type DB struct{ bolt *bolt.DB }

// Open opens the file, making it and its directory (0700) where they are
// missing. A file locked by another process is an errs.InUse error after a
// second: two daemons must never share one state.
func Open(path string, d Durability) (*DB, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("open state %s: %w", path, err)
	}
	db, err := bolt.Open(path, 0o600, &bolt.Options{
		Timeout:        time.Second,
		NoSync:         d == Volatile,
		NoFreelistSync: true,
		FreelistType:   bolt.FreelistMapType,
	})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, errs.New(errs.InUse, "open state %s: another process holds it; is a daemon already running?", path)
	}
	if err != nil {
		return nil, fmt.Errorf("open state %s: %w", path, err)
	}
	return &DB{db}, nil
}

// Close closes the file. Using a bucket afterwards is an error.
func (db *DB) Close() error { return db.bolt.Close() }

// Tx is a transaction over any buckets of one DB.
type Tx struct{ tx *bolt.Tx }

// Update runs fn in one atomic write transaction; nothing is written if fn
// returns an error. Transactions are serial: fn must not block.
func (db *DB) Update(fn func(Tx) error) error {
	return db.bolt.Update(func(tx *bolt.Tx) error { return fn(Tx{tx}) })
}

// View runs fn on one consistent snapshot.
func (db *DB) View(fn func(Tx) error) error {
	return db.bolt.View(func(tx *bolt.Tx) error { return fn(Tx{tx}) })
}

// Bucket is a named set of values of type T, encoded as JSON. Fields may be added
// to T; renaming one needs a migration.
type Bucket[T any] struct {
	db   *DB
	name []byte
}

// NewBucket returns the bucket of that name, making it if it is missing.
func NewBucket[T any](db *DB, name string) (Bucket[T], error) {
	b := Bucket[T]{db, []byte(name)}
	err := db.bolt.Update(func(tx *bolt.Tx) error {
		_, err := tx.CreateBucketIfNotExists(b.name)
		return err
	})
	if err != nil {
		return b, fmt.Errorf("make bucket %s: %w", name, err)
	}
	return b, nil
}

// Get returns the value of key, or an errs.NotFound error.
func (b Bucket[T]) Get(key string) (v T, err error) {
	err = b.db.View(func(tx Tx) error {
		v, err = b.GetTx(tx, key)
		return err
	})
	return v, err
}

// GetTx is Get within a transaction.
func (b Bucket[T]) GetTx(tx Tx, key string) (v T, err error) {
	raw := tx.tx.Bucket(b.name).Get([]byte(key))
	if raw == nil {
		return v, errs.New(errs.NotFound, "%s %q not found", b.name, key)
	}
	if err := json.Unmarshal(raw, &v); err != nil {
		return v, errs.New(errs.Corrupt, "decode %s %q: %w", b.name, key, err)
	}
	return v, nil
}

// Put sets the value of key.
func (b Bucket[T]) Put(key string, v T) error {
	return b.db.Update(func(tx Tx) error { return b.PutTx(tx, key, v) })
}

// PutTx is Put within a transaction.
func (b Bucket[T]) PutTx(tx Tx, key string, v T) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s %q: %w", b.name, key, err)
	}
	return tx.tx.Bucket(b.name).Put([]byte(key), raw)
}

// Delete removes key. Removing one that is not there is no error.
func (b Bucket[T]) Delete(key string) error {
	return b.db.Update(func(tx Tx) error { return b.DeleteTx(tx, key) })
}

// DeleteTx is Delete within a transaction.
func (b Bucket[T]) DeleteTx(tx Tx, key string) error {
	return tx.tx.Bucket(b.name).Delete([]byte(key))
}

// All returns every key and value.
func (b Bucket[T]) All() (map[string]T, error) {
	var all map[string]T
	err := b.db.View(func(tx Tx) (err error) {
		all, err = b.AllTx(tx)
		return err
	})
	return all, err
}

// AllTx is All within a transaction.
func (b Bucket[T]) AllTx(tx Tx) (map[string]T, error) {
	all := make(map[string]T)
	err := tx.tx.Bucket(b.name).ForEach(func(k, raw []byte) error {
		var v T
		if err := json.Unmarshal(raw, &v); err != nil {
			return errs.New(errs.Corrupt, "decode %s %q: %w", b.name, k, err)
		}
		all[string(k)] = v
		return nil
	})
	return all, err
}

// Modify reads the value of key, lets fn change it, and writes it back in one
// transaction. A missing key is an errs.NotFound error.
func (b Bucket[T]) Modify(key string, fn func(*T) error) (v T, err error) {
	err = b.db.Update(func(tx Tx) error {
		if v, err = b.GetTx(tx, key); err != nil {
			return err
		}
		if err := fn(&v); err != nil {
			return err
		}
		return b.PutTx(tx, key, v)
	})
	return v, err
}
