package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// Every command has a page that says what its help says, and nothing in one is taken
// for a request of roff by accident.
func TestManual(t *testing.T) {
	dir := t.TempDir()
	root := (&app{}).rootCommand()
	if err := writeManual(root, dir); err != nil {
		t.Fatal(err)
	}
	request := regexp.MustCompile(`^\.(TH|SH|TP|PP|B|BR|nf|fi)( |$)`)
	pages := 0
	walk(root, func(c *cobra.Command) {
		if c.HasParent() && !c.IsAvailableCommand() || strings.HasPrefix(c.CommandPath(), "orlop completion ") {
			return
		}
		pages++
		raw, err := os.ReadFile(filepath.Join(dir, pageName(c)+".1"))
		if err != nil {
			t.Error(err)
			return
		}
		page := string(raw)
		plain := strings.NewReplacer(`\-`, "-", `\e`, `\`, `\&`, "").Replace(page)
		for _, want := range []string{c.Short, strings.TrimSuffix(c.UseLine(), " [flags]"), "--socket", strings.TrimSpace(c.Example)} {
			if !strings.Contains(plain, want) {
				t.Errorf("%s does not say %q", pageName(c), want)
			}
		}
		for line := range strings.Lines(page) {
			if line[0] == '\'' || line[0] == '.' && !request.MatchString(strings.TrimSpace(line)) {
				t.Errorf("%s: %q would be taken for a request", pageName(c), line)
			}
		}
	})
	if pages < 40 {
		t.Errorf("%d pages", pages)
	}
	if got := roff(`.B a\b --c`); got != `\&.B a\eb \-\-c` {
		t.Errorf("%q", got)
	}
}
