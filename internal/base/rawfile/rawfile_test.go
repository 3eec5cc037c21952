package rawfile

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
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

func TestWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	for _, want := range []string{"first", strings.Repeat("longer", 100000), "", "short"} {
		if err := Write(path, []byte(want), 0o640); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		st, _ := os.Stat(path)
		if err != nil || string(got) != want || st.Mode() != 0o640 {
			t.Errorf("%d bytes with mode %v, %v; want %d", len(got), st.Mode(), err, len(want))
		}
	}
	var p *fs.PathError
	if err := Write(filepath.Join(path, "below"), nil, 0o600); !errors.Is(err, unix.ENOTDIR) || !errors.As(err, &p) {
		t.Errorf("got %v", err)
	}
	if err := Write("/dev/full", []byte("x"), 0o600); !errors.Is(err, unix.ENOSPC) || !errors.As(err, &p) || p.Path != "/dev/full" {
		t.Errorf("got %v", err)
	}
}
