package checkpoint

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
)

var memory = strings.Repeat("memory", 2000)

// content is a directory that an archive can be made of.
func content(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(dir+"/checkpoint", 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"config.dump": "{}", "checkpoint/pages-1.img": memory} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(dir+"/checkpoint/socket", 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

// An archive is there as a whole, for nobody else to read, or not at all.
func TestArchive(t *testing.T) {
	dir := t.TempDir()
	location := dir + "/c.tar"
	if err := os.WriteFile(Temporary(location, "id"), []byte("of a caller that was killed"), 0o644); err != nil {
		t.Fatal(err)
	}
	from := content(t)
	err := WriteArchive(t.Context(), from, location, "id", func() {
		if _, err := os.Stat(location); err == nil {
			t.Error("it has its name before it is ready")
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(location); err != nil || st.Mode() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
	f, err := os.Open(location)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got := map[string]string{}
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		got[h.Name] = string(text)
		if h.Mode != 0o600 && h.Typeflag != tar.TypeDir || h.Uid != 0 || h.Uname != "" {
			t.Errorf("%+v", h)
		}
	}
	if len(got) != 3 || got["config.dump"] != "{}" || got["checkpoint/pages-1.img"] != memory {
		t.Errorf("it has %q", got)
	}
	if _, err := os.Stat(from + "/checkpoint/pages-1.img"); err == nil {
		t.Error("memory is on the disk twice")
	}
}

func TestArchiveFails(t *testing.T) {
	full := t.TempDir()
	if err := unix.Mount("tmpfs", full, "tmpfs", 0, "size=4k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(full, unix.MNT_DETACH) })
	taken := t.TempDir()
	ended, cancel := context.WithCancelCause(t.Context())
	cancel(errs.New(errs.Timeout, "the time is over"))
	for _, tt := range []struct {
		name, dir string
		ctx       context.Context
		ready     func()
		kind      *errs.Kind
		left      int
	}{
		{"disk full", full, t.Context(), func() {}, errs.ResourceExhausted, 0},
		{"time over", t.TempDir(), ended, func() {}, errs.Timeout, 0},
		{"another was faster", taken, t.Context(), func() { os.WriteFile(taken+"/c.tar", nil, 0o644) }, errs.AlreadyExists, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if err := WriteArchive(tt.ctx, content(t), tt.dir+"/c.tar", "id", tt.ready); errs.KindOf(err) != tt.kind {
				t.Errorf("%v, want %v", err, tt.kind)
			}
			if ents, err := os.ReadDir(tt.dir); err != nil || len(ents) != tt.left {
				t.Errorf("left: %v, %v", ents, err)
			}
		})
	}
}

// FuzzLocation: whatever the path, nothing but a new file in a directory that is there is taken.
func FuzzLocation(f *testing.F) {
	for _, s := range []string{"", "/", "a", "/a/../b", "/tmp/", "/tmp//x", "/\x00", "/dev/null", "/proc/self/mem", "/tmp/new.tar"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if CheckLocation(s) != nil {
			return
		}
		if _, err := os.Lstat(s); err == nil || !filepath.IsAbs(s) || filepath.Clean(s) != s {
			t.Errorf("%q was taken", s)
		}
	})
}
