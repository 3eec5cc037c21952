package boot

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
)

// Kinds of frames. A frame is its kind, a byte; the length of its content, four bytes,
// big-endian; and the content.
const (
	FrameReady   = 'r' // guest: the machine is prepared (Status)
	FrameCommand = 'c' // host: run this (Command)
	FrameStdout  = 'o' // guest: output of the command
	FrameStderr  = 'e'
	FrameEnd     = 'x' // guest: the command has ended (Status); its output came before
	FrameOff     = 'q' // host: end the machine
)

// maxFrame is the longest content. Output is sent in much smaller pieces.
const maxFrame = 1 << 20

// WriteFrame writes a frame with one call of Write.
func WriteFrame(w io.Writer, kind byte, content []byte) error {
	b := make([]byte, 5, 5+len(content))
	b[0] = kind
	binary.BigEndian.PutUint32(b[1:], uint32(len(content)))
	_, err := w.Write(append(b, content...))
	return err
}

// WriteJSON writes a frame whose content is v in JSON.
func WriteJSON(w io.Writer, kind byte, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return WriteFrame(w, kind, b)
}

// ReadFrame reads a frame. At the end of the stream its error is io.EOF.
func ReadFrame(r io.Reader) (kind byte, content []byte, err error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n > maxFrame {
		return 0, nil, fmt.Errorf("frame %q of %d bytes", head[0], n)
	}
	content = make([]byte, n)
	if _, err := io.ReadFull(r, content); err != nil {
		return 0, nil, fmt.Errorf("frame %q: %w", head[0], err)
	}
	return head[0], content, nil
}
