package rawfile

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

func TestRead(t *testing.T) {
	dir := t.TempDir()
	for _, size := range []int{0, 1, 4095, 4096, 4097, 16384, 1 << 20} {
		want := bytes.Repeat([]byte("0123456789abcde"), size/15+1)[:size]
		path := filepath.Join(dir, "file")
		if err := os.WriteFile(path, want, 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := Read(path); err != nil || !bytes.Equal(got, want) {
			t.Errorf("of %d bytes %d are read, %v", size, len(got), err)
		}
	}
	want, _ := os.ReadFile("/proc/self/mountinfo")
	if got, err := Read("/proc/self/mountinfo"); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the mount table is %d bytes, not %d, %v", len(got), len(want), err)
	}
}

func TestErrors(t *testing.T) {
	_, err := Read("/no/such/file")
	var p *fs.PathError
	if !errors.Is(err, fs.ErrNotExist) || !errors.As(err, &p) || p.Path != "/no/such/file" {
		t.Errorf("got %v", err)
	}
	if _, err := Read("/"); !errors.Is(err, unix.EISDIR) {
		t.Errorf("got %v", err)
	}
	before, _ := os.ReadDir("/proc/self/fd")
	for range 10 {
		Read("/")
	}
	if after, _ := os.ReadDir("/proc/self/fd"); len(after) != len(before) {
		t.Errorf("%d descriptors are left open", len(after)-len(before))
	}
}
