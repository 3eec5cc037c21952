package container

import (
	"maps"
	"slices"
	"strconv"
	"unicode/utf8"
)

// encode is json.Marshal for a record. It is written at every create, and
// encoding/json takes half a millisecond to get to know a type before it writes the first.
func (r *record) encode() ([]byte, error) {
	created, err := r.Created.MarshalText()
	if err != nil {
		return nil, err
	}
	o := object{buf: make([]byte, 0, 1024)}
	o.open()
	o.number("version", uint64(r.Version))
	o.string("ociVersion", r.OCIVersion)
	o.string("id", r.ID)
	o.string("bundle", r.Bundle)
	o.string("rootfs", r.Rootfs)
	o.string("created", string(created))
	o.number("owner", uint64(r.Owner))
	o.strings("annotations", r.Annotations)
	o.optional("cgroup", r.Cgroup)
	o.optional("cgroupDriver", string(r.Driver))
	o.strings("cgroupBelow", r.CgroupBelow)
	o.bool("pidNamespace", r.PIDNamespace)
	if r.PID != 0 {
		o.number("pid", uint64(r.PID))
	}
	if r.Start != 0 {
		o.number("start", r.Start)
	}
	o.optional("boot", r.Boot)
	if r.Restore {
		o.bool("restore", true)
	}
	o.optional("notify", r.Notify)
	o.close()
	return o.buf, nil
}

// object writes an object of JSON.
type object struct{ buf []byte }

func (o *object) open()  { o.buf = append(o.buf, '{') }
func (o *object) close() { o.buf = append(o.buf, '}') }

func (o *object) name(s string) {
	if o.buf[len(o.buf)-1] != '{' {
		o.buf = append(o.buf, ',')
	}
	o.quote(s)
	o.buf = append(o.buf, ':')
}

func (o *object) number(name string, n uint64) {
	o.name(name)
	o.buf = strconv.AppendUint(o.buf, n, 10)
}

func (o *object) bool(name string, b bool) {
	o.name(name)
	o.buf = strconv.AppendBool(o.buf, b)
}

func (o *object) string(name, s string) {
	o.name(name)
	o.quote(s)
}

func (o *object) optional(name, s string) {
	if s != "" {
		o.string(name, s)
	}
}

func (o *object) strings(name string, m map[string]string) {
	if len(m) == 0 {
		return
	}
	o.name(name)
	o.open()
	for _, k := range slices.Sorted(maps.Keys(m)) {
		o.string(k, m[k])
	}
	o.close()
}

// quote writes a string (RFC 8259, section 7). What is no UTF-8 becomes U+FFFD, as there.
func (o *object) quote(s string) {
	const hex = "0123456789abcdef"
	o.buf = append(o.buf, '"')
	for _, c := range s {
		switch {
		case c == '"' || c == '\\':
			o.buf = append(o.buf, '\\', byte(c))
		case c < ' ':
			o.buf = append(o.buf, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		default:
			o.buf = utf8.AppendRune(o.buf, c)
		}
	}
	o.buf = append(o.buf, '"')
}
