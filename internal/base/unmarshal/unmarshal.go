// Package unmarshal reads JSON documents into Go values for commands that read one and end.
//
// encoding/json prepares, before the first byte, for every type that the document could
// lead to, encoders included. For a runtime specification that is more than all else that a
// command does with it. Here a type is looked at when a value for it comes.
//
// What a document means is what it means to encoding/json: names are matched exactly and
// then without regard to case, null leaves a value as it is or makes it nil, of several
// members with one name the later are read over the earlier, unknown members are passed over,
// and what is no UTF-8 becomes U+FFFD. A fuzzer compares the two.
//
// Types may be made of structs (embedded ones too), pointers, slices, maps with strings for
// keys, strings, booleans, numbers, Raw, and whatever is an encoding.TextUnmarshaler by its
// pointer. Others, and the tag's option "string", panic: they are the program's mistake.
package unmarshal

import (
	"encoding"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"sync"
)

// Raw is a value as it stands in the document, known to be well-formed.
type Raw string

// JSON reads the document, which has to be one value, into what into points to. On error
// what it points to may be read in part. It is safe for concurrent use.
func JSON(document []byte, into any) error {
	d := decoder{s: string(document)}
	d.space()
	d.value(reflect.ValueOf(into).Elem(), 0)
	if d.err == nil {
		if d.space(); d.at < len(d.s) {
			d.fail("%q after the end of the document", d.s[d.at])
		}
	}
	if d.err == nil {
		d.err = d.mismatch
	}
	return d.err
}

// maxDepth is how deep values may be nested, as in encoding/json.
const maxDepth = 10000

type decoder struct {
	s  string
	at int
	// err ends the reading; mismatch, the first value that is of another type than it should
	// be, does not: a document that is no JSON at all is the graver mistake.
	err, mismatch error
}

func (d *decoder) fail(format string, args ...any) {
	if d.err == nil {
		d.err = fmt.Errorf("at byte %d: "+format, append([]any{d.at}, args...)...)
	}
	d.at = len(d.s)
}

func (d *decoder) mismatched(what string, t reflect.Type) {
	if d.mismatch == nil {
		d.mismatch = fmt.Errorf("at byte %d: %s cannot be a %s", d.at, what, t)
	}
}

func (d *decoder) space() {
	for d.at < len(d.s) && (d.s[d.at] == ' ' || d.s[d.at] == '\n' || d.s[d.at] == '\t' || d.s[d.at] == '\r') {
		d.at++
	}
}

// next passes over blanks and returns the byte that follows, 0 at the end.
func (d *decoder) next() byte {
	d.space()
	if d.at == len(d.s) {
		d.fail("the document ends too early")
		return 0
	}
	return d.s[d.at]
}

// value reads the value that begins here.
func (d *decoder) value(v reflect.Value, depth int) {
	if depth > maxDepth {
		d.fail("values are nested deeper than %d", maxDepth)
	}
	c := d.next()
	if d.err != nil {
		return
	}
	if v.IsValid() && v.Type() == rawType {
		start := d.at
		d.value(reflect.Value{}, depth)
		v.SetString(d.s[start:d.at])
		return
	}
	if c == 'n' {
		if d.word("null") && v.IsValid() {
			switch v.Kind() {
			case reflect.Pointer, reflect.Map, reflect.Slice:
				v.SetZero()
			}
		}
		return
	}
	for v.IsValid() && v.Kind() == reflect.Pointer {
		if v.IsNil() {
			v.Set(reflect.New(v.Type().Elem()))
		}
		v = v.Elem()
	}
	switch c {
	case '{':
		d.object(v, depth)
	case '[':
		d.array(v, depth)
	case '"':
		s := d.text()
		if v.IsValid() && d.err == nil {
			d.setText(v, s)
		}
	case 't', 'f':
		word := "true"
		if c == 'f' {
			word = "false"
		}
		if d.word(word) && v.IsValid() {
			if v.Kind() == reflect.Bool {
				v.SetBool(c == 't')
			} else {
				d.mismatched(word, v.Type())
			}
		}
	default:
		s := d.number()
		if v.IsValid() && d.err == nil {
			d.setNumber(v, s)
		}
	}
}

func (d *decoder) word(w string) bool {
	if !strings.HasPrefix(d.s[d.at:], w) {
		d.fail("%q is no value", d.s[d.at])
		return false
	}
	d.at += len(w)
	return true
}

// object reads the members of an object into a struct or a map, or passes over them.
func (d *decoder) object(v reflect.Value, depth int) {
	var fields *structure
	var element reflect.Value
	if v.IsValid() {
		switch t := v.Type(); {
		case t.Kind() == reflect.Map && t.Key().Kind() == reflect.String:
			if v.IsNil() {
				v.Set(reflect.MakeMap(t))
			}
			element = reflect.New(t.Elem()).Elem()
		case t.Kind() == reflect.Struct && !isText(t):
			fields = structureOf(t)
		default:
			d.mismatched("an object", t)
			v = reflect.Value{}
		}
	}
	d.at++
	if d.next() == '}' {
		d.at++
		return
	}
	for d.err == nil {
		if d.next() != '"' {
			d.fail("a member of an object begins with its name")
			return
		}
		name := d.text()
		if d.next() != ':' {
			d.fail("a name is followed by a colon")
			return
		}
		d.at++
		switch {
		case fields != nil:
			d.value(fields.field(v, name), depth+1)
		case element.IsValid():
			element.SetZero()
			if d.value(element, depth+1); d.err == nil {
				v.SetMapIndex(reflect.ValueOf(name).Convert(v.Type().Key()), element)
			}
		default:
			d.value(reflect.Value{}, depth+1)
		}
		if d.err == nil && !d.more('}') {
			return
		}
	}
}

