package migrate

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/vbatts/tar-split/tar/asm"
	"github.com/vbatts/tar-split/tar/storage"
)

// crioStore makes a store in the documented layout, with one image of two layers,
// and returns its directory and the layers' archives.
func crioStore(t testing.TB) (root string, id string, layers [][]byte) {
	t.Helper()
	root = t.TempDir()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	write := func(name string, data []byte) {
		path := filepath.Join(root, name)
		must(os.MkdirAll(filepath.Dir(path), 0o755))
		must(os.WriteFile(path, data, 0o600))
	}
	asJSON := func(v any) []byte {
		data, err := json.Marshal(v)
		must(err)
		return data
	}
	var config ocispec.Image
	config.OS, config.Architecture = "linux", "amd64"
	var all []map[string]any
	parent := ""
	for i, files := range []map[string]string{{"etc/a": "lower", "etc/empty": ""}, {"etc/b": strings.Repeat("upper", 1000)}} {
		var archive bytes.Buffer
		tw := tar.NewWriter(&archive)
		must(tw.WriteHeader(&tar.Header{Name: "etc/", Typeflag: tar.TypeDir, Mode: 0o755}))
		id := digest.FromString(string(rune('a' + i))).Encoded()
		for name, text := range files {
			must(tw.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o640, Size: int64(len(text))}))
			_, err := io.WriteString(tw, text)
			must(err)
			write("overlay/"+id+"/diff/"+name, []byte(text))
		}
		must(tw.Close())
		var split bytes.Buffer
		z := gzip.NewWriter(&split)
		in, done, err := asm.NewInputTarStreamWithDone(bytes.NewReader(archive.Bytes()), storage.NewJSONPacker(z), storage.NewDiscardFilePutter())
		must(err)
		_, err = io.Copy(io.Discard, in)
		must(err)
		must(in.Close())
		must(<-done)
		must(z.Close())
		write("overlay-layers/"+id+".tar-split.gz", split.Bytes())
		d := digest.FromBytes(archive.Bytes())
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, d)
		all = append(all, map[string]any{"id": id, "parent": parent, "diff-digest": d, "diff-size": archive.Len()})
		layers = append(layers, archive.Bytes())
		parent = id
	}
	data := asJSON(config)
	id = digest.FromBytes(data).Encoded()
	write("overlay-images/"+id+"/"+bigData("sha256:"+id), data)
	write("overlay-images/images.json", asJSON([]map[string]any{{"id": id, "names": []string{"reg.example/a:1", "reg.example/a@sha256:" + strings.Repeat("0", 64)}, "layer": parent}}))
	write("overlay-layers/layers.json", asJSON(all))
	return root, id, layers
}

func TestCRIO(t *testing.T) {
	root, id, layers := crioStore(t)
	images, err := CRIO(t.Context(), root)
	if err != nil || len(images) != 1 || images[0].Missing != nil {
		t.Fatalf("%+v, %v", images, err)
	}
	img := &images[0]
	if len(img.Names) != 1 || img.Names[0] != "reg.example/a:1" || img.Digest.Encoded() != id {
		t.Errorf("%+v", img)
	}
	var out bytes.Buffer
	if err := img.WriteArchive(t.Context(), &out); err != nil {
		t.Fatal(err)
	}
	blobs := make(map[string][]byte)
	for tr := tar.NewReader(&out); ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if blobs[h.Name], err = io.ReadAll(tr); err != nil {
			t.Fatal(err)
		}
	}
	for i, l := range layers {
		if !bytes.Equal(blobs["blobs/sha256/"+digest.FromBytes(l).Encoded()], l) {
			t.Errorf("layer %d is not what it was", i)
		}
	}
	if len(blobs) != 6 { // layout, index, manifest, configuration, two layers
		t.Errorf("%d files", len(blobs))
	}
}

// TestCRIOBad: a store that is damaged or made to deceive gives an error, and
// nothing of what lies outside of it.
func TestCRIOBad(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("lower"), 0o600); err != nil { // even with the right content
		t.Fatal(err)
	}
	lower := digest.FromString("a").Encoded()
	for _, tt := range []struct {
		what    string
		spoil   func(root string) error
		listed  bool // the image says so before it is read
		message string
	}{
		{"a file that leads out", func(root string) error {
			p := root + "/overlay/" + lower + "/diff/etc/a"
			os.Remove(p)
			return os.Symlink(secret, p)
		}, false, "no regular file"},
		{"a directory that leads out", func(root string) error {
			p := root + "/overlay/" + lower + "/diff/etc"
			os.RemoveAll(p)
			dir := filepath.Dir(secret)
			os.WriteFile(dir+"/a", []byte("lower"), 0o600)
			return os.Symlink(dir, p)
		}, false, "escapes"},
		{"a changed file", func(root string) error {
			return os.WriteFile(root+"/overlay/"+lower+"/diff/etc/a", []byte("LOWER"), 0o600)
		}, false, "layer " + lower},
		{"a shorter file", func(root string) error {
			return os.WriteFile(root+"/overlay/"+lower+"/diff/etc/a", []byte("low"), 0o600)
		}, false, "layer " + lower},
		{"no tar-split", func(root string) error { return os.Remove(root + "/overlay-layers/" + lower + ".tar-split.gz") }, true, "put together"},
		{"no layer", func(root string) error { return os.WriteFile(root+"/overlay-layers/layers.json", []byte("[]"), 0o600) }, true, "not in the store"},
		{"a layer above itself", func(root string) error {
			upper := digest.FromString("b").Encoded()
			return os.WriteFile(root+"/overlay-layers/layers.json", []byte(`[{"id":"`+upper+`","parent":"`+upper+`"}]`), 0o600)
		}, true, "not in the store"},
		{"no configuration", func(root string) error {
			images, _ := filepath.Glob(root + "/overlay-images/*/=*")
			return os.WriteFile(images[0], []byte("{}"), 0o600)
		}, true, "another digest"},
	} {
		t.Run(tt.what, func(t *testing.T) {
			root, _, _ := crioStore(t)
			if err := tt.spoil(root); err != nil {
				t.Fatal(err)
			}
			images, err := CRIO(t.Context(), root)
			if err != nil || len(images) != 1 {
				t.Fatal(images, err)
			}
			err = images[0].Missing
			if (err != nil) != tt.listed {
				t.Fatalf("missing: %v", err)
			}
			if err == nil {
				err = images[0].WriteArchive(t.Context(), io.Discard)
			}
			if err == nil || !strings.Contains(err.Error(), tt.message) {
				t.Errorf("%v; want %q", err, tt.message)
			}
		})
	}
}

func TestBigData(t *testing.T) {
	for in, want := range map[string]string{"manifest": "manifest", "sha256:0": "=c2hhMjU2OjA=", "a/b": "=YS9i", "Up": "=VXA="} {
		if got := bigData(in); got != want {
			t.Errorf("%s: %s", in, got)
		}
	}
}
