package image

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/orlop-io/orlop/internal/image/imagetest"
)

// build writes an image of the layers.
func build(t testing.TB, layers ...imagetest.Layer) *imagetest.Layout {
	t.Helper()
	l, err := imagetest.Build(t.TempDir(), layers, nil)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func layerOf(entries ...imagetest.Entry) imagetest.Layer { return imagetest.Layer{Entries: entries} }

// serve serves the image as host/app:1 and returns that name.
func serve(t testing.TB, l *imagetest.Layout) (string, *imagetest.Registry) {
	t.Helper()
	var r imagetest.Registry
	r.Add("app", l)
	return r.Serve(t) + "/app:1", &r
}

func TestPull(t *testing.T) {
	s := open(t, t.TempDir())
	name, reg := serve(t, build(t,
		layerOf(imagetest.Dir("etc"), imagetest.File("etc/a", "lower"), imagetest.File("etc/gone", "x"), imagetest.Dir("d"), imagetest.File("d/hidden", "x")),
		layerOf(imagetest.Dir("etc"), imagetest.File("etc/a", "upper"), imagetest.Whiteout("etc", "gone"), imagetest.Dir("d"), imagetest.Opaque("d"), imagetest.File("d/seen", "x")),
		imagetest.Layer{Entries: []imagetest.Entry{imagetest.Dir("z"), imagetest.File("z/zstd", "z")}, Compression: "zstd"},
		imagetest.Layer{Entries: []imagetest.Entry{imagetest.Dir("z"), imagetest.File("z/plain", "p")}, Compression: "none"},
	))
	var states []ProgressState
	img, err := s.Pull(t.Context(), name, PullOptions{Progress: func(p Progress) { states = append(states, p.State) }})
	if err != nil {
		t.Fatal(err)
	}
	if !img.Unpacked || len(img.Layers) != 4 || len(img.Names) != 1 || img.Names[0] != name || len(img.Digests) != 1 {
		t.Errorf("image %+v", img)
	}
	if len(states) < 8 {
		t.Errorf("progress: %v", states)
	}
	root := mountImage(t, s, name)
	for path, want := range map[string]string{"etc/a": "upper", "d/seen": "x", "z/zstd": "z", "z/plain": "p"} {
		if b, err := os.ReadFile(filepath.Join(root, path)); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v", path, b, err)
		}
	}
	for _, path := range []string{"etc/gone", "d/hidden"} {
		if _, err := os.Lstat(filepath.Join(root, path)); !os.IsNotExist(err) {
			t.Errorf("%s is there: %v", path, err)
		}
	}
	before := len(reg.Requests())
	if _, err := s.Pull(t.Context(), name, PullOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := reg.Requests()[before:]; len(got) > 3 { // handshake (https is not spoken), ping, manifest
		t.Errorf("a second pull asked for %q", got)
	}
}
