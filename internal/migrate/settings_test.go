package migrate

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/orlop-io/orlop/internal/base/config"
	"github.com/orlop-io/orlop/internal/base/errs"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares with testdata/NAME.
func golden(t *testing.T, name string, s Settings, dir string) {
	t.Helper()
	var b strings.Builder
	b.Write(s.YAML)
	for _, n := range s.Notes {
		b.WriteString("# " + n.String() + "\n")
	}
	got := strings.ReplaceAll(b.String(), dir+"/", "")
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s: got\n%s\nwant\n%s", name, got, want)
	}
	// What is written must be taken, to the letter.
	if _, err := config.Parse(name, s.YAML); err != nil {
		t.Error(err)
	}
}

func TestContainerdSettings(t *testing.T) {
	for _, v := range []string{"v1", "v2", "v3"} {
		t.Run(v, func(t *testing.T) {
			s, err := ContainerdSettings("testdata/containerd-" + v + "/config.toml")
			if err != nil {
				t.Fatal(err)
			}
			golden(t, "containerd-"+v+".golden", s, "testdata")
		})
	}
	if _, err := ContainerdSettings("testdata/missing"); !errors.Is(err, errs.NotFound) {
		t.Errorf("%v", err)
	}
	bad := filepath.Join(t.TempDir(), "config.toml")
	for text, want := range map[string]string{"version = 9\n": ":1: version 9", "a = \n": ":1: "} {
		if err := os.WriteFile(bad, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := ContainerdSettings(bad); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestCRIOSettings(t *testing.T) {
	s, err := CRIOSettings("testdata/crio/crio.conf", "testdata/crio/registries.conf")
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "crio.golden", s, "testdata")
	if _, err := CRIOSettings("testdata/none", "testdata/none"); !errors.Is(err, errs.NotFound) {
		t.Errorf("%v", err)
	}
	bad := filepath.Join(t.TempDir(), "registries.conf")
	if err := os.WriteFile(bad, []byte("[[registry]]\nlocatoin = \"a\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := CRIOSettings("", bad); !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "registries.conf:2: unknown key") {
		t.Errorf("%v", err)
	}
}

func FuzzSettings(f *testing.F) {
	for _, name := range []string{"containerd-v1/config.toml", "containerd-v2/config.toml", "containerd-v3/config.toml", "crio/crio.conf", "crio/registries.conf"} {
		data, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(data))
	}
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, text string) {
		path := filepath.Join(dir, "f")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		for _, read := range []func() (Settings, error){
			func() (Settings, error) { return ContainerdSettings(path) },
			func() (Settings, error) { return CRIOSettings(path, "") },
			func() (Settings, error) { return CRIOSettings("", path) },
		} {
			if s, err := read(); errors.Is(err, errs.Internal) {
				t.Fatalf("%v\n%s", err, s.YAML)
			}
		}
	})
}
