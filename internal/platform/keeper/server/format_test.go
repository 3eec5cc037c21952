package server

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

// parse reads the lines of a log back to what was written.
func parse(t testing.TB, log []byte, limit int64) []byte {
	t.Helper()
	var text []byte
	for line := range bytes.Lines(log) {
		if int64(len(line)) > limit && len(line) > maxLine+64 {
			t.Fatalf("a line of %d bytes", len(line))
		}
		f := bytes.SplitN(line, []byte(" "), 4)
		if len(f) != 4 || string(f[1]) != "stdout" {
			t.Fatalf("%q is not of the format", line)
		}
		if at, err := time.Parse(time.RFC3339Nano, string(f[0])); err != nil || at.Location() != time.UTC {
			t.Fatalf("%q: %v", f[0], err)
		}
		body := f[3][:len(f[3])-1]
		if len(body) > maxLine {
			t.Fatalf("a part of %d bytes", len(body))
		}
		text = append(text, body...)
		switch string(f[2]) {
		case "F":
			text = append(text, '\n')
		case "P":
		default:
			t.Fatalf("%q is no tag", f[2])
		}
	}
	return text
}

// FuzzFormat: whatever is written in whatever pieces comes back from the log.
func FuzzFormat(f *testing.F) {
	f.Add([]byte("one\ntwo\n\nthree"), uint16(3), uint16(100), true)
	f.Add([]byte(strings.Repeat("x", maxLine)+"\n"+strings.Repeat("y", maxLine+1)+"\n"), uint16(4096), uint16(0), false)
	f.Add([]byte(strings.Repeat("\n", 3000)), uint16(65535), uint16(0), true)
	f.Add([]byte("\x00\xff stdout F \r\n"), uint16(1), uint16(1), true)
	b := &buffer{}
	f.Fuzz(func(t *testing.T, data []byte, step, limit uint16, part bool) {
		var log []byte
		if len(data) > 64<<10 {
			return
		}
		if int(step) < len(data)/200 {
			step = uint16(len(data) / 200) // so many rounds are enough
		}
		for at, end := 0, 0; at < len(data); {
			end = min(len(data), max(end, at)+int(step)+1, at+len(b.in))
			n := copy(b.in[:], data[at:end])
			rest := cutNot
			if end == len(data) {
				rest = cutEnd
			} else if part {
				rest = cutPart
			}
			used := b.format(n, "stdout", rest, time.Now(), int64(limit))
			if used < 0 || used > n || used == 0 && rest != cutNot {
				t.Fatalf("%d of %d bytes were used", used, n)
			}
			if l := int64(len(b.out)); l > maxOut+maxLine+128 || limit > 0 && l > int64(limit) && bytes.Count(b.out, []byte("\n")) > 1 {
				t.Fatalf("%d bytes for a limit of %d", l, limit)
			}
			log = append(log, b.out...)
			at += used
		}
		want := data
		if len(want) > 0 && want[len(want)-1] != '\n' {
			want = append(bytes.Clone(want), '\n') // the last line has its end in the log
		}
		if got := parse(t, log, int64(limit)); !bytes.Equal(got, want) {
			t.Fatalf("%d bytes came back of %d", len(got), len(want))
		}
	})
}
