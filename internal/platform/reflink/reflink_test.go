package reflink

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A disk that can is tested with the pool of volumes.
func TestDiskThatCannot(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	if can, err := Probe(dir); can || err != nil {
		t.Errorf("Probe: %v, %v", can, err)
	}
	src, dst := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	if err := os.WriteFile(src, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Clone(dst, src); err == nil {
		t.Error("cloned")
	}
	if err := Clone(src, src); !errors.Is(err, os.ErrExist) {
		t.Errorf("clone onto a file: %v", err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("left: %v, %v", left, err)
	}
	if _, err := Probe(filepath.Join(dir, "none")); err == nil {
		t.Error("a missing directory was probed")
	}
}
