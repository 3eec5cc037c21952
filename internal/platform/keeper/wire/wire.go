// Package wire is the protocol between the daemon and the keeper: frames over a unix
// stream socket, with open descriptors beside them (SCM_RIGHTS, unix(7)).
//
// A frame is a prefix of 8 bytes, sent in one message together with the
// descriptors, a head and a body:
//
//	0  uint32, little-endian   length of the body, at most MaxBody
//	4  uint16, little-endian   length of the head, at most MaxHead
//	6  uint8                   number of descriptors, at most MaxFiles
//	7  uint8                   zero
//	8  head                    one JSON object: id, op, err, kind, trace, spans
//	   body                    one JSON value, or nothing
//
// The body is apart from the head so that a large one (a specification) is scanned only
// by the one who decodes it. A request carries an id of the client's choosing; its answer
// carries the same. A frame of the server's with id 0 is an event. Requests are answered
// in any order.
package wire

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/trace"
)

const (
	// Version is said in the first request; the two sides must agree.
	Version = 1
	// MaxBody bounds a body: a specification with a large environment fits.
	MaxBody = 8 << 20
	// MaxHead bounds a head; a longer error is cut.
	MaxHead = 1<<16 - 1
	// MaxFiles is what the kernel passes in one message (SCM_MAX_FD).
	MaxFiles = 253

	prefixSize = 8
	maxError   = 8 << 10
	// firstRead is how much memory a frame gets on its word alone; more only as it comes.
	firstRead = 64 << 10
)

// Frame is a request, an answer or an event.
type Frame struct {
	ID   uint64 `json:"id,omitempty"`
	Op   string `json:"op,omitempty"`   // of requests and events
	Err  string `json:"err,omitempty"`  // of answers
	Kind string `json:"kind,omitempty"` // the error's kind

	// Trace is the client's span, as a W3C traceparent: the answer is to bring the times
	// of what was done. Spans are these. A peer that knows neither leaves them out.
	Trace string         `json:"trace,omitempty"`
	Spans []trace.Timing `json:"spans,omitempty"`

	Body []byte `json:"-"` // JSON
	// Files are the receiver's to close.
	Files []*os.File `json:"-"`
}

// CloseFiles closes every descriptor of the frame.
func (f *Frame) CloseFiles() {
	for _, file := range f.Files {
		file.Close()
	}
	f.Files = nil
}

// Fail makes the frame carry the error.
func (f *Frame) Fail(err error) {
	f.Err, f.Kind = err.Error(), errs.KindOf(err).Error()
	if len(f.Err) > maxError {
		f.Err = f.Err[:maxError] + " …"
	}
}

// Failure returns the error that the frame carries, or nil.
func (f *Frame) Failure() error {
	if f.Err == "" {
		return nil
	}
	return errs.New(errs.ParseKind(f.Kind), "%s", f.Err)
}

// Encode sets the body.
func (f *Frame) Encode(v any) error {
	if v == nil {
		return nil
	}
	var err error
	f.Body, err = json.Marshal(v)
	return err
}

// Decode reads the body.
func (f *Frame) Decode(v any) error {
	if len(f.Body) == 0 {
		return nil
	}
	if err := json.Unmarshal(f.Body, v); err != nil {
		return errs.New(errs.Invalid, "decode %s: %w", f.Op, err)
	}
	return nil
}

// Conn sends and receives frames. Send may be called from several goroutines,
// Receive from one.
type Conn struct {
	c       *net.UnixConn
	mu      sync.Mutex // one frame at a time is sent
	timeout time.Duration
	oob     [unix.SizeofCmsghdr + 1024]byte // MaxFiles of them, and padding; for Receive
}

// NewConn takes over the connection.
func NewConn(c *net.UnixConn) *Conn { return &Conn{c: c} }

// Close closes the connection; Receive returns an error.
func (c *Conn) Close() error { return c.c.Close() }

// PeerUID returns the user id of the process at the other end (SO_PEERCRED).
func (c *Conn) PeerUID() (uid uint32, err error) {
	raw, err := c.c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	cerr := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if cerr != nil {
		return 0, cerr
	}
	if err != nil {
		return 0, err
	}
	return cred.Uid, nil
}

// SetSendTimeout bounds every Send from now on; one that takes longer fails, and the
// connection is of no use any more.
func (c *Conn) SetSendTimeout(d time.Duration) { c.timeout = d }

