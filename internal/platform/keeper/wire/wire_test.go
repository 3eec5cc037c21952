package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/trace"
)

func pair(t testing.TB) (a, b *Conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	conn := func(fd int) *Conn {
		f := os.NewFile(uintptr(fd), "")
		defer f.Close()
		c, err := net.FileConn(f)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return NewConn(c.(*net.UnixConn))
	}
	return conn(fds[0]), conn(fds[1])
}

func openFDs(t *testing.T) int {
	t.Helper()
	ents, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(ents)
}

func TestFrames(t *testing.T) {
	a, b := pair(t)
	r, w, _ := os.Pipe()
	defer r.Close()
	many := make([]*os.File, MaxFiles)
	for i := range many {
		many[i] = w
	}
	big := strings.Repeat("x", 3<<20)
	for _, f := range []*Frame{{ID: 1, Op: "list"}, {ID: 1<<64 - 1, Op: "x", Files: []*os.File{w}}, {ID: 2, Files: many}, {ID: 3, Op: "big"}} {
		if f.Op == "big" {
			f.Encode(big)
		}
		sent := make(chan error, 1)
		go func() { sent <- a.Send(f) }()
		got, err := b.Receive()
		if err != nil || got.ID != f.ID || got.Op != f.Op || !bytes.Equal(got.Body, f.Body) || len(got.Files) != len(f.Files) {
			t.Fatalf("%s: %v %+v", f.Op, err, got)
		}
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
		for _, file := range got.Files {
			if flags, err := unix.FcntlInt(file.Fd(), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
				t.Fatal("a descriptor would be inherited")
			}
		}
		got.CloseFiles()
	}
	// Times of a trace travel in the head; where it would be too long they stay behind.
	for _, many := range []int{3, 10_000} {
		f := &Frame{ID: 5, Op: "run", Trace: "00-x", Spans: make([]trace.Timing, many)}
		for i := range f.Spans {
			f.Spans[i] = trace.Timing{Name: "step", Parent: -1}
		}
		go a.Send(f)
		got, err := b.Receive()
		if err != nil || got.Op != "run" || got.Trace != f.Trace || len(got.Spans) != many%10_000 {
			t.Errorf("%d spans: %v %+v", many, err, got)
		}
	}
	e := &Frame{ID: 4}
	e.Fail(errs.New(errs.InUse, "%s", strings.Repeat("long ", 100_000)))
	go a.Send(e)
	got, err := b.Receive()
	if err != nil || !errors.Is(got.Failure(), errs.InUse) || !strings.HasPrefix(got.Failure().Error(), "long ") {
		t.Errorf("an error: %v %v", err, got)
	}
	if err := a.Send(&Frame{Body: make([]byte, MaxBody+1)}); !errors.Is(err, errs.Invalid) {
		t.Errorf("too large: %v", err)
	}
	if err := a.Send(&Frame{Files: append(many, w)}); !errors.Is(err, errs.Invalid) {
		t.Errorf("too many: %v", err)
	}
	w.Close()
	a.Close()
	if _, err := b.Receive(); err != io.EOF {
		t.Errorf("the end: %v", err)
	}
}

// What does not follow the protocol is an error, leaves no descriptor open, and costs
// no memory on its word.
func TestHostileFrames(t *testing.T) {
	prefix := func(body uint32, head uint16, files, zero byte) []byte {
		b := make([]byte, 8)
		binary.LittleEndian.PutUint32(b, body)
		binary.LittleEndian.PutUint16(b[4:], head)
		b[6], b[7] = files, zero
		return b
	}
	null, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	rights := func(n int) []byte {
		fds := make([]int, n)
		for i := range fds {
			fds[i] = int(null.Fd())
		}
		return unix.UnixRights(fds...)
	}
	for name, c := range map[string]struct {
		data, oob []byte
		kind      error
	}{
		"huge":           {prefix(1<<32-1, 2, 0, 0), nil, errs.Invalid},
		"above limit":    {prefix(MaxBody+1, 2, 0, 0), nil, errs.Invalid},
		"not zero":       {append(prefix(0, 2, 0, 1), "{}"...), nil, errs.Invalid},
		"no head":        {prefix(0, 0, 0, 0), nil, errs.Invalid},
		"head not json":  {append(prefix(0, 2, 0, 0), "xx"...), nil, errs.Invalid},
		"head an array":  {append(prefix(0, 2, 0, 0), "[]"...), nil, errs.Invalid},
		"negative id":    {append(prefix(0, 9, 0, 0), `{"id":-1}`...), nil, errs.Invalid},
		"cut prefix":     {[]byte{1, 0}, nil, io.ErrUnexpectedEOF},
		"cut body":       {append(prefix(100, 2, 0, 0), "{}"...), nil, io.ErrUnexpectedEOF},
		"cut huge":       {append(prefix(MaxBody, 2, 0, 0), "{}"...), nil, io.ErrUnexpectedEOF},
		"files missing":  {append(prefix(0, 2, 3, 0), "{}"...), rights(2), errs.Invalid},
		"files too many": {append(prefix(0, 2, 1, 0), "{}"...), rights(2), errs.Invalid},
		"files secret":   {append(prefix(0, 2, 0, 0), "{}"...), rights(200), errs.Invalid},
		"files, cut":     {[]byte{1, 0}, rights(5), io.ErrUnexpectedEOF},
	} {
		t.Run(name, func(t *testing.T) {
			before := openFDs(t)
			a, b := pair(t)
			if _, _, err := a.c.WriteMsgUnix(c.data, c.oob, nil); err != nil {
				t.Fatal(err)
			}
			a.c.CloseWrite()
			f, err := b.Receive()
			if !errors.Is(err, c.kind) {
				t.Errorf("%v, %+v", err, f)
			}
			a.Close()
			b.Close()
			if now := openFDs(t); now != before {
				t.Errorf("%d descriptors are open, %d were", now, before)
			}
		})
	}
	if n := testing.AllocsPerRun(10, func() {}); n > 0 {
		t.Fatal(n)
	}
	var p [8]byte
	copy(p[:], prefix(MaxBody, 2, 0, 0))
	res := testing.Benchmark(func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			decode(p, strings.NewReader("{}"))
		}
	})
	if got := res.AllocedBytesPerOp(); got > 2*firstRead {
		t.Errorf("a frame of %d bytes that does not come costs %d", MaxBody, got)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte("\x02\x00\x00\x00\x02\x00\x00\x00{}{}"))
	f.Add([]byte("\x00\x00\x00\x00\x13\x00\x00\x00{\"id\":7,\"op\":\"run\"}"))
	f.Add([]byte("\xff\xff\xff\xff\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) < prefixSize {
			return
		}
		frame, err := decode([prefixSize]byte(data), bytes.NewReader(data[prefixSize:]))
		if err != nil {
			return
		}
		if len(frame.Body) > MaxBody || cap(frame.Body) > 2*len(data)+firstRead {
			t.Fatalf("%d bytes were kept of %d", cap(frame.Body), len(data))
		}
		frame.Failure()
		var into map[string]any
		frame.Decode(&into)
		// What was understood can be said again.
		a, b := pair(t)
		go a.Send(frame)
		again, err := b.Receive()
		if err != nil || again.ID != frame.ID || again.Op != frame.Op || !bytes.Equal(again.Body, frame.Body) {
			t.Fatalf("%+v became %+v, %v", frame, again, err)
		}
	})
}
