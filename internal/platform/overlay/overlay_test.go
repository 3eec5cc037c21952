package overlay

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// mounted tells whether a mount below dir is in the mount table.
func mounted(t *testing.T, dir string) bool {
	t.Helper()
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	return strings.Contains(string(b), dir)
}

// TestMount: both ways of mounting show the lower layers merged, write to the
// upper one, and add nothing to the mount table.
func TestMount(t *testing.T) {
	ways := map[string]func(Layers) (*os.File, error){"fsconfig": mountByFsconfig, "namespace": mountInNamespace, "as it can be": Mount}
	if t.Logf("this kernel takes layers one by one: %t", TakesLayers()); !TakesLayers() {
		delete(ways, "fsconfig")
	}
	for name, mount := range ways {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			l := Layers{Upper: filepath.Join(root, "upper"), Work: filepath.Join(root, "work")}
			for _, d := range []string{"top", "middle", "bottom"} {
				l.Lower = append(l.Lower, filepath.Join(root, d))
			}
			for _, d := range append(l.Lower, l.Upper, l.Work) {
				if err := os.Mkdir(d, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			for path, data := range map[string]string{
				"bottom/gone": "x", "bottom/kept": "bottom", "bottom/dir/hidden": "x", "middle/dir/seen": "middle",
			} {
				p := filepath.Join(root, path)
				os.MkdirAll(filepath.Dir(p), 0o755)
				if err := os.WriteFile(p, []byte(data), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			top, err := os.Open(l.Lower[0])
			if err != nil {
				t.Fatal(err)
			}
			defer top.Close()
			if err := Whiteout(int(top.Fd()), "gone"); err != nil {
				t.Fatal(err)
			}
			if err := Whiteout(int(top.Fd()), "gone"); err != unix.EEXIST {
				t.Errorf("second whiteout: %v", err)
			}
			var st unix.Stat_t
			if err := unix.Lstat(filepath.Join(l.Lower[0], "gone"), &st); err != nil || !IsWhiteout(&st) {
				t.Errorf("not a whiteout: %v, %v", err, st.Mode)
			}
			dir, err := os.Open(filepath.Join(l.Lower[1], "dir"))
			if err != nil {
				t.Fatal(err)
			}
			defer dir.Close()
			if err := SetOpaque(int(dir.Fd())); err != nil {
				t.Fatal(err)
			}

			m, err := mount(l)
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			stat := func(path string) error {
				return unix.Fstatat(int(m.Fd()), path, &st, unix.AT_SYMLINK_NOFOLLOW)
			}
			for path, want := range map[string]error{"gone": unix.ENOENT, "kept": nil, "dir/seen": nil, "dir/hidden": unix.ENOENT} {
				if err := stat(path); err != want {
					t.Errorf("%s: %v, want %v", path, err, want)
				}
			}
			if err := unix.Mkdirat(int(m.Fd()), "new", 0o755); err != nil {
				t.Fatal(err)
			}
			if _, err := os.Stat(filepath.Join(l.Upper, "new")); err != nil {
				t.Errorf("not written to the upper directory: %v", err)
			}
			if mounted(t, root) {
				t.Error("the mount is in the mount table")
			}
		})
	}
}

// TestReadOnly: layers are shown merged where there is no upper one, by every way, without
// a place in the tree, and cannot be made writable; names that are long or have a comma or a
// colon take another way and are shown all the same.
func TestReadOnly(t *testing.T) {
	ways := map[string]func(Layers) (*os.File, error){"fsconfig": mountByFsconfig, "one option": mountByOneOption, "namespace": mountInNamespace, "as it can be": Mount}
	if !TakesLayers() {
		delete(ways, "fsconfig")
	}
	for name, mount := range ways {
		for _, dir := range []string{"plain", "co:lon", `back\slash`, "com,ma", strings.Repeat("long", 50)} {
			if long := len(dir) > 100; name == "one option" && (long || dir == "com,ma") || name == "fsconfig" && long {
				continue // Mount does not take that way then
			}
			t.Run(name+"/"+dir, func(t *testing.T) {
				root := filepath.Join(t.TempDir(), dir)
				l := Layers{Lower: []string{root + "/top", root + "/bottom"}}
				for _, d := range l.Lower {
					if err := os.MkdirAll(d, 0o755); err != nil {
						t.Fatal(err)
					}
					for _, f := range []string{"both", "only in " + filepath.Base(d)} {
						if err := os.WriteFile(filepath.Join(d, f), []byte(d), 0o644); err != nil {
							t.Fatal(err)
						}
					}
				}
				m, err := mount(l)
				if err != nil {
					t.Fatal(err)
				}
				defer m.Close()
				for f, want := range map[string]string{"both": l.Lower[0], "only in top": l.Lower[0], "only in bottom": l.Lower[1]} {
					if b, err := os.ReadFile(filepath.Join("/proc/self/fd", strconv.Itoa(int(m.Fd())), f)); err != nil || string(b) != want {
						t.Errorf("%s: %q, %v, want %q", f, b, err, want)
					}
				}
				if err := unix.Mkdirat(int(m.Fd()), "new", 0o755); err != unix.EROFS {
					t.Errorf("mkdir: %v, want EROFS", err)
				}
				if mounted(t, root) {
					t.Error("the mount is in the mount table")
				}
			})
		}
	}
}
