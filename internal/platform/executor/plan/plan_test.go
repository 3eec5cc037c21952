package plan

import (
	"reflect"
	"testing"
)

func TestCodec(t *testing.T) {
	var p Plan
	p.Add(Setns, N(0, 1, 127, 128, 1<<32, ^uint64(0)), "", "path", string(make([]byte, 300)))
	p.Add(Gate, nil)
	p.Add(Mask, nil, "/a")
	r := Reader{B: p.Encode()}
	var got []Op
	for {
		o, ok := r.Next()
		if !ok {
			break
		}
		got = append(got, o)
	}
	if r.Bad || !reflect.DeepEqual(got, p.Ops) {
		t.Errorf("got %v, bad %v, want %v", got, r.Bad, p.Ops)
	}
	f := Failure{Exec, "/bin/x", 2, "hint"}
	for _, errno := range []uint64{0, 1, 2, 127, 128, 133} {
		m := f.Prepare()
		SetErrno(m, errno)
		want := f
		want.Errno = errno
		if got, ok := DecodeFailure(m); !ok || got != want {
			t.Errorf("prepared for %d: %+v", errno, got)
		}
	}
	m := EncodeClock(7, 1<<62+12345)
	if n, at, ok := DecodeClock(m[:]); n != 7 || at != 1<<62+12345 || !ok {
		t.Errorf("a time: %d %d %v", n, at, ok)
	}
	if _, _, ok := DecodeClock(m[:9]); ok {
		t.Error("half a time is one")
	}
	if got, ok := DecodeFailure(f.Encode()); !ok || got != f {
		t.Errorf("got %v, %v", got, ok)
	}
}

// TestNames: every operation has a name for its errors.
func TestNames(t *testing.T) {
	if len(Names) != int(Pause)+1 {
		t.Fatalf("there are %d names for %d operations", len(Names), Pause)
	}
	for c := Invalid + 1; c <= Pause; c++ {
		if Names[c] == "" {
			t.Errorf("operation %d has no name", c)
		}
	}
}

// FuzzReader: no input makes the reader go beyond it, or take more memory than it is long.
func FuzzReader(f *testing.F) {
	var p Plan
	p.Add(Mount, N(1, 2, 3), "/proc", "proc")
	f.Add(p.Encode())
	f.Add([]byte{byte(Exec), 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		r := Reader{B: b}
		for {
			if _, ok := r.Next(); !ok {
				break
			}
		}
		DecodeFailure(b)
		DecodeClock(b)
	})
}
