package loop

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
)

const mib = 1 << 20

// file makes a file of 4 MiB. Its device must be gone at the end of the test.
func file(t *testing.T) string {
	t.Helper()
	return fileIn(t, t.TempDir())
}

func fileIn(t *testing.T, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "file.img")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 4*mib); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		all, err := List(func(b string) bool { return strings.HasPrefix(b, dir) })
		for _, i := range all {
			t.Errorf("device left: %+v", i)
			clear(i)
		}
		if err != nil {
			t.Error(err)
		}
	})
	return path
}

func attach(t *testing.T, path string, o Options) *Device {
	t.Helper()
	d, err := Attach(context.Background(), path, o)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestAttachFindDetach(t *testing.T) {
	ctx := context.Background()
	path := file(t)
	if _, ok, err := Find(path); ok || err != nil {
		t.Fatalf("found before: %v", err)
	}
	d := attach(t, path, Options{DirectIO: true, SectorBytes: 4096})
	again := attach(t, path, Options{DirectIO: true, SectorBytes: 4096})
	if again.Path != d.Path {
		t.Errorf("one file on %s and %s", d.Path, again.Path)
	}
	i, ok, err := Find(path)
	if err != nil || !ok || i.Device != d.Path || i.Backing != path || i.SizeBytes != 4*mib || i.Autoclear || i.ReadOnly || i.DirectIO != d.DirectIO {
		t.Errorf("Find: %+v, %v, %v", i, ok, err)
	}
	if err := os.Truncate(path, 6*mib); err != nil {
		t.Fatal(err)
	}
	if err := Refresh(path); err != nil {
		t.Fatal(err)
	}
	if i, _, _ := Find(path); i.SizeBytes != 6*mib {
		t.Errorf("after Refresh: %+v", i)
	}
	again.Close()
	short, cancel := context.WithTimeout(ctx, 10*time.Millisecond)
	defer cancel()
	if err := Detach(short, path); !errors.Is(err, errs.InUse) {
		t.Errorf("Detach of an open device: %v", err)
	}
	d.Close()
	if err := errors.Join(Detach(ctx, path), Detach(ctx, path), Refresh(path), Detach(ctx, path+"x")); err != nil {
		t.Error(err)
	}
	if _, ok, _ := Find(path); ok {
		t.Error("still there")
	}
	if _, err := Attach(ctx, path+"x", Options{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("attach a missing file: %v", err)
	}
}

func TestAutoclear(t *testing.T) {
	ctx := context.Background()
	path := file(t)
	d := attach(t, path, Options{Autoclear: true})
	d.Close()
	gone(t, path)
	// Without, it stays; adopted with, it goes.
	attach(t, path, Options{}).Close()
	if i, ok, _ := Find(path); !ok || i.Autoclear {
		t.Errorf("a device that was to stay: %+v, %v", i, ok)
	}
	attach(t, path, Options{Autoclear: true}).Close()
	gone(t, path)
	// And the other way.
	d = attach(t, path, Options{Autoclear: true})
	attach(t, path, Options{}).Close()
	d.Close()
	if _, ok, _ := Find(path); !ok {
		t.Error("a device that was to stay is gone")
	}
	if err := Detach(ctx, path); err != nil {
		t.Error(err)
	}
}

func gone(t *testing.T, path string) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, ok, err := Find(path); err != nil || !ok {
			if err != nil {
				t.Error(err)
			}
			return
		}
		if time.Now().After(deadline) {
			t.Error("the device did not go with its last user")
			return
		}
	}
}

// A file of the same name, or one deleted and made again, is another file.
func TestOthersAreLeftAlone(t *testing.T) {
	ctx := context.Background()
	one, two := file(t), file(t)
	d := attach(t, one, Options{})
	if _, ok, _ := Find(two); ok {
		t.Error("another file's device was found")
	}
	if err := Detach(ctx, two); err != nil {
		t.Error(err)
	}
	if err := errors.Join(os.Remove(one), os.WriteFile(one, make([]byte, mib), 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, ok, _ := Find(one); ok {
		t.Error("the device of a deleted file was found for the new one")
	}
	if err := Detach(ctx, one); err != nil {
		t.Error(err)
	}
	if all, _ := List(func(b string) bool { return b == one }); len(all) != 1 || all[0].Device != d.Path {
		t.Errorf("the deleted file's device: %+v", all)
	} else if err := clear(all[0]); err != nil {
		t.Error(err)
	}
	d.Close()
}

func TestReadOnly(t *testing.T) {
	ctx := context.Background()
	path := file(t)
	d := attach(t, path, Options{ReadOnly: true})
	if !d.ReadOnly {
		t.Error("not read-only")
	}
	if _, err := Attach(ctx, path, Options{}); !errors.Is(err, errs.InUse) {
		t.Errorf("attach for writing what is attached read-only: %v", err)
	}
	d.Close()
	if err := Detach(ctx, path); err != nil {
		t.Error(err)
	}
}

func TestConcurrentAttach(t *testing.T) {
	ctx := context.Background()
	var wg sync.WaitGroup
	for range 6 {
		path := file(t)
		for range 3 {
			wg.Go(func() {
				d, err := Attach(ctx, path, Options{})
				if err != nil {
					t.Error(err)
					return
				}
				d.Close()
			})
		}
		t.Cleanup(func() {
			if err := Detach(ctx, path); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// Direct I/O is asked for where there is none: overlayfs says that it has it, whatever is
// below, and up to Linux 6.5 a tmpfs has not.
func TestDirectIOOverTmpfs(t *testing.T) {
	dir := t.TempDir()
	t.Cleanup(func() {
		for _, m := range []string{dir + "/merged", dir} {
			if err := unix.Unmount(m, 0); err != nil {
				t.Errorf("unmount %s: %v", m, err)
			}
		}
	})
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	for _, d := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mount("overlay", dir+"/merged", "overlay", 0, "lowerdir="+dir+"/lower,upperdir="+dir+"/upper,workdir="+dir+"/work"); err != nil {
		t.Fatal(err)
	}
	path := fileIn(t, dir+"/merged")
	d := attach(t, path, Options{DirectIO: true, SectorBytes: 4096})
	defer func() {
		d.Close()
		if err := Detach(context.Background(), path); err != nil {
			t.Error(err)
		}
	}()
	want := []byte("written to the device")
	if _, err := d.file.WriteAt(want, mib); err != nil {
		t.Fatal(err)
	}
	if err := d.file.Sync(); err != nil {
		t.Fatalf("direct I/O %v: %v", d.DirectIO, err)
	}
	got := make([]byte, len(want))
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.ReadAt(got, mib); err != nil || string(got) != string(want) {
		t.Errorf("direct I/O %v: the file has %q, %v", d.DirectIO, got, err)
	}
}
