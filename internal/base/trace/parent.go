package trace

import (
	"encoding/hex"
	"strings"
)

// Parent names a span of another process, in the form in which it travels: the header
// fields of W3C Trace Context (https://www.w3.org/TR/trace-context/).
type Parent struct {
	// Traceparent is version, trace id, span id and flags; "" is no parent.
	Traceparent string
	// State is the tracestate field: what vendors add. It is passed on as it is.
	State string
}

// Names of the header fields.
const (
	TraceparentField = "traceparent"
	TracestateField  = "tracestate"
)

// ID is what Traceparent says.
type ID struct {
	Trace   [16]byte
	Span    [8]byte
	Sampled bool
}

// Decode returns what Traceparent says, and false where it says nothing that is valid:
// the specification wants such a field to be treated as none.
func (p Parent) Decode() (id ID, ok bool) {
	s := p.Traceparent
	// 00-<32>-<16>-<2>; later versions may have more after a dash (section 3.2.4).
	if len(s) < 55 || s[2] != '-' || s[35] != '-' || s[52] != '-' || len(s) > 55 && (s[:2] == "00" || s[55] != '-') {
		return ID{}, false
	}
	var version, flags [1]byte
	for _, f := range []struct {
		to   []byte
		text string
	}{{version[:], s[:2]}, {id.Trace[:], s[3:35]}, {id.Span[:], s[36:52]}, {flags[:], s[53:55]}} {
		if strings.ToLower(f.text) != f.text {
			return ID{}, false
		}
		if _, err := hex.Decode(f.to, []byte(f.text)); err != nil {
			return ID{}, false
		}
	}
	if version[0] == 0xff || id.Trace == [16]byte{} || id.Span == [8]byte{} {
		return ID{}, false
	}
	id.Sampled = flags[0]&1 != 0
	return id, true
}

// Encode returns the Traceparent.
func (id ID) Encode() string {
	flags := "-00"
	if id.Sampled {
		flags = "-01"
	}
	return "00-" + hex.EncodeToString(id.Trace[:]) + "-" + hex.EncodeToString(id.Span[:]) + flags
}