// more tells whether another element follows, and passes over what says so.
func (d *decoder) more(end byte) bool {
	switch c := d.next(); {
	case d.err != nil:
		return false
	case c == ',':
		d.at++
		return true
	case c == end:
		d.at++
		return false
	}
	d.fail("%q where a comma or %q should be", d.s[d.at], end)
	return false
}

func (d *decoder) array(v reflect.Value, depth int) {
	if v.IsValid() && v.Kind() != reflect.Slice {
		d.mismatched("an array", v.Type())
		v = reflect.Value{}
	}
	d.at++
	n := 0
	if d.next() == ']' {
		d.at++
	} else {
		for d.err == nil {
			var element reflect.Value
			if v.IsValid() {
				if n == v.Cap() {
					v.Grow(max(4, n, d.strings()))
				}
				if n >= v.Len() {
					v.SetLen(n + 1)
				}
				element = v.Index(n)
			}
			d.value(element, depth+1)
			n++
			if d.err == nil && !d.more(']') {
				break
			}
		}
	}
	if v.IsValid() && d.err == nil {
		if n == 0 {
			v.Set(reflect.MakeSlice(v.Type(), 0, 0))
		}
		v.SetLen(n)
	}
}

// strings estimates how many strings follow, where lists of them stand: of a list of hundreds most
// of the memory would be what it had before it grew.
func (d *decoder) strings() int {
	if !strings.HasPrefix(d.s[d.at:], `"`) {
		return 0
	}
	list, _, _ := strings.Cut(d.s[d.at:], "]")
	return strings.Count(list, `",`) + 1
}

func (d *decoder) setText(v reflect.Value, s string) {
	switch t := v.Type(); {
	case t.Kind() == reflect.String:
		v.SetString(s)
	case isText(t):
		if err := v.Addr().Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(s)); err != nil && d.mismatch == nil {
			d.mismatch = fmt.Errorf("at byte %d: %w", d.at, err)
		}
	default:
		d.mismatched("a string", t)
	}
}

func (d *decoder) setNumber(v reflect.Value, s string) {
	var err error
	switch v.Kind() {
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		var n int64
		if n, err = strconv.ParseInt(s, 10, v.Type().Bits()); err == nil {
			v.SetInt(n)
		}
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		var n uint64
		if n, err = strconv.ParseUint(s, 10, v.Type().Bits()); err == nil {
			v.SetUint(n)
		}
	case reflect.Float32, reflect.Float64:
		var n float64
		if n, err = strconv.ParseFloat(s, v.Type().Bits()); err == nil {
			v.SetFloat(n)
		}
	default:
		err = strconv.ErrSyntax
	}
	if err != nil {
		d.mismatched("number "+s, v.Type())
	}
}

// number passes over a number (RFC 8259, section 6) and returns it.
func (d *decoder) number() string {
	start := d.at
	digits := func() bool {
		from := d.at
		for d.at < len(d.s) && d.s[d.at] >= '0' && d.s[d.at] <= '9' {
			d.at++
		}
		return d.at > from
	}
	is := func(chars string) bool {
		if d.at < len(d.s) && strings.IndexByte(chars, d.s[d.at]) >= 0 {
			d.at++
			return true
		}
		return false
	}
	is("-")
	ok := is("0") || digits()
	if ok && is(".") {
		ok = digits()
	}
	if ok && is("eE") {
		is("+-")
		ok = digits()
	}
	if !ok {
		d.at = start
		d.fail("%q is no value", d.s[start])
		return ""
	}
	return d.s[start:d.at]
}

// structure is what a struct's members are called, in the order in which they count.
type structure struct {
	names []string
	index [][]int
}

var structures sync.Map // reflect.Type to *structure

func structureOf(t reflect.Type) *structure {
	if s, ok := structures.Load(t); ok {
		return s.(*structure)
	}
	s := &structure{}
	s.add(t, nil)
	structures.Store(t, s)
	return s
}

func (s *structure) add(t reflect.Type, at []int) {
	var embedded [][]int
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		index := append(at[:len(at):len(at)], i)
		switch {
		case f.Anonymous && name == "" && f.Type.Kind() == reflect.Struct:
			embedded = append(embedded, index)
			continue
		case !f.IsExported() || name == "-" && options == "":
			continue
		case strings.Contains(options, "string"):
			panic("unmarshal: the option string of " + t.String() + "." + f.Name)
		case name == "":
			name = f.Name
		}
		s.names, s.index = append(s.names, name), append(s.index, index)
	}
	for _, index := range embedded {
		s.add(t.Field(index[len(index)-1]).Type, index)
	}
}

// field is the field for a member, the zero Value where there is none.
func (s *structure) field(v reflect.Value, name string) reflect.Value {
	for i, n := range s.names {
		if n == name {
			return v.FieldByIndex(s.index[i])
		}
	}
	for i, n := range s.names {
		if strings.EqualFold(n, name) {
			return v.FieldByIndex(s.index[i])
		}
	}
	return reflect.Value{}
}

var (
	rawType  = reflect.TypeFor[Raw]()
	textType = reflect.TypeFor[encoding.TextUnmarshaler]()
)

// isText tells whether values of a type are read from strings by themselves.
func isText(t reflect.Type) bool {
	return t.Name() != "" && t.PkgPath() != "" && t.Kind() == reflect.Struct && reflect.PointerTo(t).Implements(textType)
}
