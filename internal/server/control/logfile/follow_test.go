package logfile

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

var start = time.Date(2026, 1, 31, 12, 0, 0, 0, time.UTC)

// record returns a record of the log, n seconds after start.
func record(n int, stream, tag, text string) string {
	return fmt.Sprintf("%s %s %s %s\n", start.Add(time.Duration(n)*time.Second).Format("2006-01-02T15:04:05.000000000Z07:00"), stream, tag, text)
}

func write(t *testing.T, path string, records ...string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(strings.Join(records, "")); err != nil {
		t.Fatal(err)
	}
}

// read returns what Read gives, each piece of stderr in brackets.
func read(t *testing.T, o Options) string {
	t.Helper()
	var b strings.Builder
	if err := Read(context.Background(), o, func(stream string, data []byte) error {
		if stream == "stderr" {
			fmt.Fprintf(&b, "[%s]", data)
		} else {
			b.Write(data)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestRead(t *testing.T) {
	dir := t.TempDir()
	log := filepath.Join(dir, "0.log")
	write(t, log+".2", record(0, "stdout", "F", "zero"), record(1, "stdout", "F", "one"))
	write(t, log+".1", record(2, "stderr", "F", "two"), record(3, "stdout", "P", "thr"))
	write(t, log, record(4, "stdout", "F", "ee"), record(5, "stdout", "F", ""), record(6, "stdout", "F", "six  "))
	at := func(n int) string { return strings.Fields(record(n, "x", "F", "x"))[0] + " " }
	for _, tt := range []struct {
		name string
		o    Options
		want string
	}{
		// Without a tail all of what rotation has left is shown.
		{"all", Options{Tail: -1}, "zero\none\n[two\n]three\n\nsix  \n"},
		{"none", Options{Tail: 0}, ""},
		{"one", Options{Tail: 1}, "six  \n"},
		{"two", Options{Tail: 2}, "\nsix  \n"},
		// The line that began in the older file counts as one, from its part that is in the newer.
		{"more than one file", Options{Tail: 5}, "one\n[two\n]three\n\nsix  \n"},
		{"more than there are", Options{Tail: 100}, "zero\none\n[two\n]three\n\nsix  \n"},
		{"since", Options{Tail: -1, Since: start.Add(5 * time.Second)}, "\nsix  \n"},
		{"times", Options{Tail: -1, Timestamps: true, Since: start.Add(2 * time.Second)}, "[" + at(2) + "two\n]" + at(3) + "three\n" + at(5) + "\n" + at(6) + "six  \n"},
		{"previous file that is not there", Options{Path: filepath.Join(dir, "nothing", "1.log"), Tail: -1}, ""},
	} {
		if tt.o.Path == "" {
			tt.o.Path = log
		}
		if got := read(t, tt.o); got != tt.want {
			t.Errorf("%s: %q instead of %q", tt.name, got, tt.want)
		}
	}
	odd := filepath.Join(dir, "odd.log")
	write(t, odd, "not a record\n", record(0, "stdout", "F", "good"), "\n", "2026-01-31T12:00:00Z stdfoo F x\n", "2026-01-31T12:00:00Z stdout F\n", "2026-01-31T12:00:01Z stdout F cut o")
	if got, want := read(t, Options{Path: odd, Tail: -1}), "not a record\ngood\n\n2026-01-31T12:00:00Z stdfoo F x\n\n"; got != want {
		t.Errorf("odd records: %q instead of %q", got, want)
	}
}

// The tail is right for every number of lines, whatever the sizes of records, against
// simply cutting the whole.
func TestTail(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	path := filepath.Join(t.TempDir(), "log")
	var lines []string
	for i := range 400 {
		text := strings.Repeat("x", rnd.IntN(3000)) + fmt.Sprint(i)
		rest := text
		for len(rest) > 0 && rnd.IntN(3) == 0 {
			n := rnd.IntN(len(rest) + 1)
			write(t, path, record(i, "stdout", "P", rest[:n]))
			rest = rest[n:]
		}
		write(t, path, record(i, "stdout", "F", rest))
		lines = append(lines, text+"\n")
	}
	for _, n := range []int{0, 1, 2, 3, 10, 57, 199, 399, 400, 401} {
		want := strings.Join(lines[max(0, len(lines)-n):], "")
		if got := read(t, Options{Path: path, Tail: int64(n)}); got != want {
			t.Errorf("tail %d: %d bytes instead of %d", n, len(got), len(want))
		}
	}
}

// A follower misses nothing and doubles nothing while the log is written and rotated
// under it, and ends when nothing comes any more.
func TestFollow(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "0.log")
	const lines, perFile, files = 20_000, 700, 4
	var over atomic.Bool
	var seen atomic.Int64
	deadline := time.Now().Add(time.Minute)
	go func() {
		rnd := rand.New(rand.NewPCG(3, 4))
		f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		for i := 0; i < lines && err == nil; i++ {
			if i > 0 && i%perFile == 0 {
				// A follower that falls behind by more than the files that are kept loses lines,
				// rightly; this one is not left behind.
				for seen.Load() < int64(i-2*perFile) && time.Now().Before(deadline) {
					time.Sleep(time.Millisecond)
				}
				f.Close()
				for n := files; n > 0; n-- {
					os.Rename(rotated(path, n-1), rotated(path, n))
				}
				if f, err = os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
					break
				}
			}
			line := record(i, "stdout", "F", fmt.Sprint(i))
			if rnd.IntN(50) == 0 { // a record that is seen half-written
				f.WriteString(line[:20])
				line = line[20:]
			}
			_, err = f.WriteString(line)
		}
		f.Close()
		if err != nil {
			t.Error(err)
		}
		over.Store(true)
	}()
	var all strings.Builder
	if err := Read(context.Background(), Options{Path: path, Tail: -1, Follow: true, More: func() bool { return !over.Load() }}, func(_ string, data []byte) error {
		all.Write(data)
		seen.Add(int64(strings.Count(string(data), "\n")))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	got := strings.Fields(all.String())
	if len(got) != lines {
		t.Errorf("%d lines instead of %d", len(got), lines)
	}
	for i, s := range got {
		if s != fmt.Sprint(i) {
			t.Fatalf("line %d is %q", i, s)
		}
	}
}

// A follower goes over to the log of the next incarnation, and first shows what the
// last one still wrote.
func TestFollowNext(t *testing.T) {
	dir := t.TempDir()
	first, second := filepath.Join(dir, "0.log"), filepath.Join(dir, "1.log")
	write(t, first, record(0, "stdout", "F", "old"))
	var step atomic.Int32
	var got []string
	err := Read(context.Background(), Options{
		Path: first, Tail: -1, Follow: true,
		More: func() bool { return step.Load() < 3 },
		Next: func() (string, bool) {
			if step.Load() >= 2 {
				return second, true
			}
			return "", false
		},
	}, func(_ string, data []byte) error {
		got = append(got, strings.Fields(string(data))...)
		switch step.Add(1) {
		case 1:
			write(t, first, record(1, "stdout", "F", "last"))
		case 2:
			write(t, second, record(2, "stdout", "F", "new"))
		}
		return nil
	})
	if want := []string{"old", "last", "new"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v", got, err)
	}
}

// The end of the context ends a follower at once, and is no error.
func TestFollowEnds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "0.log")
	ctx, cancel := context.WithCancel(context.Background())
	write(t, path, record(0, "stdout", "F", "a"))
	done := make(chan error, 1)
	go func() {
		done <- Read(ctx, Options{Path: path, Tail: -1, Follow: true, More: func() bool { return true }}, func(string, []byte) error {
			cancel()
			return nil
		})
	}()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("the follower goes on")
	}
}

func FuzzRecords(f *testing.F) {
	f.Add([]byte(record(0, "stdout", "F", "a")+record(1, "stderr", "P", "b")), int64(1))
	f.Fuzz(func(t *testing.T, text []byte, tail int64) {
		path := filepath.Join(t.TempDir(), "log")
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		n := 0
		if err := Read(context.Background(), Options{Path: path, Tail: tail, Timestamps: tail%2 == 0}, func(_ string, b []byte) error { n += len(b); return nil }); err != nil {
			t.Fatal(err)
		}
		if n > 2*len(text) {
			t.Errorf("%d bytes of %d", n, len(text))
		}
	})
}