// Send sends the frame. Its files stay the caller's. errs.Invalid is of the frame, of which
// nothing was sent; after another error the connection is of no use any more.
func (c *Conn) Send(f *Frame) error {
	head, err := json.Marshal(f)
	if err == nil && len(head) > MaxHead && len(f.Spans) > 0 { // what matters comes first
		short := *f
		short.Spans = nil
		head, err = json.Marshal(&short)
	}
	if err != nil {
		return errs.New(errs.Invalid, "%s: %w", f.Op, err)
	}
	if len(head) > MaxHead || len(f.Body) > MaxBody || len(f.Files) > MaxFiles {
		return errs.New(errs.Invalid, "%s: a frame of %d bytes and %d descriptors is above the limit of %d and %d", f.Op, len(head)+len(f.Body), len(f.Files), MaxBody, MaxFiles)
	}
	buf := make([]byte, prefixSize, prefixSize+len(head)+len(f.Body))
	binary.LittleEndian.PutUint32(buf, uint32(len(f.Body)))
	binary.LittleEndian.PutUint16(buf[4:], uint16(len(head)))
	buf[6] = byte(len(f.Files))
	buf = append(append(buf, head...), f.Body...)
	var oob []byte
	if len(f.Files) > 0 {
		fds := make([]int, len(f.Files))
		for i, file := range f.Files {
			// Not Fd: that makes a pipe of the Go caller's blocking.
			raw, err := file.SyscallConn()
			if err == nil {
				err = raw.Control(func(fd uintptr) { fds[i] = int(fd) })
			}
			if err != nil {
				return errs.New(errs.Invalid, "%s: a descriptor that is to be sent: %w", f.Op, err)
			}
		}
		oob = unix.UnixRights(fds...)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.timeout > 0 {
		c.c.SetWriteDeadline(time.Now().Add(c.timeout))
	}
	n := 0
	if oob != nil {
		// A descriptor travels with the first byte of the message that it was sent with.
		if n, _, err = c.c.WriteMsgUnix(buf[:prefixSize], oob, nil); err != nil {
			return err
		}
	}
	_, err = c.c.Write(buf[n:])
	runtime.KeepAlive(f)
	return err
}

// Receive returns the next frame. io.EOF is the end between two frames.
func (c *Conn) Receive() (*Frame, error) {
	var prefix [prefixSize]byte
	var files []*os.File
	fail := func(err error) (*Frame, error) {
		for _, f := range files {
			f.Close()
		}
		return nil, err
	}
	for got := 0; got < prefixSize; {
		n, oobn, flags, _, err := c.c.ReadMsgUnix(prefix[got:], c.oob[:])
		if oobn > 0 {
			more, perr := parseRights(c.oob[:oobn])
			files = append(files, more...)
			if perr != nil {
				return fail(perr)
			}
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return fail(err)
		}
		if n == 0 {
			if got == 0 && len(files) == 0 {
				return nil, io.EOF
			}
			return fail(io.ErrUnexpectedEOF)
		}
		if flags&unix.MSG_CTRUNC != 0 {
			return fail(errs.New(errs.Invalid, "more descriptors than a frame may carry, or than this process may open"))
		}
		got += n
	}
	if count := int(prefix[6]); count != len(files) {
		return fail(errs.New(errs.Invalid, "a frame announces %d descriptors and brings %d", count, len(files)))
	}
	f, err := decode(prefix, c.c)
	if err != nil {
		return fail(err)
	}
	f.Files = files
	return f, nil
}

// decode reads what follows a prefix. It allocates no more than what has come, and
// firstRead.
func decode(prefix [prefixSize]byte, r io.Reader) (*Frame, error) {
	size, head := int(binary.LittleEndian.Uint32(prefix[:])), int(binary.LittleEndian.Uint16(prefix[4:]))
	if size > MaxBody || prefix[6] > MaxFiles || prefix[7] != 0 {
		return nil, errs.New(errs.Invalid, "% x does not begin a frame", prefix)
	}
	buf := make([]byte, 0, min(head+size, firstRead))
	for len(buf) < head+size {
		if len(buf) == cap(buf) {
			buf = slices.Grow(buf, min(head+size-len(buf), len(buf)))
		}
		n, err := r.Read(buf[len(buf):min(cap(buf), head+size)])
		buf = buf[:len(buf)+n]
		if err != nil && len(buf) < head+size {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
	f := new(Frame)
	if err := json.Unmarshal(buf[:head], f); err != nil {
		return nil, errs.New(errs.Invalid, "the head of a frame is not an object: %w", err)
	}
	f.Body = buf[head:]
	return f, nil
}

func parseRights(oob []byte) (files []*os.File, err error) {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	for _, m := range msgs {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return files, fmt.Errorf("an unexpected control message: %w", err)
		}
		for _, fd := range fds {
			// ReadMsgUnix has asked for MSG_CMSG_CLOEXEC.
			files = append(files, os.NewFile(uintptr(fd), "passed"))
		}
	}
	return files, nil
}
