package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

const (
	// maxFileBytes bounds one file; Kubernetes takes 3 MiB in a request.
	maxFileBytes = 8 << 20
	// maxSteps bounds the nodes that are looked at in one file, so that aliases of
	// aliases (a "billion laughs") cost nothing.
	maxSteps = 500_000
	// maxDepth bounds nesting; the deepest path of a Pod is below 20.
	maxDepth = 64
	// maxProblems bounds what is reported of one file.
	maxProblems = 100
)

// position is a place in the file, from 1.
type position struct{ line, column int }

// document is one object's node, still undecoded.
type document struct {
	node *yaml.Node
	at   position
	// item is "items[3]" for a member of a List, which prefixes its paths.
	item string
	// must is the kind that a typed list (PodList) says its members have.
	must string
}

// documents splits the content and opens lists. Empty documents are left out.
func (d *decoder) documents(content []byte) []document {
	if len(content) > maxFileBytes {
		d.bad(position{}, "", "the file is larger than %d MiB", maxFileBytes>>20)
		return nil
	}
	if !utf8.Valid(content) {
		d.bad(position{}, "", "the file is not text (UTF-8)")
		return nil
	}
	var docs []document
	dec := yaml.NewDecoder(bytes.NewReader(plainJSON(content)))
	for {
		var n yaml.Node
		err := safely(func() error { return dec.Decode(&n) })
		if errors.Is(err, io.EOF) {
			return docs
		}
		if err != nil {
			d.syntax(err)
			return docs
		}
		if n.Kind != yaml.DocumentNode || len(n.Content) == 0 {
			continue
		}
		d.open(document{node: n.Content[0], at: place(n.Content[0])}, &docs, 0)
		if d.full() {
			return docs
		}
	}
}

// open adds the document, or the members of a list.
func (d *decoder) open(doc document, docs *[]document, depth int) {
	n := resolve(doc.node)
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return
	}
	version, kind := scalarOf(n, "apiVersion"), scalarOf(n, "kind")
	if n.Kind != yaml.MappingNode || !strings.HasSuffix(kind, "List") || version != "v1" {
		*docs = append(*docs, doc)
		return
	}
	doc.must = strings.TrimSuffix(kind, "List")
	switch doc.must {
	case "", KindPod, KindClaim, KindConfigMap, KindSecret:
	default:
		*docs = append(*docs, doc) // an unknown kind; reported as such
		return
	}
	if depth > 2 {
		d.bad(doc.at, doc.item, "lists of lists of lists are not read")
		return
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, v := n.Content[i], resolve(n.Content[i+1])
		switch key.Value {
		case "apiVersion", "kind", "metadata": // metadata of a list says nothing about its members
		case "items":
			if v.Kind != yaml.SequenceNode {
				d.bad(place(key), join(doc.item, "items"), "must be a list of objects")
				continue
			}
			for j, c := range v.Content {
				if d.steps++; d.steps > maxSteps {
					d.bad(place(c), "", "the file expands to too much: more than %d values", maxSteps)
					return
				}
				d.open(document{node: c, at: place(c), must: doc.must, item: fmt.Sprintf("%s[%d]", join(doc.item, "items"), j)}, docs, depth+1)
			}
		default:
			d.bad(place(key), join(doc.item, key.Value), "unknown field of a %s; it has apiVersion, kind, metadata and items", kind)
		}
	}
}

// syntaxLine is how the YAML library names a line.
var syntaxLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?`)

func (d *decoder) syntax(err error) {
	msg := err.Error()
	at := position{}
	if m := syntaxLine.FindStringSubmatch(msg); m != nil {
		at.line, _ = strconv.Atoi(m[1])
		msg = msg[len(m[0]):]
	}
	d.bad(at, "", "this is not YAML: %s", msg)
}

// safely turns a panic of the YAML library on hostile input into an error.
func safely(fn func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("yaml: it cannot be read: %v", r)
		}
	}()
	return fn()
}

// plainJSON returns content as it is, unless it is JSON, of which YAML lacks some things:
// tabs between tokens, escaped slashes, escaped surrogate pairs. Lines and columns stay nearly
// the same (a pair becomes shorter).
func plainJSON(content []byte) []byte {
	trimmed := bytes.TrimLeft(content, " \t\r\n")
	if len(trimmed) == 0 || trimmed[0] != '{' && trimmed[0] != '[' {
		return content
	}
	dec := json.NewDecoder(bytes.NewReader(content))
	var values [][]byte
	for {
		var raw json.RawMessage
		if err := dec.Decode(&raw); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return content // flow style YAML, or broken: its parser tells
		}
		values = append(values, raw)
	}
	if len(values) > 1 {
		// Several JSON values one after another: make documents of them, keeping the lines.
		var b bytes.Buffer
		rest := content
		for i, v := range values {
			at := bytes.Index(rest, v)
			gap := rest[:at]
			if i > 0 { // the mark of a document stands at the beginning of a line
				if nl := bytes.LastIndexByte(gap, '\n'); nl >= 0 {
					b.Write(gap[:nl+1])
				} else {
					b.WriteByte('\n')
				}
				gap = []byte("--- ")
			}
			b.Write(gap)
			b.Write(v)
			rest = rest[at+len(v):]
		}
		b.Write(rest)
		content = b.Bytes()
	}
	out := make([]byte, 0, len(content))
	inString := false
	for i := 0; i < len(content); i++ {
		c := content[i]
		switch {
		case c == '"':
			inString = !inString
		case c == '\t' && !inString:
			c = ' '
		case c == '\\' && inString && i+1 < len(content):
			if r, n := surrogates(content[i:]); n > 0 {
				out = utf8.AppendRune(out, r)
				i += n - 1
				continue
			}
			if content[i+1] == '/' {
				out = append(out, '/')
				i++
				continue
			}
			out = append(out, c, content[i+1])
			i++
			continue
		}
		out = append(out, c)
	}
	return out
}

// surrogates decodes an escaped pair at the beginning of b.
func surrogates(b []byte) (rune, int) {
	if len(b) < 12 || b[1] != 'u' || b[6] != '\\' || b[7] != 'u' {
		return 0, 0
	}
	hi, err1 := strconv.ParseUint(string(b[2:6]), 16, 32)
	lo, err2 := strconv.ParseUint(string(b[8:12]), 16, 32)
	if err1 != nil || err2 != nil {
		return 0, 0
	}
	r := utf16.DecodeRune(rune(hi), rune(lo))
	if r == utf8.RuneError {
		return 0, 0
	}
	return r, 12
}

func place(n *yaml.Node) position { return position{n.Line, n.Column} }

// resolve follows aliases. The parser gives an alias its node, so this ends.
func resolve(n *yaml.Node) *yaml.Node {
	for n.Kind == yaml.AliasNode && n.Alias != nil {
		n = n.Alias
	}
	return n
}

// scalarOf returns the value of a key of a mapping, or "".
func scalarOf(n *yaml.Node, key string) string {
	for i := 0; n.Kind == yaml.MappingNode && i+1 < len(n.Content); i += 2 {
		if v := resolve(n.Content[i+1]); n.Content[i].Value == key && v.Kind == yaml.ScalarNode {
			return v.Value
		}
	}
	return ""
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}
