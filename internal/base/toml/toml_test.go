package toml

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/orlop-io/orlop/internal/base/errs"
)

const sample = `server = "https://a"

[host."https://b:1"]
  ca = "x"
  header = { One = "1",
    "Two" = ["2"] }
[[list]]
name = "n"
`

func TestKeys(t *testing.T) {
	d, err := Parse("f.toml", []byte(sample))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, k := range d.Keys {
		got = append(got, Dotted(k.Path))
	}
	want := []string{"server", `host."https://b:1"`, `host."https://b:1".ca`, `host."https://b:1".header`, `host."https://b:1".header.One`, `host."https://b:1".header.Two`, "list", "list.name"}
	if !slices.Equal(got, want) {
		t.Errorf("keys %q\nwant %q", got, want)
	}
	for _, tt := range []struct {
		line int
		path []string
	}{
		{1, []string{"server"}}, {3, []string{"host", "https://b:1"}}, {4, []string{"host", "https://b:1", "ca"}},
		{3, []string{"host", "https://b:1", "client"}}, {6, []string{"host", "https://b:1", "header", "Two"}}, {8, []string{"list", "name"}}, {0, []string{"none"}},
	} {
		if got := d.Line(tt.path...); got != tt.line {
			t.Errorf("line of %v is %d, not %d", tt.path, got, tt.line)
		}
	}
	if err := d.Invalid([]string{"host", "https://b:1", "ca"}, "no"); err.Error() != `f.toml:4: host."https://b:1".ca: no` {
		t.Error(err)
	}
}

func TestErrors(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"a = 1\nb = \n", "f.toml:2: "},
		{"a = 1\na = 2\n", "f.toml:2: "},
		{"server = 1\n", "f.toml:1: "},
		{"server = \"x\"\n\nservre = \"x\"\n", "f.toml:3: unknown key servre"},
	} {
		d, err := Parse("f.toml", []byte(tt.text))
		if err == nil {
			err = d.Decode(&struct {
				Server string `toml:"server"`
			}{})
		}
		if !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%q: %v; want %q", tt.text, err, tt.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(sample))
	f.Add([]byte("a.b = {c = [1, {d = 2}]}\n[a.x]\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		d, err := Parse("f", data)
		if err != nil {
			if !errors.Is(err, errs.Invalid) {
				t.Fatal(err)
			}
			return
		}
		for _, k := range d.Keys {
			if len(k.Path) == 0 || k.Line < 1 {
				t.Fatalf("key %q in line %d", k.Path, k.Line)
			}
		}
	})
}
