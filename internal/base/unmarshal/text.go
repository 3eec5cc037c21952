package unmarshal

import (
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// text reads the string that begins here (RFC 8259, section 7). One without escapes is a
// part of the document, and costs nothing.
func (d *decoder) text() string {
	d.at++
	start := d.at
	plain := true
	for ; d.at < len(d.s); d.at++ {
		switch c := d.s[d.at]; {
		case c == '"':
			s := d.s[start:d.at]
			d.at++
			if plain || utf8.ValidString(s) {
				return s
			}
			return valid([]byte(s))
		case c == '\\':
			return d.escaped(start)
		case c < ' ':
			d.fail("a string has the control character %q in it", c)
			return ""
		case c >= utf8.RuneSelf:
			plain = false
		}
	}
	d.fail("the document ends in a string")
	return ""
}

// escaped goes on with a string, which begins at start, where it has its first escape.
func (d *decoder) escaped(start int) string {
	b := make([]byte, 0, 64)
	for from := start; ; from = d.at {
		for d.at < len(d.s) && d.s[d.at] != '"' && d.s[d.at] != '\\' && d.s[d.at] >= ' ' {
			d.at++
		}
		b = append(b, d.s[from:d.at]...)
		switch {
		case d.at == len(d.s):
			d.fail("the document ends in a string")
			return ""
		case d.s[d.at] == '"':
			d.at++
			return valid(b)
		case d.s[d.at] != '\\':
			d.fail("a string has the control character %q in it", d.s[d.at])
			return ""
		case d.at+1 == len(d.s):
			d.at++
			d.fail("the document ends in a string")
			return ""
		}
		const from, to = `"\/bfnrt`, "\"\\/\b\f\n\r\t"
		c := d.s[d.at+1]
		if i := strings.IndexByte(from, c); i >= 0 {
			b = append(b, to[i])
			d.at += 2
			continue
		}
		r := d.unit(d.at)
		if r < 0 {
			d.fail("a string has an escape in it that is none")
			return ""
		}
		d.at += 6
		if utf16.IsSurrogate(r) {
			if pair := utf16.DecodeRune(r, d.unit(d.at)); pair != utf8.RuneError {
				r = pair
				d.at += 6
			} else {
				r = utf8.RuneError
			}
		}
		b = utf8.AppendRune(b, r)
	}
}

// unit reads \uXXXX, −1 where there is none.
func (d *decoder) unit(at int) rune {
	if len(d.s) < at+6 || d.s[at] != '\\' || d.s[at+1] != 'u' {
		return -1
	}
	var r rune
	for _, c := range []byte(d.s[at+2 : at+6]) {
		switch {
		case c >= '0' && c <= '9':
			c -= '0'
		case c|0x20 >= 'a' && c|0x20 <= 'f':
			c = c | 0x20 - 'a' + 10
		default:
			return -1
		}
		r = r<<4 | rune(c)
	}
	return r
}

// valid puts U+FFFD in the place of each byte that is no UTF-8.
func valid(b []byte) string {
	if utf8.Valid(b) {
		return string(b)
	}
	out := make([]byte, 0, len(b)+8)
	for len(b) > 0 {
		r, n := utf8.DecodeRune(b)
		out = utf8.AppendRune(out, r)
		b = b[n:]
	}
	return string(out)
}
