package atomicfile

import (
	"os"
	"path/filepath"
	"testing"
)

func TestWrite(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	for _, content := range []string{"one", "two, longer", ""} {
		for _, durable := range []bool{false, true} {
			if err := Write(path, []byte(content), 0o640, durable); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(path)
			if err != nil || string(got) != content {
				t.Errorf("read %q, %v; want %q", got, err, content)
			}
		}
	}
	if fi, _ := os.Stat(path); fi.Mode() != 0o640 {
		t.Errorf("mode %v", fi.Mode())
	}
	if err := Write(filepath.Join(dir, "missing", "f"), nil, 0o600, true); err == nil {
		t.Error("no error where the directory is missing")
	}
	if ents, _ := os.ReadDir(dir); len(ents) != 1 {
		t.Errorf("%d entries left in the directory, want 1", len(ents))
	}
}
