package changes

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/platform/overlay"
)

// What has been done to the files of an overlay is in its upper directory, as Diff tells it: applied to
// another copy of what is below it makes the same tree.
func TestDiff(t *testing.T) {
	dir := t.TempDir()
	for path, text := range map[string]string{"a/keep": "1", "a/change": "1", "a/remove": "1", "b/one": "1", "b/two/deep": "1", "c/file": "1", "link/x": "1"} {
		put(t, filepath.Join(dir, "lower1", path), text)
	}
	for path, text := range map[string]string{"b/three": "2", "a/remove2": "2", "d/only": "2"} {
		put(t, filepath.Join(dir, "lower2", path), text)
	}
	for _, d := range []string{"upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	lower := []string{dir + "/lower1", dir + "/lower2"}
	f, err := overlay.Mount(overlay.Layers{Lower: lower, Upper: dir + "/upper", Work: dir + "/work"})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m := fmt.Sprintf("/proc/self/fd/%d", f.Fd())
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.WriteFile(m+"/a/change", []byte("changed"), 0o600))
	must(os.Remove(m + "/a/remove"))
	must(os.Remove(m + "/a/remove2"))
	must(os.RemoveAll(m + "/b"))
	put(t, m+"/b/new", "n") // opaque
	must(os.RemoveAll(m + "/c"))
	must(os.WriteFile(m+"/c", []byte("a file now"), 0o644))
	must(os.Link(m+"/a/change", m+"/again"))
	must(os.Symlink("/nowhere", m+"/sym"))
	must(unix.Mkfifo(m+"/fifo", 0o640))
	must(unix.Setxattr(m+"/a/change", "user.mark", []byte("x"), 0))
	put(t, m+"/hosts", "")

	var archive bytes.Buffer
	gone, err := Diff(&archive, dir+"/upper", lower, func(p string) bool { return p == "/hosts" })
	must(err)
	want := []string{"/a/remove", "/a/remove2", "/b/one", "/b/three", "/b/two"}
	if slices.Sort(gone); !slices.Equal(gone, want) {
		t.Errorf("gone: %v, want %v", gone, want)
	}
	raw := archive.Bytes()
	got := map[string]string{}
	for r := tar.NewReader(&archive); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		must(err)
		text, err := io.ReadAll(r)
		must(err)
		got[h.Name] = fmt.Sprintf("%c %s%s%s", h.Typeflag, h.Linkname, text, h.PAXRecords["SCHILY.xattr.user.mark"])
		for k := range h.PAXRecords {
			if strings.Contains(k, "overlay") {
				t.Errorf("%s has %s", h.Name, k)
			}
		}
	}
	for name, w := range map[string]string{"a/": "5 ", "a/change": "0 changedx", "again": "1 a/change", "b/": "5 ", "b/new": "0 n", "c": "0 a file now", "sym": "2 /nowhere", "fifo": "6 "} {
		if got[name] != w {
			t.Errorf("%s is %q, want %q", name, got[name], w)
		}
		delete(got, name)
	}
	if len(got) > 0 {
		t.Errorf("and %v", got)
	}

	for _, d := range []string{"upper2", "work2"} {
		must(os.Mkdir(filepath.Join(dir, d), 0o755))
	}
	other, err := overlay.Mount(overlay.Layers{Lower: lower, Upper: dir + "/upper2", Work: dir + "/work2"})
	must(err)
	defer other.Close()
	tree, err := os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", other.Fd()))
	must(err)
	defer tree.Close()
	for range 2 { // it can be done again
		must(Apply(tree, bytes.NewReader(raw), gone))
	}
	must(os.Remove(m + "/hosts"))
	if a, b := list(t, m), list(t, tree.Name()); a != b {
		t.Errorf("applied, the tree is\n%swant\n%s", b, a)
	}
}

// list tells of a tree's files what a program can see of them.
func list(t *testing.T, dir string) (s string) {
	t.Helper()
	err := filepath.WalkDir(dir+"/", func(p string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		s += fmt.Sprint(p[len(dir):], " ", info.Mode())
		if info.Mode().IsRegular() {
			text, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			s += fmt.Sprintf(" %q %d", text, info.Sys().(*syscall.Stat_t).Nlink)
		}
		s += "\n"
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// Whatever an archive says, nothing outside of the tree is touched, and no attribute or file of overlayfs is made.
func TestApplyHostile(t *testing.T) {
	for name, h := range map[string]tar.Header{
		"above":      {Name: "../x", Typeflag: tar.TypeReg},
		"link":       {Name: "x", Typeflag: tar.TypeLink, Linkname: "../../etc/passwd"},
		"through":    {Name: "out/x", Typeflag: tar.TypeReg},
		"whiteout":   {Name: "x", Typeflag: tar.TypeChar},
		"attribute":  {Name: "x", Typeflag: tar.TypeDir, PAXRecords: map[string]string{"SCHILY.xattr.trusted.overlay.redirect": "/"}},
		"other kind": {Name: "x", Typeflag: 'Z'},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			put(t, dir+"/tree/file", "1")
			if err := os.Symlink("..", dir+"/tree/out"); err != nil {
				t.Fatal(err)
			}
			var b bytes.Buffer
			w := tar.NewWriter(&b)
			if err := w.WriteHeader(&h); err != nil {
				t.Fatal(err)
			}
			w.Close()
			tree, err := os.OpenRoot(dir + "/tree")
			if err != nil {
				t.Fatal(err)
			}
			defer tree.Close()
			if err := Apply(tree, &b, nil); err == nil {
				t.Error("no error")
			}
			if err := Apply(tree, new(bytes.Buffer), []string{"/../tree"}); err == nil {
				t.Error("removed: no error")
			}
			if ents, err := os.ReadDir(dir); err != nil || len(ents) != 1 {
				t.Errorf("%v, %v", ents, err)
			}
			if _, err := os.Stat(dir + "/tree/file"); err != nil {
				t.Error(err)
			}
		})
	}
}

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
