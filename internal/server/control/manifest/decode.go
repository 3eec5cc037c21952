package manifest

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// decoder reads one file. It notes where every field was, so that later checks can
// name lines.
type decoder struct {
	file     string
	problems Problems
	steps    int
	at       map[string]position // of the object being decoded, by path
	prefix   string              // of the object, when it is a member of a list
	failed   map[string]bool     // paths that could not be read
	// truncated: there are more problems than are shown.
	truncated bool
}

// bad notes a problem.
func (d *decoder) bad(at position, path, format string, args ...any) {
	if len(d.problems) >= maxProblems {
		d.truncated = true
		return
	}
	d.problems = append(d.problems, Problem{File: d.file, Line: at.line, Column: at.column, Path: path, Message: fmt.Sprintf(format, args...)})
}

func (d *decoder) full() bool { return d.truncated }

// fail is bad for a value that could not be read: what is checked later below it is
// not reported.
func (d *decoder) fail(n *yaml.Node, path, format string, args ...any) {
	d.failed[path] = true
	d.bad(place(n), d.where(path), format, args...)
}

func (d *decoder) where(path string) string {
	if d.prefix == "" {
		return path
	}
	return join(d.prefix, path)
}

// invalid notes a problem that validation found at a path. A path that is not in
// the file (a missing field) gets the line of its nearest parent.
func (d *decoder) invalid(path, format string, args ...any) {
	for p := path; ; {
		if d.failed[p] {
			return
		}
		if p == "" {
			break
		}
		p = parent(p)
	}
	p := path
	for p != "" && d.at[p] == (position{}) {
		p = parent(p)
	}
	d.bad(d.at[p], d.where(path), format, args...)
}

// parent returns the path without its last element.
func parent(path string) string {
	if strings.HasSuffix(path, "]") {
		return path[:strings.LastIndexByte(path, '[')]
	}
	return path[:max(0, strings.LastIndexByte(path, '.'))]
}

var (
	jsonUnmarshaler = reflect.TypeFor[json.Unmarshaler]()
	byteSlice       = reflect.TypeFor[[]byte]()
)

// value decodes n into v.
func (d *decoder) value(n *yaml.Node, v reflect.Value, path string, depth int) {
	n = resolve(n)
	if d.steps++; d.steps > maxSteps || depth > maxDepth {
		if d.steps <= maxSteps || d.steps == maxSteps+1 {
			d.fail(n, path, "the file expands to too much: it may have %d values, nested %d deep", maxSteps, maxDepth)
		}
		return
	}
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return // as if it were not there
	}
	t := v.Type()
	if reflect.PointerTo(t).Implements(jsonUnmarshaler) {
		d.custom(n, v, path)
		return
	}
	if t == byteSlice {
		d.base64(n, v, path)
		return
	}
	switch t.Kind() {
	case reflect.Pointer:
		p := reflect.New(t.Elem())
		d.value(n, p.Elem(), path, depth)
		v.Set(p)
	case reflect.Struct:
		d.structure(n, v, path, depth)
	case reflect.Map:
		d.mapping(n, v, path, depth)
	case reflect.Slice:
		if n.Kind != yaml.SequenceNode {
			d.fail(n, path, "must be a list, and it is %s", describe(n))
			return
		}
		s := reflect.MakeSlice(t, len(n.Content), len(n.Content))
		for i, c := range n.Content {
			p := path + "[" + strconv.Itoa(i) + "]"
			d.at[p] = place(c)
			d.value(c, s.Index(i), p, depth+1)
			if d.full() {
				return
			}
		}
		v.Set(s)
	default:
		d.scalar(n, v, path)
	}
}

// pairs returns the entries of a mapping with merged ones (<<) after the mapping's own; an
// own key hides a merged one.
func (d *decoder) pairs(n *yaml.Node, path string, depth int) [][2]*yaml.Node {
	var own, merged [][2]*yaml.Node
	have := map[string]*yaml.Node{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		if k.Tag == "!!merge" {
			sources := []*yaml.Node{resolve(v)}
			if sources[0].Kind == yaml.SequenceNode {
				sources = sources[0].Content
			}
			for _, s := range sources {
				if s = resolve(s); s.Kind != yaml.MappingNode {
					d.bad(place(k), d.where(path), "a merge (<<) must name mappings")
					continue
				}
				if d.steps += 1 + len(s.Content); depth >= maxDepth || d.steps > maxSteps {
					d.fail(k, path, "the file expands to too much")
					return nil
				}
				merged = append(merged, d.pairs(s, path, depth+1)...)
			}
			continue
		}
		if k = resolve(k); k.Kind != yaml.ScalarNode {
			d.bad(place(k), d.where(path), "a key must be a plain name, and this is %s", describe(k))
			continue
		}
		if before := have[k.Value]; before != nil {
			d.bad(place(k), d.where(join(path, k.Value)), "this key is here twice; the first is at line %d", before.Line)
			continue
		}
		have[k.Value] = k
		own = append(own, [2]*yaml.Node{k, v})
	}
	for _, m := range merged {
		if have[m[0].Value] == nil {
			have[m[0].Value] = m[0]
			own = append(own, m)
		}
	}
	return own
}

