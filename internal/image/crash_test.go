package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/orlop-io/orlop/internal/image/imagetest"
	"github.com/orlop-io/orlop/test/programs"
)

// steps are the acknowledgements of testdata/crash with the names that there are
// after each. REG stands for the registry.
var steps = []struct {
	ack   string
	names []string
}{
	{"open", nil},
	{"pull", []string{"REG/one:1"}},
	{"pack", []string{"REG/one:1", "docker.io/library/packed:latest"}},
	{"import", []string{"REG/one:1", "docker.io/library/imported:latest", "docker.io/library/packed:latest"}},
	{"tag", []string{"REG/one:1", "docker.io/library/imported:latest", "docker.io/library/packed:latest", "docker.io/library/tagged:latest"}},
	{"again", []string{"REG/one:1", "docker.io/library/imported:latest", "docker.io/library/packed:latest", "docker.io/library/tagged:latest"}},
	{"remove", []string{"docker.io/library/imported:latest", "docker.io/library/packed:latest", "docker.io/library/tagged:latest"}},
	{"pull two", []string{"REG/two:1", "docker.io/library/imported:latest", "docker.io/library/packed:latest", "docker.io/library/tagged:latest"}},
	{"untag", []string{"REG/two:1", "docker.io/library/imported:latest", "docker.io/library/packed:latest"}},
	{"prune", nil},
}

// TestCrash kills a process at every fault point of the store, each time that it
// passes it, and looks at what the next Open makes of what is left: nothing that
// was acknowledged is lost, what is there is whole, and nothing else is there.
func TestCrash(t *testing.T) {
	work := t.TempDir()
	built, remove, err := programs.Build(programs.Program{Package: "internal/image/testdata/crash", Tags: "faults"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(remove) // after the parallel tests
	bin := filepath.Join(built, "crash")
	out, err := exec.Command(bin, "points").Output()
	if err != nil {
		t.Fatal(err)
	}
	points := strings.Fields(string(out))
	if len(points) < 15 {
		t.Fatalf("points: %q", points)
	}

	lower := layerOf(imagetest.Dir("usr"), imagetest.Dir("usr/lib"), imagetest.File("usr/lib/a", "a"), imagetest.Symlink("lib", "usr/lib"))
	var reg imagetest.Registry
	// The second layer of "one" depends on the first.
	reg.Add("one", build(t, lower, layerOf(imagetest.File("lib/b", "b"), imagetest.Hardlink("c", "usr/lib/a"))))
	reg.Add("two", build(t, lower, layerOf(imagetest.Dir("usr"), imagetest.File("usr/d", "d"))))
	host := reg.Serve(t)
	dir, archive := filepath.Join(work, "pack"), filepath.Join(work, "archive.tar")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "x"), []byte("x"), 0o755); err != nil {
		t.Fatal(err)
	}
	makeArchive(t, archive)
	want := map[string]map[string]string{ // content by name's beginning
		host + "/one":               {"usr/lib/a": "a", "lib/b": "b", "c": "a"},
		host + "/two":               {"usr/lib/a": "a", "usr/d": "d"},
		"docker.io/library/packed":  {"x": "x"},
		"docker.io/library/tagged":  {"x": "x"},
		"docker.io/library/import":  {"i": "i"},
		"docker.io/library/another": nil,
	}

	for _, p := range points {
		t.Run(p, func(t *testing.T) {
			t.Parallel()
			reached := 0
			for n := 1; ; n++ {
				root := t.TempDir()
				cmd := exec.Command(bin, "run", root, host, dir, archive)
				cmd.Env = append(os.Environ(), fmt.Sprintf("ORLOP_FAULT=%s:%d", p, n))
				var stderr strings.Builder
				cmd.Stderr = &stderr
				out, err := cmd.Output()
				if err == nil {
					break // passed fewer times than n
				}
				var ee *exec.ExitError
				if !errors.As(err, &ee) || ee.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
					t.Fatalf("time %d: %v\n%s", n, err, stderr.String())
				}
				reached++
				acks := strings.Split(strings.TrimSpace(string(out)), "\n")
				if string(out) == "" {
					acks = nil
				}
				checkAfterCrash(t, fmt.Sprintf("time %d, after %q", n, acks), root, host, len(acks), want)
			}
			if reached == 0 {
				t.Error("nothing passes this point")
			}
		})
	}
}

