package unmarshal

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

type inner struct {
	Major int64 `json:"major"`
	Minor int64 `json:"minor"`
}

type everything struct {
	inner
	Text    string               `json:"text"`
	Named   specs.ContainerState `json:"named,omitempty"`
	Bool    bool                 `json:"bool"`
	Flag    *bool                `json:"flag"`
	Int8    int8                 `json:"int8"`
	Uint16  *uint16              `json:"uint16"`
	Uint64  uint64               `json:"uint64"`
	Float   float64              `json:"float"`
	Mode    *fs.FileMode         `json:"mode"`
	Time    time.Time            `json:"time"`
	List    []string             `json:"list"`
	Lists   [][]int              `json:"lists"`
	Structs []inner              `json:"structs"`
	Map     map[string]string    `json:"map"`
	Maps    map[string]*inner    `json:"maps"`
	Ptr     **inner              `json:"ptr"`
	Again   *everything          `json:"again"`
	Plain   int
	Left    int `json:"-"`
	hidden  int //lint:ignore U1000 nothing may read it
}

var documents = []string{
	`{}`, ` null `, `[]`, `3`, `"x"`, `true`, ``, ` `, `{`, `{"a"`, `{"a":`, `{"a":1`, `{"a":1,`, `{"a":1,}`, `[1,]`, `[1 2]`, `{} {}`, `nul`, `tru`, `falsey`, `{"a" 1}`, `{a:1}`, `'x'`,
	`{"text":"a\u00e9\ud83d\ude00\n\/\\\"\b\f\r\t","TEXT":"later","named":"running"}`, `{"text":"\ud800"}`, `{"text":"\ud800\u0041"}`, `{"text":"\ud83d\ude0"}`, `{"text":"\x"}`, `{"text":"\u12"}`, "{\"text\":\"a\nb\"}",
	"{\"text\":\"\xff\xfe\",\"map\":{\"\xff\":\"\\u0000\xc3\"}}", `{"text":"\`, `{"text":"abc`, `{"text":1}`, `{"text":null,"bool":null,"flag":null}`,
	`{"bool":true,"flag":false,"int8":-128,"uint16":65535,"uint64":18446744073709551615,"float":-1.5e-3}`,
	`{"int8":128}`, `{"int8":1.0}`, `{"int8":1e2}`, `{"uint16":-1}`, `{"uint16":65536}`, `{"float":1e999}`, `{"float":01}`, `{"float":-}`, `{"float":1.}`, `{"float":1e}`, `{"float":.5}`, `{"float":-0}`, `{"bool":"true"}`, `{"bool":1}`,
	`{"mode":438,"time":"2026-01-02T03:04:05.5Z"}`, `{"time":"yesterday"}`, `{"time":{}}`, `{"time":3}`, `{"time":null}`,
	`{"list":["a","b","c","d","e","f"],"list":["g",null]}`, `{"list":[]}`, `{"list":["a","]","],",",","\",\"","g","h"]}`, `{"list":["a","b","c","d",`, `{"list":["a`, `{"lists":[[1],[],[2],[3],`, `{"list":null}`, `{"list":{}}`, `{"list":["a",1]}`, `{"lists":[[1],[],[2,3],null]}`,
	`{"structs":[{"major":1,"minor":2},{"MAJOR":3}],"structs":[{"minor":9}]}`, `{"major":7,"Minor":8}`, `{"structs":[1]}`,
	`{"map":{"a":"b","a":"c"},"map":{"d":"e"}}`, `{"map":{"a":null}}`, `{"map":[]}`, `{"maps":{"a":{"major":1},"b":null,"a":{"minor":2}}}`,
	`{"ptr":{"major":1},"ptr":{"minor":2}}`, `{"ptr":null}`, `{"again":{"again":{"text":"deep"},"text":"less"},"Plain":3,"plain":4,"Left":5,"hidden":6,"-":7}`,
	`{"unknown":{"a":[1,2,{"b":"\u0041"},null,true,-1.5E+3]},"text":"x"}`, `{"unknown":[1,}`, `{"unknown":01}`, `{"text":1,"unknown":}`,
}

// specification is what the runtime reads of one.
type specification struct {
	Process *specs.Process
	Linux   *specs.Linux
	Mounts  []specs.Mount
	Hooks   *specs.Hooks
}

func compare(t *testing.T, document string, a, b any) {
	t.Helper()
	want := json.Unmarshal([]byte(document), a)
	got := JSON([]byte(document), b)
	if (want == nil) != (got == nil) {
		t.Fatalf("%q: error %v, encoding/json's is %v", document, got, want)
	}
	if want == nil && !reflect.DeepEqual(a, b) {
		t.Fatalf("%q:\n%+v\nencoding/json has\n%+v", document, b, a)
	}
}

func FuzzJSON(f *testing.F) {
	for _, d := range documents {
		f.Add(d)
	}
	if document, err := os.ReadFile("testdata/config.json"); err != nil {
		f.Fatal(err)
	} else {
		f.Add(string(document))
	}
	f.Fuzz(func(t *testing.T, document string) {
		compare(t, document, &everything{}, &everything{})
		compare(t, document, &specification{}, &specification{})
		compare(t, document, &map[string]map[string]int{}, &map[string]map[string]int{})
		compare(t, document, &[]*string{}, &[]*string{})
	})
}

// TestSpecification: a whole one of the field's.
func TestSpecification(t *testing.T) {
	document, err := os.ReadFile("testdata/config.json")
	if err != nil {
		t.Fatal(err)
	}
	var sa, sb specification
	compare(t, string(document), &sa, &sb)
	b := sb.Linux
	if sb.Process == nil || len(b.Namespaces) == 0 || b.Seccomp == nil || b.Resources == nil || len(b.Resources.BlockIO.ThrottleReadBpsDevice) == 0 || b.Resources.BlockIO.ThrottleReadBpsDevice[0].Major != 8 {
		t.Errorf("parts are missing: %+v", sb)
	}
}

func TestRaw(t *testing.T) {
	var v struct {
		A Raw    `json:"a"`
		B Raw    `json:"b"`
		C string `json:"c"`
	}
	if err := JSON([]byte(`{"a": {"x":[1, 2]} ,"b":null,"c":"d"}`), &v); err != nil || v.A != `{"x":[1, 2]}` || v.B != "null" || v.C != "d" {
		t.Errorf("%+v, %v", v, err)
	}
	if err := JSON([]byte(`{"a": {"x":[1, 2}}`), &v); err == nil {
		t.Error("what is not well-formed was taken")
	}
}

// TestErrors: they say where and what.
func TestErrors(t *testing.T) {
	for document, want := range map[string]string{
		`{"text":3}`:        "number 3 cannot be a string",
		`{"int8":300}`:      "number 300 cannot be a int8",
		`{"list":{}}`:       "an object cannot be a []string",
		`{"text":"a"`:       "at byte 11: the document ends too early",
		`{"text":"a",}`:     "begins with its name",
		`{"text" "a"}`:      "followed by a colon",
		`{"text":"a"} x`:    `'x' after the end`,
		`{"time":"never"}`:  "parsing time",
		`{"text":1,"a":[}`:  "'}' is no value",
		`{"list":["a" "b"]`: `'"' where a comma or ']' should be`,
		strings.Repeat(`[`, maxDepth+10) + strings.Repeat(`]`, maxDepth+10): "nested deeper",
	} {
		err := JSON([]byte(document), &everything{})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40s: got %v, want %s", document, err, want)
		}
	}
	defer func() {
		if recover() == nil {
			t.Error("the option string was taken")
		}
	}()
	var s struct {
		N int `json:"n,string"`
	}
	err := JSON([]byte(`{"n":"1"}`), &s)
	t.Error(errors.Join(err, errors.New("no panic")))
}

func BenchmarkJSON(b *testing.B) {
	document, err := os.ReadFile("testdata/config.json")
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(document)))
	for b.Loop() {
		var s struct{ Linux *specs.Linux }
		if err := JSON(document, &s); err != nil {
			b.Fatal(err)
		}
	}
}
