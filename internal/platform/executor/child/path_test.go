package child

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/platform/namespace"
)

// tree makes a hostile root filesystem from a description: a line is "d NAME", "f NAME" or
// "l NAME TARGET". What cannot be made is left out. os.Root keeps the making of it inside.
func tree(root *os.Root, text string) {
	for line := range strings.Lines(text) {
		kind, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		name, target, _ := strings.Cut(rest, " ")
		switch kind {
		case "d":
			root.MkdirAll(name, 0o755)
		case "f":
			if f, err := root.Create(name); err == nil {
				f.Close()
			}
		case "l":
			root.Symlink(target, name)
		}
	}
}

// inside makes a root from a description, with a proc filesystem on /proc, has path opened
// or made in it, and tells what is wrong: with what was reached, or with what was made
// elsewhere.
func inside(t *testing.T, text, path string, dir bool) (wrong string) {
	t.Helper()
	if !dir {
		path = filepath.Clean(path) // as the parent does; a file has nothing below it
	}
	place := t.TempDir()
	outside, at := filepath.Join(place, "outside"), filepath.Join(place, "root")
	for _, d := range []string{outside, at, at + "/proc"} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	text = strings.ReplaceAll(text, "OUTSIDE", outside)
	root, err := os.OpenRoot(at)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	tree(root, text)
	err = namespace.OnThread(func() error {
		// In a mount namespace of this thread's own, so that nothing is left behind.
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return err
		}
		if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
			return err
		}
		if err := unix.Mount(at, at, "", unix.MS_BIND, ""); err != nil {
			return err
		}
		if err := unix.Mount("proc", at+"/proc", "proc", unix.MS_NOSUID, ""); err != nil {
			return err
		}
		fd, err := unix.Open(at, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		s := &state{proc: -1, root: fd}
		got, f := s.makePath(path, dir, 0o755, 0)
		if f == nil {
			to, err := os.Readlink(fmt.Sprintf("/proc/thread-self/fd/%d", got))
			var st, again unix.Stat_t
			unix.Fstat(got, &st)
			unix.Close(got)
			switch {
			case err != nil:
				return err
			case to != at && !strings.HasPrefix(to, at+"/"):
				wrong = "it leads to " + to
			case (st.Mode&unix.S_IFMT == unix.S_IFDIR) != dir:
				wrong = fmt.Sprintf("%s is of the kind %o", to, st.Mode&unix.S_IFMT)
			}
			if fd, err := s.open(path, unix.O_PATH, 0); err != nil {
				wrong += fmt.Sprintf("; what was made is not found again: %v", err)
			} else {
				if unix.Fstat(fd, &again); (again.Ino != st.Ino || again.Dev != st.Dev) && !strings.HasPrefix(to, at+"/proc/") {
					wrong += "; it is something else when it is opened again"
				}
				unix.Close(fd)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if list, _ := os.ReadDir(outside); len(list) > 0 {
		wrong += fmt.Sprintf("; %v was made outside", list)
	}
	return wrong
}

// FuzzMakePath: whatever links an image has, no path of the plan leaves the root, and
// what is made for one is what the same path then leads to.
func FuzzMakePath(f *testing.F) {
	for _, seed := range []struct{ tree, path string }{
		{"d a/b", "/a/b/c"},
		{"l a OUTSIDE", "/a/x"},
		{"l a ../../../../../../OUTSIDE", "/a/x/y"},
		{"d a\nl a/b ..\nl a/c b/../../x", "/a/c/d"},
		{"l a b\nl b a", "/a/x"},
		{"l a /proc/self/root\nl b /proc/self/cwd", "/a/OUTSIDE/x"},
		{"l a /proc/thread-self/fd/3\nd b", "/a/../OUTSIDE"},
		{"l var/run /run\nd var\nl var/run ../run", "/var/run/secrets/x"},
		{"l a .\nl b a/a/a/a", "/b/b/b/c"},
		{"l a missing/../../x", "/a"},
		{"f a", "/a/b"},
		{"l a /", "/a/a/a/../b"},
		{"l proc2 proc\nl x proc2/self/fd", "/x/0"},
	} {
		f.Add(seed.tree, seed.path, true)
		f.Add(seed.tree, seed.path, false)
	}
	f.Fuzz(func(t *testing.T, text, path string, dir bool) {
		if strings.IndexByte(text+path, 0) >= 0 || len(text)+len(path) > 4000 {
			return
		}
		if wrong := inside(t, text, "/"+path, dir); wrong != "" {
			t.Errorf("%s in\n%s\n%s", path, text, wrong)
		}
	})
}

// TestPathsStayInside is the same for trees that are made of what leads astray.
func TestPathsStayInside(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	names := []string{"a", "b", "c", "a/b", "a/c", "b/a", "c/b/a"}
	parts := []string{"a", "b", "c", "..", "..", ".", "/", "proc/self/root", "proc/self/fd/4", "proc/self/cwd", "OUTSIDE", "../../../../../..", "new"}
	join := func() string {
		var l []string
		for range 1 + r.IntN(4) {
			l = append(l, parts[r.IntN(len(parts))])
		}
		p := strings.Join(l, "/")
		if r.IntN(3) == 0 {
			p = "/" + p
		}
		return p
	}
	for range 400 {
		var text strings.Builder
		for range r.IntN(8) {
			switch name := names[r.IntN(len(names))]; r.IntN(4) {
			case 0:
				fmt.Fprintf(&text, "d %s\n", name)
			case 1:
				fmt.Fprintf(&text, "f %s\n", name)
			default:
				fmt.Fprintf(&text, "l %s %s\n", name, join())
			}
		}
		path, dir := "/"+join(), r.IntN(2) == 0
		if wrong := inside(t, text.String(), path, dir); wrong != "" {
			t.Fatalf("%s (directory: %v) in\n%s\n%s", path, dir, text.String(), wrong)
		}
	}
}
