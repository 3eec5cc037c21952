package pod

import (
	"bytes"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func TestCapture(t *testing.T) {
	var shared atomic.Int64
	shared.Store(3 * outputStep)
	write := func(c *capture, to *[]byte, n int) {
		if got, err := (stream{c, to}).Write(bytes.Repeat([]byte("x"), n)); err != nil || got != n {
			t.Errorf("write of %d: %d %v", n, got, err)
		}
	}
	one := &capture{limit: 2 * outputStep, shared: &shared}
	write(one, &one.stdout, outputStep)
	write(one, &one.stderr, 3*outputStep)
	write(one, &one.stdout, 1)
	if len(one.stdout) != outputStep || len(one.stderr) != outputStep || one.dropped != 2*outputStep+1 {
		t.Errorf("limited: %d, %d, %d dropped", len(one.stdout), len(one.stderr), one.dropped)
	}
	// Another finds one step left, and has its own besides.
	two := &capture{limit: 1 << 30, shared: &shared}
	write(two, &two.stdout, 10*outputStep)
	if want := outputStep + ownOutput; len(two.stdout) != want || two.dropped != int64(10*outputStep-want) {
		t.Errorf("beside another: %d kept, %d dropped, want %d", len(two.stdout), two.dropped, want)
	}
	// A third has its own alone, until others are told.
	three := &capture{limit: 1 << 30, shared: &shared}
	write(three, &three.stderr, 2*ownOutput)
	if len(three.stderr) != ownOutput {
		t.Errorf("beside two: %d kept", len(three.stderr))
	}
	one.free()
	two.free()
	two.free()
	three.free()
	if n := shared.Load(); n != 3*outputStep {
		t.Errorf("%d is left of what is shared", n)
	}
}

// One who reads slowly loses nothing of what a process has written before it ended, and
// what it has left running keeps nobody.
func TestDrain(t *testing.T) {
	for name, left := range map[string]func(*os.File){
		"nothing left": func(w *os.File) { w.Close() },
		"silent child": func(*os.File) {},
	} {
		t.Run(name, func(t *testing.T) {
			r, w, err := processPipe(true)
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			want := strings.Repeat("0123456789abcdef", 4000) // a pipe full
			if _, err := w.WriteString(want); err != nil {
				t.Fatal(err)
			}
			left(w)
			s := &Session{Stdout: &processOutput{f: r, rest: drainBytes}, files: []*os.File{r}}
			defer s.Close()
			var got bytes.Buffer
			read := make(chan struct{})
			go func() {
				defer close(read)
				buf := make([]byte, 16<<10)
				for {
					n, err := s.Stdout.Read(buf)
					got.Write(buf[:n])
					if err == io.EOF {
						return
					}
					if err != nil {
						t.Error(err)
						return
					}
					time.Sleep(drainPatience + 50*time.Millisecond) // as a slow client takes
				}
			}()
			s.Drain(func() { <-read })
			if got.String() != want {
				t.Errorf("%d bytes of %d were read", got.Len(), len(want))
			}
		})
	}
}

// A child that never stops writing does not keep its parent's session.
func TestDrainEndlessChild(t *testing.T) {
	r, w, err := processPipe(true)
	if err != nil {
		t.Fatal(err)
	}
	go func() { // ends with the reader
		for b := make([]byte, 4<<10); ; {
			if _, err := w.Write(b); err != nil {
				w.Close()
				return
			}
		}
	}()
	s := &Session{Stdout: &processOutput{f: r, rest: drainBytes}, files: []*os.File{r}}
	var n int64
	s.Drain(func() { n, _ = io.Copy(io.Discard, s.Stdout) })
	s.Close()
	if n < drainBytes || n > drainBytes+64<<10 {
		t.Errorf("%d bytes were read", n)
	}
}
