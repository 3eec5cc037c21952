package idlecopy

import (
	"bytes"
	"errors"
	"io"
	"math/rand"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Everything comes through, whatever it is read from.
func TestCopy(t *testing.T) {
	data := make([]byte, 3*Bytes+77)
	rand.New(rand.NewSource(1)).Read(data)
	for name, open := range map[string]func() (io.Reader, io.WriteCloser){
		"pipe": func() (io.Reader, io.WriteCloser) {
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			return r, w
		},
		"memory": func() (io.Reader, io.WriteCloser) { return io.Pipe() },
		"socket": func() (io.Reader, io.WriteCloser) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			a, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			b, err := l.Accept()
			if err != nil {
				t.Fatal(err)
			}
			return a, b
		},
	} {
		r, w := open()
		go func() {
			for d := data; len(d) > 0; {
				n := min(len(d), 10_000)
				w.Write(d[:n])
				d = d[n:]
			}
			w.Close()
		}()
		var got bytes.Buffer
		if n, err := Copy(&got, r); err != nil || n != int64(len(data)) || !bytes.Equal(got.Bytes(), data) {
			t.Errorf("%s: %d of %d bytes, %v", name, n, len(data), err)
		}
	}
	if n, err := Copy(io.Discard, strings.NewReader("abc")); n != 3 || err != nil {
		t.Errorf("%d %v", n, err)
	}
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, io.ErrShortWrite }

func TestCopyErrors(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	w.WriteString("x")
	if _, err := Copy(failing{}, r); !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("a writer that fails: %v", err)
	}
	r.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
	if _, err := Copy(io.Discard, r); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a deadline: %v", err)
	}
	r.SetReadDeadline(time.Time{})
	done := make(chan error)
	go func() { _, err := Copy(io.Discard, r); done <- err }()
	r.Close()
	if err := <-done; !errors.Is(err, os.ErrClosed) {
		t.Errorf("closed while it is read: %v", err)
	}
}

// Copies that wait hold no buffers.
func TestIdle(t *testing.T) {
	const many = 200
	memory := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := memory()
	var ends []*os.File
	done := make(chan struct{})
	for range many {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		ends = append(ends, w)
		go func() {
			Copy(io.Discard, r)
			r.Close()
			done <- struct{}{}
		}()
		w.WriteString("hello")
	}
	for _, w := range ends { // all have read what there was
		for n := 1; n > 0; {
			var err error
			if n, err = unread(w); err != nil {
				t.Fatal(err)
			}
			runtime.Gosched()
		}
	}
	if took := int64(memory()-before) / many; took > Bytes/4 {
		t.Errorf("a copy that waits holds %d bytes", took)
	}
	for _, w := range ends {
		w.Close()
		<-done
	}
}

func unread(w *os.File) (n int, err error) { return unix.IoctlGetInt(int(w.Fd()), unix.TIOCINQ) }
