// Package wire is the protocol between the daemon and the keeper: frames of JSON
// over a unix stream socket, with open descriptors beside them (SCM_RIGHTS, unix(7)).
//
// A frame is a header of 8 bytes, sent in one message together with the
// descriptors, and the body:
//
//	0  uint32, little-endian   length of the body, at most MaxBody
//	4  uint8                   number of descriptors, at most MaxFiles
//	5  3 bytes                 zero
//
// The body is one JSON object, Frame. A request carries an ID of the client's
// choosing; its answer carries the same. A frame of the server's with ID 0 is an
// event. Requests are answered in any order.
package wire

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
)

const (
	// Version is said in the first request; the two sides must agree.
	Version = 1
	// MaxBody bounds a frame: a specification with a large environment fits.
	MaxBody = 8 << 20
	// MaxFiles is what the kernel passes in one message (SCM_MAX_FD).
	MaxFiles = 253

	headerSize = 8
)

// Frame is a request, an answer or an event.
type Frame struct {
	ID   uint64          `json:"id,omitempty"`
	Op   string          `json:"op,omitempty"`   // of requests and events
	Err  string          `json:"err,omitempty"`  // of answers
	Kind string          `json:"kind,omitempty"` // the error's kind
	Body json.RawMessage `json:"body,omitempty"`

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
	raw, err := json.Marshal(v)
	f.Body = raw
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
	c  *net.UnixConn
	mu sync.Mutex // one frame at a time is sent
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

// Send sends the frame. Its files stay the caller's.
func (c *Conn) Send(f *Frame) error {
	body, err := json.Marshal(f)
	if err != nil {
		return err
	}
	if len(body) > MaxBody || len(f.Files) > MaxFiles {
		return errs.New(errs.Invalid, "%s: a frame of %d bytes and %d descriptors is above the limit of %d and %d", f.Op, len(body), len(f.Files), MaxBody, MaxFiles)
	}
	var head [headerSize]byte
	binary.LittleEndian.PutUint32(head[:], uint32(len(body)))
	head[4] = byte(len(f.Files))
	var oob []byte
	if len(f.Files) > 0 {
		fds := make([]int, len(f.Files))
		for i, file := range f.Files {
			fds[i] = int(file.Fd())
		}
		oob = unix.UnixRights(fds...)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if oob == nil { // one system call
		buf := append(head[:], body...)
		_, err = c.c.Write(buf)
		return err
	}
	n, _, err := c.c.WriteMsgUnix(head[:], oob, nil)
	if err == nil && n < headerSize {
		_, err = c.c.Write(head[n:])
	}
	if err == nil {
		_, err = c.c.Write(body)
	}
	return err
}

// Receive returns the next frame. io.EOF is the end between two frames.
func (c *Conn) Receive() (*Frame, error) {
	var head [headerSize]byte
	var files []*os.File
	fail := func(err error) (*Frame, error) {
		for _, f := range files {
			f.Close()
		}
		return nil, err
	}
	oob := make([]byte, unix.CmsgSpace(MaxFiles*4))
	for got := 0; got < headerSize; {
		n, oobn, flags, _, err := c.c.ReadMsgUnix(head[got:], oob)
		if oobn > 0 {
			more, perr := parseRights(oob[:oobn])
			files = append(files, more...)
			if perr != nil {
				return fail(perr)
			}
		}
		if err != nil {
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
	size, count := binary.LittleEndian.Uint32(head[:]), int(head[4])
	if size > MaxBody || head[5]|head[6]|head[7] != 0 {
		return fail(errs.New(errs.Invalid, "a frame with the header % x is none", head))
	}
	if count != len(files) {
		return fail(errs.New(errs.Invalid, "a frame announces %d descriptors and brings %d", count, len(files)))
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(c.c, body); err != nil {
		return fail(err)
	}
	f, err := decode(body)
	if err != nil {
		return fail(err)
	}
	f.Files = files
	return f, nil
}

func decode(body []byte) (*Frame, error) {
	f := new(Frame)
	if err := json.Unmarshal(body, f); err != nil {
		return nil, errs.New(errs.Invalid, "a frame's body is not an object: %w", err)
	}
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
			syscall.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "passed"))
		}
	}
	return files, nil
}
