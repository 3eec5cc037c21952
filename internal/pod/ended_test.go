package pod

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLogTail(t *testing.T) {
	const at = "2026-01-31T12:00:00.000000000Z "
	many := strings.Builder{}
	for i := range 5000 {
		fmt.Fprintf(&many, "%sstdout F line %d\n", at, i)
	}
	wide := at + "stderr F " + strings.Repeat("wide ", 1000) + "end\n"
	for name, tt := range map[string]struct{ log, want string }{
		"none":           {"", ""},
		"one":            {at + "stdout F hello\n", "hello\n"},
		"both streams":   {at + "stdout F out\n" + at + "stderr F err\n", "out\nerr\n"},
		"parts":          {at + "stdout P one \n" + at + "stdout F line\n", "one line\n"},
		"empty line":     {at + "stdout F \n", "\n"},
		"cut at the end": {at + "stdout F whole\n" + at + "stdo", "whole\n"},
		"many":           {many.String(), "line 4999\n"},
		"wide":           {wide, "wide end\n"},
		"odd characters": {at + "stdout F " + strings.Repeat("é", 2000) + "\n", "éé\n"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "0.log")
			if err := os.WriteFile(path, []byte(tt.log), 0o600); err != nil {
				t.Fatal(err)
			}
			got := logTail(path)
			if len(tt.log) < maxFallbackBytes && got != tt.want || !strings.HasSuffix(got, tt.want) {
				t.Errorf("%q, want %q", got, tt.want)
			}
			if len(got) > maxFallbackBytes || strings.Count(got, "\n") > maxFallbackLines || got != strings.ToValidUTF8(got, "") {
				t.Errorf("%d bytes, %d lines", len(got), strings.Count(got, "\n"))
			}
		})
	}
	if got := logTail("/nothing"); got != "" {
		t.Errorf("%q", got)
	}
}
