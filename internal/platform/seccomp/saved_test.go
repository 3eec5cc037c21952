package seccomp

import (
	"math/rand/v2"
	"reflect"
	"testing"
	"unsafe"
)

// TestSaved: what is read is what was written, and nothing else is read.
func TestSaved(t *testing.T) {
	profiles := []*Program{}
	prog, err := Compile(defaultProfile(t))
	if err != nil {
		t.Fatal(err)
	}
	profiles = append(profiles, prog)
	for seed := range 50 {
		p := randomProfile(rand.New(rand.NewPCG(uint64(seed), 17)), "amd64")
		if prog, err := Compile(p); err == nil {
			profiles = append(profiles, prog)
		}
	}
	for _, p := range profiles {
		b, err := p.MarshalBinary()
		if err != nil {
			t.Fatal(err)
		}
		var got Program
		if err := got.UnmarshalBinary(b); err != nil || !reflect.DeepEqual(&got, p) {
			t.Fatalf("%v: read %+v, want %+v", err, got, p)
		}
		if raw := unsafe.Slice((*byte)(unsafe.Pointer(&p.Filter[0])), 8*len(p.Filter)); string(raw) != string(p.Instructions()) {
			t.Fatal("the instructions are not as the kernel has them")
		}
		for n := range len(saved) + 20 {
			if got.UnmarshalBinary(b[:n]) == nil && n != len(saved)+18 {
				t.Fatalf("%d bytes of it were taken", n)
			}
		}
		if b[0]++; got.UnmarshalBinary(b) == nil {
			t.Fatal("something else was taken")
		}
	}
}

func FuzzSaved(f *testing.F) {
	prog, err := Compile(defaultProfile(f))
	if err != nil {
		f.Fatal(err)
	}
	b, _ := prog.MarshalBinary()
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		var p Program
		if p.UnmarshalBinary(b) != nil {
			return
		}
		if again, _ := p.MarshalBinary(); string(again) != string(b) {
			t.Errorf("%q becomes %q", b, again)
		}
	})
}