func (d *decoder) structure(n *yaml.Node, v reflect.Value, path string, depth int) {
	if n.Kind != yaml.MappingNode {
		d.fail(n, path, "must be a mapping of fields, and it is %s", describe(n))
		return
	}
	fields := fieldsOf(v.Type())
	for _, kv := range d.pairs(n, path, depth) {
		key, val := kv[0], kv[1]
		p := join(path, key.Value)
		f, ok := fields[key.Value]
		if !ok {
			d.unknown(key, p, v.Type(), fields)
			continue
		}
		d.at[p] = place(key)
		if isNull(val) {
			continue
		}
		switch r := ruleOf(f); r.class {
		case converted:
			d.value(val, v.FieldByIndex(f.index), p, depth+1)
		case ignored:
			// By design. Its inside is not looked at.
		case refused:
			d.fail(key, p, "%s", r.why)
		case emptyOnly:
			if v := resolve(val); len(v.Content) > 0 || v.Value != "" {
				d.fail(key, p, "%s", r.why)
			}
		case checked:
			d.value(val, v.FieldByIndex(f.index), p, depth+1)
			if msg := r.check(v.FieldByIndex(f.index)); msg != "" && !d.failed[p] {
				d.fail(key, p, "%s", msg)
			}
		}
		if d.full() {
			return
		}
	}
}

