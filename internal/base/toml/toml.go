// Package toml reads TOML files with the line of every key, so that what is wrong
// with a file that other programs' administrators wrote can be shown to them.
package toml

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/orlop-io/orlop/internal/base/errs"
	gotoml "github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// Document is one file.
type Document struct {
	// Path is for messages.
	Path string
	// Keys are all keys that have a value, and the headers of tables, in the order
	// of the file.
	Keys []Key
	data []byte
}

// Key is one key of a document.
type Key struct {
	Path []string
	Line int // from 1
	// Table tells the header of a table, whose keys follow.
	Table bool
}

// maxFile bounds a file; those of containerd and CRI-O have some hundred lines.
const maxFile = 1 << 20

// Open reads the file. Errors are os.ErrNotExist and errs.Invalid.
func Open(path string) (*Document, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	return Parse(path, data)
}

// Parse reads data; path is for messages only. Errors are errs.Invalid and say the
// line.
func Parse(path string, data []byte) (*Document, error) {
	d := &Document{Path: path, data: data}
	if len(data) > maxFile {
		return nil, errs.New(errs.Invalid, "%s: it is larger than %d bytes", path, maxFile)
	}
	// The library's decoder sees more that is wrong than its parser.
	var all map[string]any
	if err := gotoml.Unmarshal(data, &all); err != nil {
		return nil, d.explain(err)
	}
	p := unstable.Parser{}
	p.Reset(data)
	var table []string
	for p.NextExpression() {
		e := p.Expression()
		path, line := d.key(&p, e)
		switch e.Kind {
		case unstable.Table, unstable.ArrayTable:
			table = path
			d.Keys = append(d.Keys, Key{path, line, true})
		case unstable.KeyValue:
			d.add(&p, join(table, path), line, e.Value())
		}
	}
	if err := p.Error(); err != nil {
		return nil, d.explain(err)
	}
	return d, nil
}

// add notes a key, and for an inline table those in it.
func (d *Document) add(p *unstable.Parser, path []string, line int, value *unstable.Node) {
	if value.Kind != unstable.InlineTable {
		d.Keys = append(d.Keys, Key{path, line, false})
		return
	}
	d.Keys = append(d.Keys, Key{path, line, true})
	for it := value.Children(); it.Next(); {
		sub, line := d.key(p, it.Node())
		d.add(p, join(path, sub), line, it.Node().Value())
	}
}

// key returns an expression's key and its line.
func (d *Document) key(p *unstable.Parser, e *unstable.Node) (path []string, line int) {
	for it := e.Key(); it.Next(); {
		n := it.Node()
		if line == 0 {
			line = p.Shape(n.Raw).Start.Line
		}
		path = append(path, string(n.Data))
	}
	return path, line
}

func join(a, b []string) []string { return append(slices.Clone(a), b...) }

// Line returns the line of the key, or of the nearest table above it that is in
// the file; 0 if there is none.
func (d *Document) Line(path ...string) int {
	for n := len(path); n > 0; n-- {
		for _, k := range d.Keys {
			if len(k.Path) >= n && slices.Equal(k.Path[:n], path[:n]) {
				return k.Line
			}
		}
	}
	return 0
}

// Invalid returns an error about the key: FILE:LINE: key: what.
func (d *Document) Invalid(path []string, format string, args ...any) error {
	what := fmt.Errorf(format, args...)
	if line := d.Line(path...); line > 0 {
		return errs.New(errs.Invalid, "%s:%d: %s: %w", d.Path, line, Dotted(path), what)
	}
	return errs.New(errs.Invalid, "%s: %s: %w", d.Path, Dotted(path), what)
}

// Dotted is the key as it is written, quoted where that is needed.
func Dotted(path []string) string {
	var b strings.Builder
	for i, k := range path {
		if i > 0 {
			b.WriteByte('.')
		}
		if k == "" || strings.ContainsFunc(k, func(r rune) bool {
			return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '_' || r == '-')
		}) {
			k = fmt.Sprintf("%q", k)
		}
		b.WriteString(k)
	}
	return b.String()
}

// Decode decodes the document into v strictly: an unknown key is an error.
func (d *Document) Decode(v any) error {
	dec := gotoml.NewDecoder(bytes.NewReader(d.data))
	dec.DisallowUnknownFields()
	return d.explain(dec.Decode(v))
}

// Values returns everything that the document says.
func (d *Document) Values() (map[string]any, error) {
	var all map[string]any
	return all, d.explain(gotoml.Unmarshal(d.data, &all))
}

// explain gives the library's errors file, line and kind.
func (d *Document) explain(err error) error {
	if err == nil {
		return nil
	}
	var unknown *gotoml.StrictMissingError
	if errors.As(err, &unknown) {
		var all []error
		for i := range unknown.Errors {
			e := &unknown.Errors[i]
			row, _ := e.Position()
			all = append(all, errs.New(errs.Invalid, "%s:%d: unknown key %s", d.Path, row, Dotted(e.Key())))
		}
		return errs.As(errs.Invalid, errors.Join(all...))
	}
	var bad *gotoml.DecodeError
	if errors.As(err, &bad) {
		row, _ := bad.Position()
		return errs.New(errs.Invalid, "%s:%d: %s", d.Path, row, strings.TrimPrefix(bad.Error(), "toml: "))
	}
	var parse *unstable.ParserError
	if errors.As(err, &parse) {
		return errs.New(errs.Invalid, "%s: %s", d.Path, parse.Message)
	}
	return errs.New(errs.Invalid, "%s: %w", d.Path, err)
}
