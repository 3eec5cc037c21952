package criu

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
)

// A request is what another reader of the format takes it for.
func TestEncode(t *testing.T) {
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	r := Request{Type: Restore, Options: &Options{Images: dir, Root: "/root", Sibling: true, Cgroups: CgroupsSoft, EmptyNamespaces: 1 << 30,
		Mounts: []Pair{{"/a", "/b"}, {"/c", strings.Repeat("long", 100)}}, Inherit: []InheritFD{{"pipe:[7]", 1}}, PageServer: "::1", PagePort: 27277}}
	type field struct {
		n uint64
		s string
	}
	read := func(b []byte) map[protowire.Number][]field {
		all := map[protowire.Number][]field{}
		for len(b) > 0 {
			num, kind, size := protowire.ConsumeTag(b)
			if size < 0 {
				t.Fatal(protowire.ParseError(size))
			}
			b = b[size:]
			var f field
			switch kind {
			case protowire.VarintType:
				f.n, size = protowire.ConsumeVarint(b)
			case protowire.BytesType:
				f.s, size = protowire.ConsumeString(b)
			default:
				t.Fatalf("field %d has type %d", num, kind)
			}
			if size < 0 {
				t.Fatal(protowire.ParseError(size))
			}
			b = b[size:]
			all[num] = append(all[num], f)
		}
		return all
	}
	req := read(r.encode())
	if req[1][0].n != uint64(Restore) {
		t.Errorf("type %v", req[1])
	}
	o := read([]byte(req[2][0].s))
	for num, want := range map[protowire.Number]field{1: {n: uint64(dir.Fd())}, 12: {n: 1}, 13: {s: "/root"}, 26: {n: 1}, 34: {n: 3}, 38: {n: 1 << 30}} {
		if !reflect.DeepEqual(o[num], []field{want}) {
			t.Errorf("field %d is %v, and not %v", num, o[num], want)
		}
	}
	if o[2] != nil || o[3] != nil || o[14] != nil {
		t.Errorf("what was not asked for: %v", o)
	}
	if m := read([]byte(o[23][1].s)); len(o[23]) != 2 || m[1][0].s != "/c" || m[2][0].s != r.Options.Mounts[1].Value {
		t.Errorf("mounts %v", o[23])
	}
	if m := read([]byte(o[27][0].s)); m[1][0].s != "pipe:[7]" || m[2][0].n != 1 {
		t.Errorf("descriptors %v", m)
	}
	if m := read([]byte(o[11][0].s)); m[1][0].s != "::1" || m[2][0].n != 27277 {
		t.Errorf("page server %v", m)
	}
}

func TestParse(t *testing.T) {
	sub := func(b []byte, field protowire.Number, m []byte) []byte {
		return protowire.AppendBytes(protowire.AppendTag(b, field, protowire.BytesType), m)
	}
	num := func(b []byte, field protowire.Number, n uint64) []byte {
		return protowire.AppendVarint(protowire.AppendTag(b, field, protowire.VarintType), n)
	}
	minus := int64(-1)
	b := num(num(nil, 1, 6), 2, 1)
	b = protowire.AppendFixed64(protowire.AppendTag(b, 100, protowire.Fixed64Type), 7) // of a later version
	b = protowire.AppendFixed32(protowire.AppendTag(b, 101, protowire.Fixed32Type), 7)
	b = sub(b, 5, num(sub(nil, 1, []byte("post-restore")), 2, 1234))
	b = num(sub(b, 9, []byte("why")), 7, uint64(minus))
	b = sub(b, 8, num(nil, 1, 1))
	b = sub(b, 10, num(num(num(nil, 1, 3), 2, 17), 4, 1))
	got, err := parse(b)
	want := response{kind: notify, success: true, pid: 1234, script: "post-restore", errno: -1, message: "why", features: Features{MemoryTracking: true}, version: 3_17_01}
	if err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	for i := range b {
		parse(b[:i]) // an error or not, but no panic
	}
	for _, bad := range []string{"\x08", "\x80", "\x00\x01", "\x0b", "\x2a\x05ab", "\x2a\x02\x08", "\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"} {
		if _, err := parse([]byte(bad)); err == nil {
			t.Errorf("%q is taken for a message", bad)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("\x08\x06\x10\x01\x2a\x06\x0a\x04name"))
	f.Add([]byte("\x08\x0a\x10\x01\x52\x04\x08\x03\x10\x11"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := parse(b); err == nil {
			for rest := b; len(rest) > 0; { // another reader takes it too
				_, _, size := protowire.ConsumeField(rest)
				if size < 0 {
					t.Fatalf("%q: %v", b, protowire.ParseError(size))
				}
				rest = rest[size:]
			}
		}
	})
}

func TestExplain(t *testing.T) {
	file := filepath.Join(t.TempDir(), "log")
	base := errors.New("dump failed: the second")
	if err := Explain(base, file); err != base {
		t.Error(err)
	}
	log := `(00.000001) Version: 3.17.1
(00.010000) Error (criu/a.c:1): the first
(00.010001)     12: Error (criu/b.c:22): the second
(00.010001) Warn  (criu/b.c:22): no matter
(00.010002)     12: Error (criu/b.c:22): the first
Error (criu/c.c:3): the third.
Error (criu/c.c:3): number 4
Error (criu/c.c:3): number 5
`
	if err := os.WriteFile(file, []byte(log), 0o600); err != nil {
		t.Fatal(err)
	}
	if err, want := Explain(base, file), "dump failed: the second: the first; number 4; number 5 (all of it: "+file+")"; err.Error() != want || !errors.Is(err, base) {
		t.Errorf("%q, and not %q", err, want)
	}
}

func TestVersion(t *testing.T) {
	for v, want := range map[Version]string{3_17_01: "3.17.1", 4_02_00: "4.2", Oldest: "3.15"} {
		if v.String() != want {
			t.Errorf("%d is %q", int(v), v)
		}
	}
}