func (d *decoder) unknown(key *yaml.Node, path string, t reflect.Type, fields map[string]field) {
	names := make([]string, 0, len(fields))
	for name, f := range fields {
		if c := ruleOf(f).class; c == converted || c == checked {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	hint := "it has " + strings.Join(names, ", ")
	if near := nearest(key.Value, names); near != "" {
		hint = "did you mean " + near + "?"
	}
	d.failed[path] = true
	d.bad(place(key), d.where(path), "unknown field %q; %s", key.Value, hint)
}

func (d *decoder) mapping(n *yaml.Node, v reflect.Value, path string, depth int) {
	if n.Kind != yaml.MappingNode {
		d.fail(n, path, "must be a mapping, and it is %s", describe(n))
		return
	}
	t := v.Type()
	m := reflect.MakeMap(t)
	for _, kv := range d.pairs(n, path, depth) {
		p := path + "[" + kv[0].Value + "]"
		d.at[p] = place(kv[0])
		e := reflect.New(t.Elem()).Elem()
		d.value(kv[1], e, p, depth+1)
		m.SetMapIndex(reflect.ValueOf(kv[0].Value).Convert(t.Key()), e)
		if d.full() {
			return
		}
	}
	v.Set(m)
}

func (d *decoder) scalar(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind != yaml.ScalarNode {
		d.fail(n, path, "must be %s, and it is %s", wanted(v.Kind()), describe(n))
		return
	}
	wrong := func() { d.fail(n, path, "must be %s, and it is %s", wanted(v.Kind()), describe(n)) }
	old, isOld := oldBool(n)
	switch v.Kind() {
	case reflect.String:
		if n.Tag != "!!str" && n.Tag != "!!timestamp" && n.Tag != "!!binary" || isOld {
			d.fail(n, path, "must be text, and it is %s; put it in quotes: %q", describe(n), n.Value)
			return
		}
		v.SetString(n.Value)
	case reflect.Bool:
		b, err := strconv.ParseBool(strings.ToLower(n.Value))
		if isOld {
			b, err = old, nil
		} else if n.Tag != "!!bool" {
			wrong()
			return
		}
		if err != nil {
			wrong()
			return
		}
		v.SetBool(b)
	case reflect.Int, reflect.Int32, reflect.Int64, reflect.Int8, reflect.Int16:
		var i int64
		if n.Tag != "!!int" || n.Decode(&i) != nil {
			wrong()
			return
		}
		if v.OverflowInt(i) {
			d.fail(n, path, "%s is too large; at most %d", n.Value, int64(1)<<(v.Type().Bits()-1)-1)
			return
		}
		v.SetInt(i)
	case reflect.Uint, reflect.Uint32, reflect.Uint64, reflect.Uint8, reflect.Uint16:
		var i uint64
		if n.Tag != "!!int" || n.Decode(&i) != nil || v.OverflowUint(i) {
			wrong()
			return
		}
		v.SetUint(i)
	case reflect.Float32, reflect.Float64:
		var f float64
		if n.Tag != "!!int" && n.Tag != "!!float" || n.Decode(&f) != nil {
			wrong()
			return
		}
		v.SetFloat(f)
	default:
		d.fail(n, path, "fields of this type (%s) cannot be read", v.Type())
	}
}

// custom decodes the types that read themselves from JSON: quantities, times,
// numbers-or-names.
func (d *decoder) custom(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind != yaml.ScalarNode {
		d.fail(n, path, "must be one value, and it is %s", describe(n))
		return
	}
	var raw []byte
	switch n.Tag {
	case "!!int":
		var i int64
		if n.Decode(&i) != nil {
			raw = strconv.AppendQuote(nil, n.Value)
		} else {
			raw = strconv.AppendInt(nil, i, 10)
		}
	case "!!float":
		raw = []byte(n.Value)
		if !json.Valid(raw) {
			raw = strconv.AppendQuote(nil, n.Value)
		}
	default:
		raw, _ = json.Marshal(n.Value)
	}
	var err error
	if perr := safely(func() error { err = v.Addr().Interface().(json.Unmarshaler).UnmarshalJSON(raw); return nil }); perr != nil {
		err = perr
	}
	if err != nil {
		d.fail(n, path, "%s", explainCustom(v.Type(), n.Value))
	}
}

func explainCustom(t reflect.Type, value string) string {
	switch t.Name() {
	case "Quantity":
		return fmt.Sprintf("%q is not a quantity; examples: 500m, 2, 64Mi, 1Gi", value)
	case "Time", "MicroTime":
		return fmt.Sprintf("%q is not a time; example: 2026-01-31T12:00:00Z", value)
	case "IntOrString":
		return fmt.Sprintf("%q is neither a number nor a name", value)
	}
	return fmt.Sprintf("%q cannot be read", value)
}

func (d *decoder) base64(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind != yaml.ScalarNode || n.Tag != "!!str" && n.Tag != "!!binary" && n.Tag != "!!int" && n.Tag != "!!float" {
		d.fail(n, path, "must be base64, and it is %s", describe(n))
		return
	}
	b, err := base64.StdEncoding.DecodeString(strings.NewReplacer("\n", "", "\r", "").Replace(n.Value))
	if err != nil {
		d.fail(n, path, "is not base64; plain text goes under stringData (of a Secret) or data (of a ConfigMap)")
		return
	}
	v.SetBytes(b)
}

func isNull(n *yaml.Node) bool {
	n = resolve(n)
	return n.Kind == yaml.ScalarNode && n.Tag == "!!null"
}

// oldBool tells the booleans of YAML 1.1, which kubectl reads as such.
func oldBool(n *yaml.Node) (value, ok bool) {
	if n.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle|yaml.TaggedStyle) != 0 {
		return false, false
	}
	switch n.Value {
	case "y", "Y", "yes", "Yes", "YES", "on", "On", "ON":
		return true, n.Value != "y" && n.Value != "Y"
	case "n", "N", "no", "No", "NO", "off", "Off", "OFF":
		return false, n.Value != "n" && n.Value != "N"
	}
	return false, false
}

func wanted(k reflect.Kind) string {
	switch k {
	case reflect.Bool:
		return "true or false"
	case reflect.String:
		return "text"
	case reflect.Float32, reflect.Float64:
		return "a number"
	}
	return "a whole number"
}

// describe says what a node is, in words for a message.
func describe(n *yaml.Node) string {
	n = resolve(n)
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	v := n.Value
	if len(v) > 40 {
		v = strings.ToValidUTF8(v[:40], "") + "…"
	}
	if _, old := oldBool(n); old {
		return "the boolean " + v
	}
	switch n.Tag {
	case "!!int", "!!float":
		return "the number " + v
	case "!!bool":
		return "the boolean " + v
	case "!!null":
		return "nothing"
	}
	return fmt.Sprintf("the text %q", v)
}
