package image

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/image/imagetest"
)

// TestArchives: what is exported in any format is imported elsewhere as the same
// image, by us and by another implementation.
func TestArchives(t *testing.T) {
	s := open(t, t.TempDir())
	ref, _ := serve(t, build(t,
		layerOf(imagetest.Dir("a"), imagetest.File("a/f", "one")),
		imagetest.Layer{Entries: []imagetest.Entry{imagetest.Dir("a"), imagetest.File("a/g", "two")}, Compression: "zstd"},
	))
	img, err := s.Pull(t.Context(), ref, PullOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Tag(t.Context(), ref, "example.com/x:2"); err != nil {
		t.Fatal(err)
	}
	for _, f := range []Format{OCIArchive, DockerArchive} {
		t.Run(string(f), func(t *testing.T) {
			var a, b bytes.Buffer
			if err := s.Export(t.Context(), []string{"example.com/x:2", ref}, &a, f); err != nil {
				t.Fatal(err)
			}
			if err := s.Export(t.Context(), []string{"example.com/x:2", ref}, &b, f); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(a.Bytes(), b.Bytes()) {
				t.Error("two exports differ")
			}
			other := open(t, t.TempDir())
			got, err := other.Import(t.Context(), &a, ImportOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if len(got) != 1 || got[0].ID != img.ID || got[0].Manifest != img.Manifest || len(got[0].Names) != 2 {
				t.Errorf("imported %+v", got)
			}
			root := mountImage(t, other, "example.com/x:2")
			if b, err := os.ReadFile(root + "/a/g"); err != nil || string(b) != "two" {
				t.Errorf("%q, %v", b, err)
			}
			file := filepath.Join(t.TempDir(), "archive.tar")
			if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.Command("gzip", "-k", file).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			for _, p := range []string{file, file + ".gz"} {
				if got, err := open(t, t.TempDir()).ImportPath(t.Context(), p, ImportOptions{}); err != nil || got[0].ID != img.ID {
					t.Errorf("%s: %v, %v", p, got, err)
				}
			}
			if f == DockerArchive {
				tag, err := name.NewTag("example.com/x:2")
				if err != nil {
					t.Fatal(err)
				}
				theirs, err := tarball.ImageFromPath(file, &tag)
				if err != nil {
					t.Fatal(err)
				}
				if id, err := theirs.ConfigName(); err != nil || id.String() != img.ID.String() {
					t.Errorf("others read %v, %v", id, err)
				}
			}
		})
	}
	t.Run("directory", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "layout")
		if err := s.ExportDir(t.Context(), []string{img.ID.String()}, dir); err != nil {
			t.Fatal(err)
		}
		if err := s.ExportDir(t.Context(), []string{img.ID.String()}, dir); !errors.Is(err, errs.AlreadyExists) {
			t.Errorf("into a full directory: %v", err)
		}
		if got, err := open(t, t.TempDir()).ImportPath(t.Context(), dir, ImportOptions{}); err != nil || got[0].ID != img.ID {
			t.Errorf("%v, %v", got, err)
		}
		p, err := layout.FromPath(dir)
		if err != nil {
			t.Fatal(err)
		}
		if idx, err := p.ImageIndex(); err != nil {
			t.Error(err)
		} else if m, err := idx.IndexManifest(); err != nil || m.Manifests[0].Digest.String() != img.Manifest.String() {
			t.Errorf("others read %v, %v", m, err)
		}
	})
}

