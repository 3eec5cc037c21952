package pod

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A container's root, in which links lead everywhere, beside a file of the host.
func containerRoot(t *testing.T) (root string) {
	t.Helper()
	host := t.TempDir()
	root = filepath.Join(host, "root")
	for _, d := range []string{"run/app", "var", "data/below"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{"../secret": "the host's", "run/app/file": "in run", "data/below/x": "x", "secret": "the container's"} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	for name, to := range map[string]string{
		"var/run": "/run", "up": "../../../../secret", "abs": "/secret", "host": filepath.Join(host, "secret"),
		"loop": "loop", "data/link": "below/x", "data/out": "/secret", "self": "/proc/self/root",
	} {
		if err := os.Symlink(to, filepath.Join(root, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(root, "data/pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	return root
}

// Links are resolved as the container's own processes do, and lead nowhere else.
func TestOpenInRoot(t *testing.T) {
	root := containerRoot(t)
	for path, want := range map[string]string{
		"/run/app/file": "in run", "/var/run/app/file": "in run", "/var/run/../run/app/file": "in run", "/up": "the container's", "/abs": "the container's",
		"/../../secret": "the container's", "/data/out": "the container's",
		"/host": "ENOENT", "/nothing": "ENOENT", "/self/secret": "ENOENT", "/loop": "ELOOP", "/secret/x": "ENOTDIR",
	} {
		f, err := openInRoot(root, path)
		if err != nil {
			if errno := unix.Errno(0); !errors.As(err, &errno) || unix.ErrnoName(errno) != want {
				t.Errorf("%s: %v, want %s", path, err, want)
			}
			continue
		}
		if b, err := os.ReadFile(again(f)); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v; want %s", path, b, err, want)
		}
		f.Close()
	}
	// A magic link (proc(5)) would lead out whatever the root is.
	if f, err := openInRoot("/", "/proc/self/root/etc"); err == nil {
		f.Close()
		t.Error("a magic link was followed")
	}
}

func TestArchive(t *testing.T) {
	root := containerRoot(t)
	pack := func(path, base string) (names []string, err error) {
		f, err := openInRoot(root, path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		var b bytes.Buffer
		tw := tar.NewWriter(&b)
		if err := archiveTree(context.Background(), f, base, &archiver{Writer: tw}); err != nil {
			return nil, err
		}
		if err := tw.Close(); err != nil {
			t.Fatal(err)
		}
		for tr := tar.NewReader(&b); ; {
			h, err := tr.Next()
			if err == io.EOF {
				slices.Sort(names)
				return names, nil
			}
			if err != nil {
				t.Fatal(err)
			}
			text, _ := io.ReadAll(tr)
			names = append(names, h.Name+"|"+h.Linkname+string(text))
		}
	}
	for _, tt := range []struct{ path, base, want string }{
		{"/data", "data", "data/below/x|x data/below/| data/link|below/x data/out|/secret data/|"},
		{"/var/run/app", "app", "app/file|in run app/|"},
		{"/abs", "abs", "abs|the container's"},
	} {
		names, err := pack(tt.path, tt.base)
		if got := strings.Join(names, " "); err != nil || got != tt.want {
			t.Errorf("%s: %q, %v; want %q", tt.path, got, err, tt.want)
		}
	}
	if _, err := pack("/data/pipe", "pipe"); err == nil {
		t.Error("a pipe was read")
	}
}

func TestExtractInside(t *testing.T) {
	dir := containerRoot(t)
	for name, to := range map[string]string{"data/deep": "/run/app", "data/rel": "../run/app", "data/new-out": "/run/app/file", "data/dangling": "/nowhere/x", "data/climbs": "../../../../secret"} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	u := &unpacker{root: dir, to: "/data", links: make(map[string]bool)}
	for _, tt := range []struct {
		h    tar.Header
		bad  bool
		lead string // where in the container the text is afterwards
	}{
		{tar.Header{Name: "new", Typeflag: tar.TypeDir, Mode: 0o750}, false, ""},
		{tar.Header{Name: "new/file", Typeflag: tar.TypeReg, Mode: 0o604, Uid: 7, Gid: 8, Size: 4}, false, "data/new/file"},
		{tar.Header{Name: "new/link", Typeflag: tar.TypeSymlink, Linkname: "/secret"}, false, ""},
		{tar.Header{Name: "new/link/x", Typeflag: tar.TypeReg, Size: 4}, true, ""},
		{tar.Header{Name: "new/link", Typeflag: tar.TypeReg, Size: 4}, false, "data/new/link"}, // the archive's own link is replaced
		// Links that were there, absolute and relative, lead where they lead in the container.
		{tar.Header{Name: "deep/a", Typeflag: tar.TypeReg, Size: 4}, false, "run/app/a"},
		{tar.Header{Name: "rel/b", Typeflag: tar.TypeReg, Size: 4}, false, "run/app/b"},
		{tar.Header{Name: "deep", Typeflag: tar.TypeDir}, false, ""},
		{tar.Header{Name: "new-out", Typeflag: tar.TypeReg, Size: 4}, false, "run/app/file"},
		{tar.Header{Name: "dangling", Typeflag: tar.TypeReg, Size: 4}, false, "data/dangling"},
		{tar.Header{Name: "climbs", Typeflag: tar.TypeReg, Size: 4}, false, "secret"},
		{tar.Header{Name: "pipe", Typeflag: tar.TypeDir}, true, ""},
		{tar.Header{Name: "../file", Typeflag: tar.TypeReg, Size: 4}, true, ""},
		{tar.Header{Name: "/file", Typeflag: tar.TypeReg, Size: 4}, true, ""},
		{tar.Header{Name: "null", Typeflag: tar.TypeChar}, true, ""},
		{tar.Header{Name: "hard", Typeflag: tar.TypeLink, Linkname: "below/x"}, true, ""},
	} {
		if err := u.extract(&tt.h, strings.NewReader("text")); (err != nil) != tt.bad {
			t.Errorf("%s: %v", tt.h.Name, err)
		}
		if tt.lead != "" {
			if b, err := os.ReadFile(filepath.Join(dir, tt.lead)); err != nil || string(b) != "text" {
				t.Errorf("%s: %s is %q %v", tt.h.Name, tt.lead, b, err)
			}
		}
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dir, "data/new/file"), &st); err != nil || st.Uid != 7 || st.Gid != 8 || fs.FileMode(st.Mode).Perm() != 0o604 || st.Size != 4 {
		t.Errorf("%+v, %v", st, err)
	}
	if fi, err := os.Lstat(filepath.Join(dir, "data/deep")); err != nil || fi.Mode()&fs.ModeSymlink == 0 {
		t.Errorf("a link to a directory: %v %v", fi, err)
	}
	if b, _ := os.ReadFile(filepath.Join(dir, "../secret")); string(b) != "the host's" {
		t.Errorf("the host's file is %q", b)
	}
}
