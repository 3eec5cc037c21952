package image

import (
	"os"
	"path/filepath"
	"testing"
)

// checkEmpty fails if anything is in the store.
func checkEmpty(t testing.TB, s *Store) {
	t.Helper()
	for _, d := range []string{"blobs/sha256", "layers", "tmp"} {
		left, err := os.ReadDir(s.dir(d))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range left {
			t.Errorf("left behind: %s", filepath.Join(d, e.Name()))
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.st.images) + len(s.st.names) + len(s.st.layers) + len(s.st.blobs); n > 0 {
		t.Errorf("%d records left", n)
	}
}
