package migrate

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/orlop-io/orlop/internal/base/config"
	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/toml"
	"go.yaml.in/yaml/v3"
)

// Settings are what another runtime's configuration comes to in Orlop's.
type Settings struct {
	// YAML is a configuration file that config.Parse takes.
	YAML []byte
	// Notes are what could not be carried over, in the order of the files.
	Notes []Note
	// Files are those that were read.
	Files []string
}

// Note is one setting that was not carried over.
type Note struct {
	File string
	Line int
	Key  string
	What string // why not, and what to do instead
}

// String is FILE:LINE: KEY: WHAT.
func (n Note) String() string { return fmt.Sprintf("%s:%d: %s: %s", n.File, n.Line, n.Key, n.What) }

// carrier carries settings over, key by key.
type carrier struct {
	out        map[string]any // by dotted key of Orlop's configuration
	registries []*config.Registry
	rules      []config.PolicyRule
	notes      []Note
	files      []string
}

// setting is one key of another runtime's file with its value.
type setting struct {
	doc   *toml.Document
	path  []string // in the file
	value any
}

// carry is what is done with a setting. It returns why it is not carried over; "" if
// it is, or means nothing here. match are the parts of the key that its pattern has *
// for.
type carry func(c *carrier, match []string, s setting) string

// table says what is done with keys, by patterns of them in dotted form: * is one
// part, a last ** any that follow. The first pattern that fits decides.
type table []struct {
	pattern string
	do      carry
}

// silent is for what needs no counterpart.
func silent(*carrier, []string, setting) string { return "" }

// because is for what has none.
func because(why string) carry {
	return func(*carrier, []string, setting) string { return why }
}

// fits matches a key with a pattern.
func fits(pattern string, path []string) ([]string, bool) {
	var match []string
	parts := strings.Split(pattern, ".")
	for i, p := range parts {
		if p == "**" {
			return match, len(path) > i
		}
		if i >= len(path) || p != "*" && p != path[i] {
			return nil, false
		}
		if p == "*" {
			match = append(match, path[i])
		}
	}
	return match, len(parts) == len(path)
}

// document carries over what the file says. normal gives keys the form in which the
// table has them.
func (c *carrier) document(doc *toml.Document, t table, normal func([]string) []string) error {
	values, err := doc.Values()
	if err != nil {
		return err
	}
	c.files = append(c.files, doc.Path)
	for _, k := range doc.Keys {
		if k.Table {
			continue
		}
		s := setting{doc, k.Path, lookUp(values, k.Path)}
		why := "Orlop has nothing of the kind"
		for _, row := range t {
			if match, ok := fits(row.pattern, normal(k.Path)); ok {
				why = row.do(c, match, s)
				break
			}
		}
		if why != "" {
			c.note(s, why)
		}
	}
	return nil
}

func (c *carrier) note(s setting, why string) {
	c.notes = append(c.notes, Note{s.doc.Path, s.doc.Line(s.path...), toml.Dotted(s.path), why})
}

func lookUp(values any, path []string) any {
	for _, k := range path {
		m, ok := values.(map[string]any)
		if !ok {
			return nil
		}
		values = m[k]
	}
	return values
}

// registry returns the entry for the host, making it.
func (c *carrier) registry(host string) *config.Registry {
	for _, r := range c.registries {
		if r.Host == host {
			return r
		}
	}
	r := &config.Registry{Host: host}
	c.registries = append(c.registries, r)
	return r
}

// mirror makes the URL a mirror of the registry, or, where it is the registry's own,
// notes how that is reached.
func (c *carrier) mirror(host, address string, insecure bool) string {
	if !strings.Contains(address, "://") {
		address = "https://" + address
	}
	u, err := url.Parse(address)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return fmt.Sprintf("%q is no address of a registry", address)
	}
	r := c.registry(host)
	if u.Host == host || host == "docker.io" && (u.Host == "registry-1.docker.io" || u.Host == "index.docker.io") {
		if strings.Trim(u.Path, "/") == "" || strings.Trim(u.Path, "/") == "v2" {
			r.PlainHTTP = r.PlainHTTP || u.Scheme == "http"
			r.SkipVerify = r.SkipVerify || insecure
			return ""
		}
	}
	if insecure {
		m := c.registry(u.Host)
		m.SkipVerify, m.PlainHTTP = true, true
	}
	address = strings.TrimSuffix(address, "/")
	if !slices.Contains(r.Mirrors, address) {
		r.Mirrors = append(r.Mirrors, address)
	}
	return ""
}

