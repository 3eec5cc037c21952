package executor

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// ignored are the fields of which nothing comes, as with runc, and why.
var ignored = map[string]string{
	".linux.resources.memory.kernel":       "the kernel takes no such limits since 5.16",
	".linux.resources.memory.useHierarchy": "cgroup v2 knows no other way, and v1 none since Linux 5.11",
}

// TestFields: whatever the specification has for Linux, somebody looks at: this package, the one that makes control groups, or the
// caller. What a next version of it adds fails here until it is done, or refused.
func TestFields(t *testing.T) {
	used := map[string]bool{}
	for _, dir := range []string{".", "../cgroup", "../container", "../seccomp"} {
		files, err := filepath.Glob(dir + "/*.go")
		if err != nil || len(files) == 0 {
			t.Fatal(dir, err)
		}
		for _, f := range files {
			if strings.HasSuffix(f, "_test.go") {
				continue
			}
			parsed, err := parser.ParseFile(token.NewFileSet(), f, nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(parsed, func(n ast.Node) bool {
				if s, ok := n.(*ast.SelectorExpr); ok {
					used[s.Sel.Name] = true
				}
				return true
			})
		}
	}
	seen := 0
	var walk func(path string, t reflect.Type)
	walk = func(path string, typ reflect.Type) {
		for typ.Kind() == reflect.Pointer || typ.Kind() == reflect.Slice || typ.Kind() == reflect.Map {
			typ = typ.Elem()
		}
		if typ.Kind() != reflect.Struct {
			return
		}
		for f := range typ.Fields() {
			if p, ok := f.Tag.Lookup("platform"); ok && !strings.Contains(p, "linux") {
				continue
			}
			name := path
			if json, _, _ := strings.Cut(f.Tag.Get("json"), ","); json != "" {
				name += "." + json
			}
			if !f.Anonymous { // what is embedded is of the same path
				seen++
				if _, ok := ignored[name]; ok == used[f.Name] {
					t.Errorf("%s: it is looked at: %t, and in the list of ignored fields: %t", name, used[f.Name], ok)
				}
			}
			walk(name, f.Type)
		}
	}
	walk("", reflect.TypeFor[specs.Spec]())
	if seen < 150 {
		t.Errorf("only %d fields were found", seen)
	}
}
