package server

import (
	"bytes"
	"sync"
	"time"
)

const (
	maxLine = 16 << 10 // longer lines are written in parts (CRI log format)
	maxOut  = 128 << 10
	// timeFormat is RFC 3339 with nine digits always, so that lines align and sort.
	timeFormat = "2006-01-02T15:04:05.000000000Z07:00"
)

// buffer is what a stream needs while it is moved to its log. Buffers are shared: a
// stream that is silent has none.
type buffer struct {
	in  [64 << 10]byte
	out []byte
}

var buffers = sync.Pool{New: func() any { return &buffer{out: make([]byte, 0, 72<<10)} }}

// cut says what becomes of bytes behind the last end of a line.
type cut int

const (
	cutNot  cut = iota // they wait for more
	cutEnd             // the stream has ended: a line (F)
	cutPart            // a part of a line (P)
)

// format turns the first n bytes of in, from a stream, into lines of the CRI log format
// in out, and tells how many bytes it used: whole lines, parts of lines longer than
// maxLine, and the rest as rest says. It stops where out would pass limit (0: maxOut)
// with another line: the shortest lines grow fortyfold.
func (b *buffer) format(n int, stream string, rest cut, now time.Time, limit int64) (used int) {
	if limit <= 0 || limit > maxOut {
		limit = maxOut
	}
	var head [64]byte
	prefix := now.UTC().AppendFormat(head[:0], timeFormat)
	prefix = append(prefix, ' ')
	prefix = append(prefix, stream...)
	b.out = b.out[:0]
	for used < n {
		left := b.in[used:n]
		end, tag, skip := bytes.IndexByte(left[:min(len(left), maxLine+1)], '\n'), " F ", 1
		switch {
		case end >= 0:
		case len(left) > maxLine:
			end, tag, skip = maxLine, " P ", 0
		case rest == cutEnd:
			end, skip = len(left), 0
		case rest == cutPart:
			end, tag, skip = len(left), " P ", 0
		default:
			return used
		}
		if used > 0 && int64(len(b.out)+len(prefix)+len(tag)+end+1) > limit {
			return used
		}
		b.out = append(b.out, prefix...)
		b.out = append(b.out, tag...)
		b.out = append(b.out, left[:end]...)
		b.out = append(b.out, '\n')
		used += end + skip
	}
	return used
}
