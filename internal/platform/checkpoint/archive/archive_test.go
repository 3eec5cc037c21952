package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
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
	err := Write(t.Context(), from, location, "id", func() {
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
			if err := Write(tt.ctx, content(t), tt.dir+"/c.tar", "id", tt.ready); errs.KindOf(err) != tt.kind {
				t.Errorf("%v, want %v", err, tt.kind)
			}
			if ents, err := os.ReadDir(tt.dir); err != nil || len(ents) != tt.left {
				t.Errorf("left: %v, %v", ents, err)
			}
		})
	}
}

// What was written is read again: what a restore needs of it, and no more.
func TestUnpack(t *testing.T) {
	dir := t.TempDir()
	from := content(t)
	if err := WriteJSON(from, ConfigFile, Config{ID: "x"}); err != nil {
		t.Fatal(err)
	}
	if err := WriteJSON(from, SpecFile, specs.Spec{Hostname: "h"}); err != nil {
		t.Fatal(err)
	}
	if err := Write(t.Context(), from, dir+"/c.tar", "id", func() {}); err != nil {
		t.Fatal(err)
	}
	a, err := Read(dir + "/c.tar")
	if err != nil || a.Config.ID != "x" || a.Spec.Hostname != "h" {
		t.Fatalf("%+v, %v", a, err)
	}
	if err := Unpack(t.Context(), dir+"/c.tar", dir+"/to"); err != nil {
		t.Fatal(err)
	}
	if raw, err := os.ReadFile(dir + "/to/checkpoint/pages-1.img"); err != nil || string(raw) != memory {
		t.Errorf("%d bytes, %v", len(raw), err)
	}
	if ents, err := os.ReadDir(dir + "/to"); err != nil || len(ents) != 1 {
		t.Errorf("%v, %v", ents, err)
	}
}

// FuzzArchive: whatever an archive is, it is read or refused, and nothing is made outside of the directory.
func FuzzArchive(f *testing.F) {
	entry := func(name string, kind byte, text string) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		w.WriteHeader(&tar.Header{Name: name, Typeflag: kind, Linkname: "/", Size: int64(len(text))})
		w.Write([]byte(text))
		w.Close()
		return b.Bytes()
	}
	f.Add([]byte("text"))
	f.Add(entry("checkpoint/../../x", tar.TypeReg, "1"))
	f.Add(entry("checkpoint/..", tar.TypeReg, "1"))
	f.Add(entry("checkpoint/x", tar.TypeSymlink, ""))
	f.Add(entry("./checkpoint/pages-1.img", tar.TypeReg, "1"))
	f.Add(entry("config.dump", tar.TypeReg, "{}"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(dir+"/c.tar", raw, 0o600); err != nil {
			t.Fatal(err)
		}
		Read(dir + "/c.tar")
		Unpack(t.Context(), dir+"/c.tar", dir+"/a/b")
		for _, d := range []string{dir, dir + "/a"} {
			ents, err := os.ReadDir(d)
			for _, e := range ents {
				if n := e.Name(); n != "c.tar" && n != "a" && n != "b" {
					t.Errorf("%s was made, %v", n, err)
				}
			}
		}
		filepath.WalkDir(dir, func(p string, e os.DirEntry, err error) error {
			if err == nil && e.Type()&os.ModeSymlink != 0 {
				t.Errorf("a link was made: %s", p)
			}
			return nil
		})
	})
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
