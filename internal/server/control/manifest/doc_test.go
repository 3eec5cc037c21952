package manifest

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
)

const page = "../../../../docs/design/control-api.md"

// The page on the control API lists what is ignored and what is refused.
func TestPage(t *testing.T) {
	var b strings.Builder
	list := func(title string, of ...class) {
		byReason := map[string][]string{}
		for key, r := range rules {
			if slices.Contains(of, r.class) {
				why := r.why
				if strings.HasPrefix(key, "VolumeSource.") {
					why = "supported: " + volumeKinds
				}
				byReason[why] = append(byReason[why], "`"+key+"`")
			}
		}
		fmt.Fprintf(&b, "\n### %s\n| field | |\n|---|---|\n", title)
		rows := make([]string, 0, len(byReason))
		for why, keys := range byReason {
			slices.Sort(keys)
			rows = append(rows, fmt.Sprintf("| %s | %s |\n", strings.Join(keys, ", "), why))
		}
		slices.Sort(rows)
		b.WriteString(strings.Join(rows, ""))
	}
	list("Ignored", ignored)
	list("Accepted with certain values only", checked)
	list("Refused", refused, emptyOnly)
	b.WriteString("\n### Converted\nEvery field of ")
	types := map[string]bool{}
	for owner := range allConverted {
		types["`"+owner+"`"] = true
	}
	for key, r := range rules {
		if owner, _, _ := strings.Cut(key, "."); r.class == converted {
			types["`"+owner+"`"] = true
		}
	}
	b.WriteString(strings.Join(slices.Sorted(maps.Keys(types)), ", ") + " that is not listed above.\n")

	raw, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	const begin, end = "<!-- fields -->\n", "<!-- end of fields -->"
	head, rest, ok1 := strings.Cut(string(raw), begin)
	got, tail, ok2 := strings.Cut(rest, end)
	if !ok1 || !ok2 {
		t.Fatalf("%s has no place for the tables", page)
	}
	want := strings.TrimPrefix(b.String(), "\n") + "\n"
	if got == want {
		return
	}
	if !*update {
		t.Fatalf("the tables of %s are not those of fields.go; write them with: go test ./internal/server/control/manifest -update", page)
	}
	if err := os.WriteFile(page, []byte(head+begin+want+end+tail), 0o644); err != nil {
		t.Fatal(err)
	}
}