// runtime makes the executable a runtime handler of that name.
func (c *carrier) runtime(name string, path any) string {
	v := map[string]any{"path": path}
	if strings.Contains(name, ".") {
		return fmt.Sprintf("%q cannot be the name of a runtime handler: lower-case letters, digits and dashes", name)
	}
	if err := valid("cri.runtimes."+name, v); err != nil {
		return err.Error()
	}
	c.out["cri.runtimes."+name] = v
	return ""
}

// stringsOf reads a list of strings.
func stringsOf(v any) ([]string, bool) {
	list, ok := v.([]any)
	var out []string
	for _, e := range list {
		s, isString := e.(string)
		ok = ok && isString
		out = append(out, s)
	}
	return out, ok
}

// settings writes down what was carried over.
func (c *carrier) settings(what string) (Settings, error) {
	r := Settings{Notes: c.notes, Files: c.files}
	tree := make(map[string]any)
	put := func(key string, v any) {
		at := tree
		parts := strings.Split(key, ".")
		for _, p := range parts[:len(parts)-1] {
			next, ok := at[p].(map[string]any)
			if !ok {
				next = make(map[string]any)
				at[p] = next
			}
			at = next
		}
		at[parts[len(parts)-1]] = v
	}
	for _, k := range slices.Sorted(maps.Keys(c.out)) {
		put(k, c.out[k])
	}
	if regs := slices.DeleteFunc(c.registries, func(r *config.Registry) bool {
		return len(r.Mirrors) == 0 && !r.PlainHTTP && !r.SkipVerify && r.CAFile == ""
	}); len(regs) > 0 {
		var list []any
		for _, r := range regs {
			m := map[string]any{"host": r.Host}
			if len(r.Mirrors) > 0 {
				m["mirrors"] = r.Mirrors
			}
			if r.PlainHTTP {
				m["plainHTTP"] = true
			}
			if r.SkipVerify {
				m["skipVerify"] = true
			}
			if r.CAFile != "" {
				m["caFile"] = r.CAFile
			}
			list = append(list, m)
		}
		put("image.registries", list)
	}
	if len(c.rules) > 0 {
		put("image.policy.rules", c.rules)
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Made of %s's configuration: %s.\n# What is not here has its default: orlop config show prints all of it.\n", what, strings.Join(c.files, ", "))
	if len(tree) > 0 {
		enc := yaml.NewEncoder(&b)
		enc.SetIndent(2)
		if err := enc.Encode(tree); err != nil {
			return r, err
		}
	}
	r.YAML = b.Bytes()
	if _, err := config.Parse("the configuration that was made", r.YAML); err != nil {
		return r, errs.New(errs.Internal, "%w", err)
	}
	return r, nil
}

// valid tells whether Orlop's configuration takes the value for the key, so that one
// odd value does not spoil the whole.
func valid(key string, v any) error {
	tree := map[string]any{}
	at := tree
	parts := strings.Split(key, ".")
	for _, p := range parts[:len(parts)-1] {
		next := map[string]any{}
		at[p] = next
		at = next
	}
	at[parts[len(parts)-1]] = v
	data, err := yaml.Marshal(tree)
	if err != nil {
		return err
	}
	if _, err = config.Parse("it", data); err != nil {
		return errors.New(strings.TrimPrefix(err.Error(), "it: "))
	}
	return nil
}

// checked carries a value over if Orlop takes it.
func checked(key string, change func(any) any) carry {
	return func(c *carrier, _ []string, s setting) string {
		v := s.value
		if change != nil {
			v = change(v)
		}
		if v == nil {
			return ""
		}
		if err := valid(key, v); err != nil {
			return fmt.Sprintf("%v cannot be taken: %v", v, err)
		}
		c.out[key] = v
		return ""
	}
}

// openAll reads the file and those of a directory of further ones, by name, which
// win over it. A missing directory is fine; of missing files the first is an error.
func openAll(file, dir, pattern string) ([]*toml.Document, error) {
	var docs []*toml.Document
	doc, err := toml.Open(file)
	switch {
	case err == nil:
		docs = append(docs, doc)
	case !errors.Is(err, os.ErrNotExist):
		return nil, err
	}
	more, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil {
		return nil, err
	}
	slices.Sort(more)
	for _, m := range more {
		doc, err := toml.Open(m)
		if err != nil {
			return nil, err
		}
		docs = append(docs, doc)
	}
	return docs, nil
}
