package image

import (
	"errors"
	"io"
	"log"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/orlop-io/orlop/internal/base/errs"
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

// TestPullIndex pulls from another implementation's registry, which holds an index,
// and chooses the platform.
func TestPullIndex(t *testing.T) {
	srv := httptest.NewServer(registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	defer srv.Close()
	host := strings.TrimPrefix(srv.URL, "http://")
	var index v1.ImageIndex = mutate.IndexMediaType(empty.Index, types.OCIImageIndex)
	ids := make(map[string]string)
	for _, arch := range []string{"amd64", "arm64"} {
		img, err := random.Image(4096, 3)
		if err != nil {
			t.Fatal(err)
		}
		cfg, err := img.ConfigFile()
		if err != nil {
			t.Fatal(err)
		}
		cfg = cfg.DeepCopy()
		cfg.OS, cfg.Architecture = "linux", arch
		if img, err = mutate.ConfigFile(img, cfg); err != nil {
			t.Fatal(err)
		}
		id, err := img.ConfigName()
		if err != nil {
			t.Fatal(err)
		}
		ids[arch] = id.String()
		index = mutate.AppendManifests(index, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}}})
	}
	ref, err := name.ParseReference(host + "/team/app:2")
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.WriteIndex(ref, index); err != nil {
		t.Fatal(err)
	}
	top, err := index.Digest()
	if err != nil {
		t.Fatal(err)
	}
	s := open(t, t.TempDir())
	for _, arch := range []string{"amd64", "arm64"} {
		img, err := s.Pull(t.Context(), host+"/team/app:2", PullOptions{Platform: "linux/" + arch})
		if err != nil {
			t.Fatal(err)
		}
		if img.ID.String() != ids[arch] || img.Platform != "linux/"+arch || len(img.Layers) != 3 {
			t.Errorf("%s: %+v", arch, img)
		}
		if want := host + "/team/app@" + top.String(); len(img.Digests) != 1 || img.Digests[0] != want {
			t.Errorf("digests %q, want %s", img.Digests, want)
		}
	}
	if _, err := s.Pull(t.Context(), host+"/team/app:2", PullOptions{Platform: "linux/s390x"}); !errors.Is(err, errs.NotFound) || !strings.Contains(err.Error(), "linux/arm64") {
		t.Errorf("a platform that is not there: %v", err)
	}
	if _, err := s.Pull(t.Context(), host+"/team/nothing:2", PullOptions{}); !errors.Is(err, errs.NotFound) {
		t.Errorf("no such image: %v", err)
	}
	bytes, inodes, err := s.Usage(t.Context())
	if err != nil || bytes == 0 || inodes < 10 {
		t.Errorf("usage %d bytes, %d inodes, %v", bytes, inodes, err)
	}
}
