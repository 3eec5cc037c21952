package differential

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the tables of docs/design/differential.md")

// TestDocument: the page has the tables of known differences.
func TestDocument(t *testing.T) {
	const page, mark = "../../docs/design/differential.md", "<!-- table -->\n"
	content, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	before, _, ok := strings.Cut(string(content), mark)
	if !ok {
		t.Fatalf("%s has no line %q", page, mark)
	}
	var b strings.Builder
	for _, k := range []kind{design, spec, lenient, strict, ours} {
		if !slices.ContainsFunc(known, func(d difference) bool { return d.kind == k }) {
			continue
		}
		fmt.Fprintf(&b, "\n## %s\n\n| configurations | findings | why |\n|---|---|---|\n", k)
		for _, d := range known {
			if d.kind == k {
				code := func(s string) string { return "`" + strings.ReplaceAll(s, "|", "` `") + "`" }
				fmt.Fprintf(&b, "| %s | %s | %s |\n", code(d.cases), code(d.finding), d.reason)
			}
		}
	}
	want := before + mark + b.String()
	if *update {
		if err := os.WriteFile(page, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if want != string(content) {
		t.Errorf("%s does not have the tables of known_test.go: run this test with -args -update", page)
	}
}
