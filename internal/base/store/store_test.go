package store

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/orlop-io/orlop/internal/base/errs"
)

type value struct{ N int }

func open(t *testing.T, path string, d Durability) *DB {
	t.Helper()
	db, err := Open(path, d)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

func TestBucket(t *testing.T) {
	for _, d := range []Durability{Volatile, Durable} {
		path := filepath.Join(t.TempDir(), "deep", "state.db")
		db := open(t, path, d)
		b, err := NewBucket[value](db, "things")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := b.Get("a"); !errors.Is(err, errs.NotFound) {
			t.Errorf("Get of a missing key: %v", err)
		}
		if err := b.Put("a", value{1}); err != nil {
			t.Fatal(err)
		}
		if v, err := b.Modify("a", func(v *value) error { v.N++; return nil }); err != nil || v.N != 2 {
			t.Errorf("Modify: %v, %v", v, err)
		}
		stop := errors.New("stop")
		if _, err := b.Modify("a", func(v *value) error { v.N = 9; return stop }); !errors.Is(err, stop) {
			t.Errorf("Modify does not return its function's error: %v", err)
		}
		err = db.Update(func(tx Tx) error {
			b.PutTx(tx, "b", value{5})
			return stop
		})
		if !errors.Is(err, stop) {
			t.Errorf("Update: %v", err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		db = open(t, path, d)
		if b, err = NewBucket[value](db, "things"); err != nil {
			t.Fatal(err)
		}
		all, err := b.All()
		if err != nil || len(all) != 1 || all["a"].N != 2 {
			t.Errorf("after reopening: %v, %v", all, err)
		}
		if err := b.Delete("a"); err != nil {
			t.Fatal(err)
		}
		if err := b.Delete("a"); err != nil {
			t.Errorf("Delete of a missing key: %v", err)
		}
	}
}

func TestSecondOpener(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	open(t, path, Durable)
	if _, err := Open(path, Durable); !errors.Is(err, errs.InUse) {
		t.Errorf("second Open: %v", err)
	}
}

func TestCorruptValue(t *testing.T) {
	db := open(t, filepath.Join(t.TempDir(), "state.db"), Volatile)
	s, _ := NewBucket[string](db, "things")
	s.Put("a", "text")
	b, _ := NewBucket[value](db, "things")
	if _, err := b.Get("a"); !errors.Is(err, errs.Corrupt) {
		t.Errorf("Get of a value of another type: %v", err)
	}
}
