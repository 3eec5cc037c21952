package main

import (
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
)

func testFlags() (*flags, *string, *bool, *[]string) {
	var f flags
	var s string
	var b bool
	var list []string
	f.str(&s, "bundle", "here", "DIR", "")
	f.short("b")
	f.bool(&b, "detach", "d", "")
	f.strs(&list, "env", "NAME=VALUE", "")
	f.short("e")
	return &f, &s, &b, &list
}

// The syntax is that of Go's package flag, which runc's callers write.
func TestFlags(t *testing.T) {
	for _, tt := range []struct {
		args    string
		ordered bool
		want    string // bundle, detach, env, rest; or the error
	}{
		{"", false, "here false [] []"},
		{"id", false, "here false [] [id]"},
		{"--bundle x -d id", false, "x true [] [id]"},
		{"-bundle=x --detach=false id", false, "x false [] [id]"},
		{"-b x id", false, "x false [] [id]"},
		{"id --bundle x", false, "x false [] [id]"},
		{"id --bundle x", true, "here false [] [id --bundle x]"},
		{"-d id sh -c x", true, "here true [] [id sh -c x]"},
		{"-e A=b --env C=d=e -e=F= id", false, "here false [A=b C=d=e F=] [id]"},
		{"-d -- -b x", false, "here true [] [-b x]"},
		{"- x", false, "here false [] [- x]"},
		{"--bundle", false, "flag --bundle needs a value"},
		{"--detach=often", false, `flag --detach: value "often": invalid syntax`},
		{"-x", false, "flag -x is not known"},
		{"--", false, "here false [] []"},
	} {
		f, s, b, list := testFlags()
		rest, err := f.parse(strings.Fields(tt.args), tt.ordered)
		got := fmt.Sprint(*s, " ", *b, " ", *list, " ", rest)
		if err != nil {
			got = err.Error()
		}
		if got != tt.want {
			t.Errorf("%q: %s, want %s", tt.args, got, tt.want)
		}
	}
}

func FuzzFlags(f *testing.F) {
	f.Add("--bundle\x00x\x00id", true)
	f.Add("-d=\x00--\x00-", false)
	f.Fuzz(func(t *testing.T, line string, ordered bool) {
		args := strings.Split(line, "\x00")
		fl, _, _, list := testFlags()
		rest, err := fl.parse(args, ordered)
		if err != nil {
			return
		}
		// Nothing is made up, and the order stays.
		at := 0
		for _, r := range rest {
			i := slices.Index(args[at:], r)
			if i < 0 {
				t.Fatalf("%q: %q", args, rest)
			}
			at += i + 1
		}
		if len(*list) > len(args) {
			t.Fatalf("%q: %q", args, *list)
		}
	})
}

// Every flag of every command has a name of its own.
func TestFlagNames(t *testing.T) {
	for _, c := range commands {
		var f flags
		c.prepare(&f)
		seen := map[string]bool{"help": true, "h": true}
		for _, l := range f.list {
			for _, n := range []string{l.name, l.short} {
				if n != "" && seen[n] {
					t.Errorf("%s: %s is there twice", c.name, n)
				}
				seen[n] = true
			}
		}
	}
}

func TestParseSignal(t *testing.T) {
	for s, want := range map[string]syscall.Signal{
		"9": 9, "0": 0, "64": 64, "KILL": 9, "SIGKILL": 9, "sigterm": 15, "term": 15, "RTMIN": 34, "SIGRTMIN+3": 37, "RTMAX-1": 63, "rtmax": 64,
		"65": -1, "-1": -1, "": -1, "NONE": -1, "RTMIN+31": -1, "RTMAX+1": -1,
	} {
		got, err := parseSignal(s)
		if err != nil {
			got = -1
		}
		if got != want {
			t.Errorf("%q: %d %v, want %d", s, got, err, want)
		}
	}
}

func TestSize(t *testing.T) {
	for s, want := range map[string]int64{
		"0": 0, "1024": 1024, "-1": -1, "512m": 512 << 20, "1G": 1 << 30, "3KiB": 3072, "2tb": 2 << 40,
		"": -2, "m": -2, "1x": -2, "1.5g": -2, "-2": -2, "99999999999g": -2, "1gk": -2,
	} {
		got, err := size(s)
		if err != nil {
			got = -2
		}
		if got != want {
			t.Errorf("%q: %d %v, want %d", s, got, err, want)
		}
	}
}

func TestChoose(t *testing.T) {
	out := "UID PID CMD\nroot 1 init\nroot 12 sh -c x\nroot 123 ps\n\n"
	if got, err := choose(out, []int{12}); err != nil || got != "UID PID CMD\nroot 12 sh -c x\n" {
		t.Errorf("%q %v", got, err)
	}
	for _, bad := range []string{"", "CMD\nx\n", "PID\nx\n"} {
		if _, err := choose(bad, []int{1}); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}
