package pod

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// A subPath is exactly that file or directory, and nothing that lies outside the volume.
func TestMountBeneath(t *testing.T) {
	top := t.TempDir()
	volume := filepath.Join(top, "volume")
	for _, d := range []string{"volume/dir", "outside"} {
		if err := os.MkdirAll(filepath.Join(top, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{"volume/file": "file", "volume/dir/x": "x", "outside/secret": "secret"} {
		if err := os.WriteFile(filepath.Join(top, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, to := range map[string]string{"out": "../outside", "abs": top + "/outside", "in": "dir", "root": "/", "self": "/proc/self/cwd"} {
		if err := os.Symlink(to, filepath.Join(volume, name)); err != nil {
			t.Fatal(err)
		}
	}
	for i, tt := range []struct {
		sub  string
		file string // seen at the target: "" is the target itself
		want string
		bad  bool
	}{
		{"file", "", "file", false}, {"dir", "x", "x", false}, {"dir/x", "", "x", false}, {"in", "x", "x", false}, {"in/x", "", "x", false}, {"./dir", "x", "x", false},
		{"out", "", "", true}, {"out/secret", "", "", true}, {"abs", "", "", true}, {"abs/secret", "", "", true}, {"root", "", "", true}, {"self", "", "", true},
		{"../outside", "", "", true}, {"dir/../../outside", "", "", true}, {"/dir", "", "", true}, {"file/x", "", "", true}, {"out/new", "", "", true},
	} {
		target := filepath.Join(top, "targets", itoa(int64(i)))
		err := mountBeneath(volume, tt.sub, target)
		if err == nil {
			t.Cleanup(func() { unix.Unmount(target, unix.MNT_DETACH) })
		}
		if (err != nil) != tt.bad {
			t.Errorf("%s: %v", tt.sub, err)
			continue
		}
		if tt.bad {
			continue
		}
		if b, err := os.ReadFile(filepath.Join(target, tt.file)); err != nil || string(b) != tt.want {
			t.Errorf("%s: %q, %v", tt.sub, b, err)
		}
	}
	// What is missing is made, with the volume's mode.
	if err := os.Chmod(volume, 0o770|os.ModeSetgid); err != nil {
		t.Fatal(err)
	}
	target := filepath.Join(top, "targets", "new")
	if err := mountBeneath(volume, "new/below", target); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(target, unix.MNT_DETACH) })
	if fi, err := os.Stat(filepath.Join(volume, "new/below")); err != nil || fi.Mode().Perm() != 0o770 {
		t.Errorf("%v, %v", fi, err)
	}
	if ents, _ := os.ReadDir(filepath.Join(top, "outside")); len(ents) != 1 {
		t.Errorf("made outside: %v", ents)
	}
	// A link that is put in place of the directory afterwards changes nothing.
	if err := os.Rename(filepath.Join(volume, "dir"), filepath.Join(volume, "was")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../outside", filepath.Join(volume, "dir")); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(filepath.Join(top, "targets", "1", "x")); err != nil || string(b) != "x" {
		t.Errorf("%q, %v", b, err)
	}
}
