package image

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/orlop-io/orlop/internal/base/config"
	"github.com/orlop-io/orlop/internal/base/store"
	"github.com/orlop-io/orlop/internal/platform/overlay"
)

func openDB(t testing.TB, dir string) *store.DB {
	t.Helper()
	db, err := store.Open(filepath.Join(dir, "state.db"), store.Durable)
	if err != nil {
		t.Fatal(err)
	}
	return db
}

func testConfig(dir string) config.Image {
	c := config.Default().Image
	c.DockerConfig = filepath.Join(dir, "docker")
	return c
}

// open opens a store in dir; change may alter its configuration.
func open(t testing.TB, dir string, change ...func(*config.Image)) *Store {
	t.Helper()
	db := openDB(t, dir)
	o := Options{Root: dir, DB: db, Config: testConfig(dir)}
	for _, f := range change {
		f(&o.Config)
	}
	s, err := Open(t.Context(), o)
	if err != nil {
		db.Close()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.Close()
		db.Close()
	})
	return s
}

// mountImage returns the image's merged root as a directory below /proc/self/fd.
func mountImage(t testing.TB, s *Store, name string) string {
	t.Helper()
	img, err := s.Resolve(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	dirs, err := s.LayerDirs(t.Context(), img.ID)
	if err != nil {
		t.Fatal(err)
	}
	return mountDirs(t, dirs)
}

func mountDirs(t testing.TB, dirs []string) string {
	t.Helper()
	work := t.TempDir()
	l := overlay.Layers{Lower: dirs, Upper: filepath.Join(work, "u"), Work: filepath.Join(work, "w")}
	for _, d := range []string{l.Upper, l.Work} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	f, err := overlay.Mount(l)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return filepath.Join("/proc/self/fd", itoa(int(f.Fd())))
}