// TestImportOldDocker: `docker save` before version 25: layers as plain tar files,
// equal ones by symlink.
func TestImportOldDocker(t *testing.T) {
	var layer bytes.Buffer
	if err := imagetest.Tar(&layer, []imagetest.Entry{imagetest.File("f", "x")}); err != nil {
		t.Fatal(err)
	}
	diff := digest.FromBytes(layer.Bytes())
	cfg, err := json.Marshal(ocispec.Image{Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}, RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{diff, diff}}})
	if err != nil {
		t.Fatal(err)
	}
	var a bytes.Buffer
	err = imagetest.Tar(&a, []imagetest.Entry{
		imagetest.Dir("one"), imagetest.File("one/layer.tar", layer.String()),
		imagetest.Dir("two"), imagetest.Symlink("two/layer.tar", "../one/layer.tar"),
		imagetest.File("c.json", string(cfg)),
		imagetest.File("manifest.json", `[{"Config":"c.json","RepoTags":["app:1"],"Layers":["one/layer.tar","two/layer.tar"]}]`),
	})
	if err != nil {
		t.Fatal(err)
	}
	s := open(t, t.TempDir())
	got, err := s.Import(t.Context(), &a, ImportOptions{Platform: "amd64"})
	if err != nil {
		t.Fatal(err)
	}
	if got[0].Names[0] != "docker.io/library/app:1" || got[0].ID != digest.FromBytes(cfg) {
		t.Errorf("%+v", got)
	}
	if dirs, err := s.LayerDirs(t.Context(), got[0].ID); err != nil || len(dirs) != 1 {
		t.Errorf("the same layer twice: %v, %v", dirs, err)
	}
	root := mountImage(t, s, "app:1")
	if b, err := os.ReadFile(root + "/f"); err != nil || string(b) != "x" {
		t.Errorf("%q, %v", b, err)
	}
}

// TestImportHostile: archives that are none, or lie.
func TestImportHostile(t *testing.T) {
	tarOf := func(e ...imagetest.Entry) []byte {
		var b bytes.Buffer
		if err := imagetest.Tar(&b, e); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	index := `{"schemaVersion":2,"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:` + strings.Repeat("0", 64) + `","size":2}]}`
	for what, c := range map[string]struct {
		data []byte
		kind error
	}{
		"garbage":            {bytes.Repeat([]byte("garbage "), 200), errs.Invalid},
		"empty":              {nil, errs.Invalid},
		"no image":           {tarOf(imagetest.File("README", "x")), errs.Invalid},
		"bad index":          {tarOf(imagetest.File("index.json", "{")), errs.Invalid},
		"missing blob":       {tarOf(imagetest.File("index.json", index)), errs.NotFound},
		"wrong blob":         {tarOf(imagetest.File("index.json", index), imagetest.File("blobs/sha256/"+strings.Repeat("0", 64), "{}")), errs.Corrupt},
		"config elsewhere":   {tarOf(imagetest.File("manifest.json", `[{"Config":"../../../../etc/passwd","Layers":[]}]`)), errs.NotFound},
		"symlink loop":       {tarOf(imagetest.Symlink("a", "b"), imagetest.Symlink("b", "a"), imagetest.File("manifest.json", `[{"Config":"a","Layers":[]}]`)), errs.Invalid},
		"symlink out":        {tarOf(imagetest.Symlink("a", "/etc/passwd"), imagetest.File("manifest.json", `[{"Config":"a","Layers":[]}]`)), errs.NotFound},
		"layer count":        {tarOf(imagetest.File("a", `{"rootfs":{"type":"layers","diff_ids":["sha256:`+strings.Repeat("0", 64)+`"]}}`), imagetest.File("manifest.json", `[{"Config":"a","Layers":[]}]`)), errs.Invalid},
		"huge configuration": {tarOf(imagetest.File("a", strings.Repeat(" ", maxConfig+1)), imagetest.File("manifest.json", `[{"Config":"a","Layers":[]}]`)), errs.Invalid},
	} {
		t.Run(what, func(t *testing.T) {
			s := open(t, t.TempDir())
			if _, err := s.Import(t.Context(), bytes.NewReader(c.data), ImportOptions{}); !errors.Is(err, c.kind) {
				t.Errorf("error %v, want kind %v", err, c.kind)
			}
			checkEmpty(t, s)
		})
	}
	t.Run("symlink out of a directory", func(t *testing.T) {
		s, dir := open(t, t.TempDir()), t.TempDir()
		if err := os.Symlink("/etc/passwd", filepath.Join(dir, "index.json")); err != nil {
			t.Fatal(err)
		}
		if _, err := s.ImportPath(t.Context(), dir, ImportOptions{}); !errors.Is(err, errs.Invalid) {
			t.Errorf("error %v", err)
		}
		checkEmpty(t, s)
	})
}
