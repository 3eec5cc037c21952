package checkpoint

import (
	"errors"
	"os"
	"testing"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// A directory is as its manifest says, or it is damaged.
func TestManifest(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(dir+"/"+name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("pages-1.img", "memory")
	write("dump.log", "is written to")
	if m, err := CheckImages(dir); err != nil || m.Cgroups != "" {
		t.Errorf("without one: %+v, %v", m, err)
	}
	if err := writeManifest(dir, "soft"); err != nil {
		t.Fatal(err)
	}
	write("dump.log", "later")
	if m, err := CheckImages(dir); err != nil || m.Cgroups != "soft" || len(m.Files) != 1 {
		t.Errorf("%+v, %v", m, err)
	}
	for _, text := range []string{"memorz", "mem", ""} {
		write("pages-1.img", text)
		if _, err := CheckImages(dir); !errors.Is(err, errs.Corrupt) {
			t.Errorf("%q: %v", text, err)
		}
	}
	for _, text := range []string{`{`, `{"version":1,"files":{"../x":{"size":1,"crc64":"1"}}}`} {
		write(manifestName, text)
		if _, err := CheckImages(dir); !errors.Is(err, errs.Corrupt) {
			t.Errorf("%s: %v", text, err)
		}
	}
}