func makeArchive(t *testing.T, file string) {
	t.Helper()
	s := open(t, t.TempDir())
	l := build(t, layerOf(imagetest.File("i", "i")))
	img, err := s.ImportPath(t.Context(), l.Dir, ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := s.Export(t.Context(), []string{img[0].ID.String()}, f, OCIArchive); err != nil {
		t.Fatal(err)
	}
}

func checkAfterCrash(t *testing.T, when, root, host string, acks int, want map[string]map[string]string) {
	t.Helper()
	s, closeStore := openAgain(t, root)
	defer closeStore()
	imgs, err := s.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, i := range imgs {
		names = append(names, i.Names...)
	}
	slices.Sort(names)
	// What was acknowledged is there; the operation that was cut short happened or
	// did not.
	possible := func(n int) []string {
		if n < 0 || n >= len(steps) {
			return nil
		}
		var out []string
		for _, x := range steps[n].names {
			out = append(out, strings.Replace(x, "REG", host, 1))
		}
		slices.Sort(out)
		return out
	}
	if !slices.Equal(names, possible(acks-1)) && !slices.Equal(names, possible(acks)) {
		t.Errorf("%s: images %q, want %q or %q", when, names, possible(acks-1), possible(acks))
	}
	for _, i := range imgs {
		for _, n := range i.Names {
			dirs, err := s.LayerDirs(t.Context(), i.ID)
			if err != nil {
				t.Errorf("%s: %s: %v", when, n, err)
				continue
			}
			mnt := mountDirs(t, dirs)
			for prefix, files := range want {
				for f, content := range files {
					if !strings.HasPrefix(n, prefix) {
						continue
					}
					if b, err := os.ReadFile(filepath.Join(mnt, f)); err != nil || string(b) != content {
						t.Errorf("%s: %s: %s: %q, %v", when, n, f, b, err)
					}
				}
			}
		}
	}
	checkConsistent(t, when, s)
}

// checkConsistent fails unless the store has exactly what its images need, whole.
func checkConsistent(t *testing.T, when string, s *Store) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	keys, blobs := s.reachable(s.st.images)
	dirs := make(map[string]bool)
	for k := range keys {
		l := s.st.layers[k]
		if l == nil {
			t.Errorf("%s: layer %s is needed and not here", when, k)
			continue
		}
		dirs[l.rec.Dir] = true
	}
	for _, img := range s.st.images {
		for _, b := range []blobRef{img.Config, img.Manifest} {
			if have := s.st.blobs[b.Digest]; have == nil || have.size != b.SizeBytes {
				t.Errorf("%s: blob %s is needed and not here", when, b.Digest)
			}
		}
	}
	err := filepath.WalkDir(s.dir("blobs/sha256"), func(p string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		data, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		if d := digest.FromBytes(data); d.Encoded() != e.Name() || !blobs[d] {
			t.Errorf("%s: blob %s has the digest %s, needed: %v", when, e.Name(), d, blobs[d])
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	for _, d := range []string{"layers", "tmp"} {
		left, err := os.ReadDir(s.dir(d))
		if err != nil {
			t.Error(err)
		}
		for _, e := range left {
			if d == "tmp" || !dirs[e.Name()] {
				t.Errorf("%s: left behind: %s/%s", when, d, e.Name())
			}
		}
	}
}

// openAgain opens a store that is closed before the test ends.
func openAgain(t *testing.T, root string) (*Store, func()) {
	t.Helper()
	db := openDB(t, root)
	s, err := Open(context.WithoutCancel(t.Context()), Options{Root: root, DB: db, Config: testConfig(root)})
	if err != nil {
		t.Fatal(err)
	}
	return s, func() {
		s.Close()
		db.Close()
	}
}
