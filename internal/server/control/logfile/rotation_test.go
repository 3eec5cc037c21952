package logfile

import (
	"errors"
	"io/fs"
	"path/filepath"
	"testing"
)

// In the middle of a rotation an age is missing: nothing is left out for that, and what
// is no age of this log is no part of it.
func TestMiddleOfRotation(t *testing.T) {
	for _, missing := range []int{-1, 0, 1, 2, 3} {
		path := filepath.Join(t.TempDir(), "0.log")
		want := ""
		for age := 4; age >= 0; age-- {
			if age == missing {
				continue
			}
			text := string(rune('a' + age))
			write(t, rotated(path, age), record(age, "stdout", "F", text))
			want += text + "\n"
		}
		for _, other := range []string{path + ".tmp", path + ".01x", path + "5", filepath.Join(filepath.Dir(path), "10.log")} {
			write(t, other, record(9, "stdout", "F", "other"))
		}
		if got := read(t, Options{Path: path, Tail: -1}); got != want {
			t.Errorf("without %d: %q, want %q", missing, got, want)
		}
		if got := read(t, Options{Path: path, Tail: 3}); got != want[len(want)-6:] {
			t.Errorf("without %d, the last three: %q of %q", missing, got, want)
		}
	}
	if _, err := ages(filepath.Join(t.TempDir(), "0.log")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no log: %v", err)
	}
}
