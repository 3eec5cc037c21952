package manifest

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/orlop-io/orlop/internal/base/errs"
)

var update = flag.Bool("update", false, "write the golden files anew")

func read(t testing.TB, path string) File {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return File{filepath.Base(path), b}
}

func golden(t *testing.T, path string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs (go test -update writes it anew):\n%s", path, got)
	}
}

// What each good manifest becomes.
func TestGood(t *testing.T) {
	files, _ := filepath.Glob("testdata/*.yaml")
	more, _ := filepath.Glob("testdata/*.json")
	files = append(append(files, more...), "../../../../examples/notes.yaml")
	for _, path := range files {
		if strings.HasSuffix(path, ".golden.json") {
			continue
		}
		t.Run(filepath.Base(path), func(t *testing.T) {
			objects, err := Decode([]File{read(t, path)}, "")
			if err != nil {
				t.Fatal(err)
			}
			got, err := json.MarshalIndent(objects, "", "  ")
			if err != nil {
				t.Fatal(err)
			}
			golden(t, "testdata/"+strings.TrimSuffix(filepath.Base(path), filepath.Ext(path))+".golden.json", append(got, '\n'))
			roundTrip(t, objects)
		})
	}
}

// encode returns the objects as one YAML stream.
func encode(t testing.TB, objects []Object) []byte {
	t.Helper()
	var b bytes.Buffer
	for _, o := range objects {
		var v any
		switch {
		case o.Pod != nil:
			v = EncodePod(o.Pod)
		case o.Claim != nil:
			v = EncodeClaim(o.Claim)
		default:
			v = EncodeConfig(o.Config)
		}
		raw, err := yaml.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		b.WriteString("---\n")
		b.Write(raw)
	}
	return b.Bytes()
}

// roundTrip wants that what is encoded decodes to the same: the domains' types then hold
// all that the manifest said.
func roundTrip(t testing.TB, objects []Object) {
	t.Helper()
	text := encode(t, objects)
	again, err := Decode([]File{{"encoded", text}}, "elsewhere")
	if err != nil {
		t.Fatalf("what was encoded does not decode: %v\n%s", err, text)
	}
	if len(again) != len(objects) {
		t.Fatalf("%d objects became %d", len(objects), len(again))
	}
	for i := range objects {
		a, b := objects[i], again[i]
		a.File, a.Line, b.File, b.Line = "", 0, "", 0
		if !reflect.DeepEqual(plain(t, a), plain(t, b)) {
			x, _ := json.Marshal(a)
			y, _ := json.Marshal(b)
			t.Errorf("%s is not the same after encoding and decoding:\n%s\n%s", a.Ref, x, y)
		}
	}
}

// plain makes nil and empty the same.
func plain(t testing.TB, v any) (out any) {
	raw, err := json.Marshal(v)
	if err == nil {
		err = json.Unmarshal(raw, &out)
	}
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// What is said of each bad manifest.
func TestBad(t *testing.T) {
	files, _ := filepath.Glob("testdata/bad/*.yaml")
	more, _ := filepath.Glob("testdata/bad/*.json")
	if len(files) < 5 {
		t.Fatal("the bad manifests are not found")
	}
	for _, path := range append(files, more...) {
		t.Run(filepath.Base(path), func(t *testing.T) {
			objects, err := Decode([]File{read(t, path)}, "")
			if err == nil {
				t.Fatalf("no error: %v", objects)
			}
			if errs.KindOf(err) != errs.Invalid {
				t.Errorf("the kind is %v", errs.KindOf(err))
			}
			golden(t, strings.TrimSuffix(path, filepath.Ext(path))+".golden", []byte(err.Error()+"\n"))
		})
	}
}

func TestTwice(t *testing.T) {
	doc := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n"
	_, err := Decode([]File{{"one.yaml", []byte(doc)}, {"two.yaml", []byte("\n" + doc)}}, "")
	if err == nil || !strings.Contains(err.Error(), "two.yaml:2") || !strings.Contains(err.Error(), "one.yaml:1") {
		t.Errorf("error %v", err)
	}
	if _, err = Decode([]File{{"one.yaml", []byte(doc)}, {"two.yaml", []byte(strings.Replace(doc, "name: a", "name: a, namespace: b", 1))}}, ""); err != nil {
		t.Error(err)
	}
}

func TestRefs(t *testing.T) {
	text := `apiVersion: v1
kind: Pod
metadata: {name: a, somethingNew: 1}
---
apiVersion: v1
kind: Pod
metadata: {name: b}
spec: {fromTheFuture: true}
`
	if _, err := Refs([]File{{"f", []byte(text)}}, "ns"); err == nil || !strings.Contains(err.Error(), "f:3: metadata.somethingNew") {
		t.Errorf("error %v", err)
	}
	refs, err := Refs([]File{{"f", []byte(text[strings.Index(text, "---"):])}}, "ns")
	if err != nil || len(refs) != 1 || refs[0].Ref != (Ref{KindPod, "ns", "b"}) {
		t.Errorf("%v, %v", refs, err)
	}
}

// Aliases of aliases, deep nesting and long files end in an error, quickly.
func TestHostile(t *testing.T) {
	var laughs strings.Builder
	laughs.WriteString("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  containers:\n  - &a0 {name: a, image: a:1, command: [x, x, x, x, x, x, x, x, x]}\n")
	laughs.WriteString("  volumes: &b0 [" + strings.Repeat("{name: x, emptyDir: {}}, ", 100) + "]\n")
	for i := 1; i < 12; i++ {
		laughs.WriteString("  x" + string(rune('a'+i)) + ": &b" + itoa(i) + " [" + strings.Repeat("*b"+itoa(i-1)+", ", 10) + "]\n")
	}
	merge := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\nx0: &x0 {a: b}\n"
	for i := 1; i < 40; i++ {
		merge += "x" + itoa(i) + ": &x" + itoa(i) + " {<<: [*x" + itoa(i-1) + ", *x" + itoa(i-1) + "]}\n"
	}
	merge += "data: *x39\n"
	items := "apiVersion: v1\nkind: List\nitems: &i\n- {apiVersion: v1, kind: List, items: [*i, *i, *i, *i]}\n- *i\n"
	for name, text := range map[string]string{
		"laughs": laughs.String(), "merge": merge, "items": items,
		"deep":   "apiVersion: v1\nkind: Pod\nspec: " + strings.Repeat("[", 9000) + strings.Repeat("]", 9000),
		"deeper": strings.Repeat("{a: ", 200_000),
		"large":  strings.Repeat("# nothing\n", 1<<20),
		"binary": "\xff\xfe\x00",
		"self":   "&a [*a]",
		"selves": "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: &a {a: *a}",
		"data":   "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {a: " + strings.Repeat("a", 2<<20) + "}",
	} {
		if _, err := Decode([]File{{name, []byte(text)}}, ""); err == nil {
			t.Errorf("%s: no error", name)
		} else if msg := err.Error(); len(msg) > 100_000 {
			t.Errorf("%s: a message of %d bytes", name, len(msg))
		} else {
			t.Logf("%s: %.200s", name, msg)
		}
	}
}

func itoa(i int) string { raw, _ := json.Marshal(i); return string(raw) }

func FuzzDecode(f *testing.F) {
	for _, g := range []string{"testdata/*.yaml", "testdata/*.json", "testdata/bad/*.yaml", "testdata/bad/*.json", "../../../../examples/*.yaml"} {
		files, _ := filepath.Glob(g)
		for _, path := range files {
			f.Add(read(f, path).Content)
		}
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		Refs([]File{{"f", text}}, "")
		objects, err := Decode([]File{{"f", text}}, "")
		if err != nil {
			if len(objects) > 0 {
				t.Error("objects beside an error")
			}
			return
		}
		roundTrip(t, objects)
	})
}

// A pod with users of its own, there and back; and what it cannot have.
func TestHostUsers(t *testing.T) {
	decode := func(more string) ([]Object, error) {
		text := "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  hostUsers: false\n  containers: [{name: a, image: a" + more + "}]\n" +
			"  volumes: [{name: data, persistentVolumeClaim: {claimName: data}}]\n"
		return Decode([]File{{"f", []byte(text)}}, "")
	}
	list, err := decode("")
	if err != nil {
		t.Fatal(err)
	}
	spec := list[0].Pod
	if !spec.OwnUsers {
		t.Error("it does not have users of its own")
	}
	if u := EncodePod(spec).Spec.HostUsers; u == nil || *u {
		t.Errorf("encoded: hostUsers %v", u)
	}
	if _, err := decode(", volumeDevices: [{name: data, devicePath: /dev/x}]"); err == nil || !strings.Contains(err.Error(), "f:5: spec.hostUsers: cannot be false with volumeDevices, as container a has") {
		t.Errorf("with a device: %v", err)
	}
}
