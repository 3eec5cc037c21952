package registry

import (
	"errors"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/toml"
)

// hostDir is a directory that says where and how a registry is reached: by a
// hosts.toml as containerd reads it, or else by certificates in files as Docker
// reads them (NAME.crt of authorities, NAME.cert with NAME.key of the client).
//
// What differs from containerd: an unknown key, a bad value or an unreadable file
// fails the pull, where containerd logs it and asks the registry without the
// settings; credentials given with the pull and headers go to the host that they
// are for, not to its mirrors or its token server.
type hostDir string

// defaultDir is for registries without a directory of their own.
const defaultDir = "_default"

func (d hostDir) isDefault() bool { return filepath.Base(string(d)) == defaultDir }

// hostDir finds the directory for the registry of that name; "" where there is none.
// As with containerd, the first of image.hostsDirs that has one is taken.
func (c *Client) hostDir(name string) (hostDir, error) {
	for _, root := range c.o.HostsDirs {
		names := []string{name, defaultDir}
		if i := strings.LastIndexByte(name, ':'); i > 0 {
			names = []string{name[:i] + "_" + name[i+1:] + "_", name, defaultDir}
		}
		for _, n := range names {
			dir := filepath.Join(root, n)
			info, err := os.Stat(dir)
			switch {
			case errors.Is(err, os.ErrNotExist):
			case err != nil:
				return "", errs.New(errs.Invalid, "image.hostsDirs: %w", err)
			case info.IsDir():
				return hostDir(dir), nil
			default:
				return "", errs.New(errs.Invalid, "image.hostsDirs: %s is no directory", dir)
			}
		}
	}
	return "", nil
}

// load returns the places for the registry of that name.
func (d hostDir) load(name string) ([]place, error) {
	file := filepath.Join(string(d), "hosts.toml")
	doc, err := toml.Open(file)
	if errors.Is(err, os.ErrNotExist) || err == nil && len(doc.Keys) == 0 {
		return d.certificates(name)
	}
	if err != nil {
		return nil, errs.New(errs.Invalid, "%w", err)
	}
	return d.parse(doc, name)
}

// hostFields are the settings of one host. Those with several forms are decoded by
// hand.
type hostFields struct {
	Capabilities []string       `toml:"capabilities"`
	CA           any            `toml:"ca"`     // a path, or several
	Client       any            `toml:"client"` // a path, several, or pairs of paths
	SkipVerify   bool           `toml:"skip_verify"`
	Header       map[string]any `toml:"header"` // a value, or several
	OverridePath bool           `toml:"override_path"`
	DialTimeout  string         `toml:"dial_timeout"`
	Proxy        string         `toml:"proxy"`
}

type hostsFile struct {
	hostFields
	Server string                `toml:"server"`
	Host   map[string]hostFields `toml:"host"`
}

// parse reads a hosts.toml: hosts in the order of the file, then the server.
func (d hostDir) parse(doc *toml.Document, name string) ([]place, error) {
	var f hostsFile
	if err := doc.Decode(&f); err != nil {
		return nil, err
	}
	var out []place
	for _, k := range doc.Keys {
		if len(k.Path) < 2 || k.Path[0] != "host" || slices.ContainsFunc(out, func(p place) bool { return p.key == k.Path[1] }) {
			continue
		}
		p, err := d.place(doc, k.Path[:2], k.Path[1], name, f.Host[k.Path[1]])
		if err != nil {
			return nil, err
		}
		p.key = k.Path[1]
		out = append(out, p)
	}
	server, err := d.place(doc, nil, f.Server, name, f.hostFields)
	if err != nil {
		return nil, err
	}
	return append(out, server), nil
}

// place reads the settings of one host, at the key at of the document. address is
// its URL; "" is the registry of the name itself.
func (d hostDir) place(doc *toml.Document, at []string, address, name string, f hostFields) (place, error) {
	p := defaultPlace(name)
	bad := func(key, format string, args ...any) (place, error) {
		return p, doc.Invalid(append(slices.Clone(at), key), format, args...)
	}
	if address != "" {
		where := append(slices.Clone(at), "server")
		if len(at) > 0 {
			where = at
		}
		if !strings.Contains(address, "://") {
			address = "https://" + address
		}
		u, err := url.Parse(address)
		if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || u.Scheme != "http" && u.Scheme != "https" {
			return p, doc.Invalid(where, "%q must look like https://mirror.example or http://mirror.example:5000/path, without credentials (those go into docker's config.json)", address)
		}
		p.host, p.plain = hostOf(u.Host), u.Scheme == "http"
		p.origin = p.host == hostOf(name)
		switch clean := path.Clean("/" + u.Path); {
		case f.OverridePath:
			p.root = strings.TrimSuffix(clean, "/")
		case strings.HasSuffix(clean, "/v2"):
			p.root = clean
		default:
			p.root = strings.TrimSuffix(clean, "/") + "/v2"
		}
	} else if f.OverridePath {
		return bad("override_path", "it needs a URL whose path can take the place of /v2")
	}
	if len(f.Capabilities) > 0 {
		p.pull, p.resolve = false, false
	}
	for _, c := range f.Capabilities {
		switch strings.ToLower(c) {
		case "pull":
			p.pull = true
		case "resolve":
			p.resolve = true
		case "push": // nothing is pushed
		default:
			return bad("capabilities", "%q is none of pull, resolve, push", c)
		}
	}
	var err error
	if p.tls.cas, err = d.paths(f.CA); err != nil {
		return bad("ca", "%w", err)
	}
	if p.tls.pairs, err = d.pairs(f.Client); err != nil {
		return bad("client", "%w", err)
	}
	p.tls.skip = f.SkipVerify
	if _, err := (tlsFiles{cas: p.tls.cas}).read(); err != nil {
		return bad("ca", "%w", err)
	}
	if _, err := (tlsFiles{pairs: p.tls.pairs}).read(); err != nil {
		return bad("client", "%w", err)
	}
	for key, v := range f.Header {
		values, err := list(v)
		if err != nil || key == "" {
			return bad("header", "%q must have a string or a list of strings", key)
		}
		if p.header == nil {
			p.header = make(http.Header)
		}
		for _, v := range values {
			if strings.ContainsAny(key+v, "\r\n\x00") || strings.ContainsAny(key, " :") {
				return bad("header", "%q cannot be a header of HTTP", key)
			}
			p.header.Add(key, v)
		}
	}
	if f.DialTimeout != "" {
		if p.dialTimeout, err = time.ParseDuration(f.DialTimeout); err != nil || p.dialTimeout <= 0 {
			return bad("dial_timeout", "%q is no duration like 1s", f.DialTimeout)
		}
	}
	if f.Proxy != "" {
		u, err := url.Parse(f.Proxy)
		if err != nil || u.Host == "" || u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "" || !slices.Contains([]string{"http", "https", "socks5", "socks5h"}, u.Scheme) {
			return bad("proxy", "%q must look like http://proxy.example:8080 (or https, socks5, socks5h)", f.Proxy)
		}
		p.proxy = u
	}
	return p, nil
}

// list reads what may be one string or several.
func list(v any) ([]string, error) {
	switch v := v.(type) {
	case nil:
		return nil, nil
	case string:
		return []string{v}, nil
	case []any:
		var out []string
		for _, e := range v {
			s, ok := e.(string)
			if !ok {
				return nil, errs.New(errs.Invalid, "%v is no string", e)
			}
			out = append(out, s)
		}
		return out, nil
	}
	return nil, errs.New(errs.Invalid, "%v is neither a string nor a list of strings", v)
}

// paths reads file names, which are relative to the directory.
func (d hostDir) paths(v any) ([]string, error) {
	names, err := list(v)
	for i, n := range names {
		if n == "" {
			return nil, errs.New(errs.Invalid, "a file's name is empty")
		}
		names[i] = d.abs(n)
	}
	return names, err
}

func (d hostDir) abs(name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(string(d), name)
}

// pairs reads files of client certificates: a name, names, or pairs of names.
func (d hostDir) pairs(v any) ([][2]string, error) {
	all, ok := v.([]any)
	if !ok {
		all = []any{v}
	}
	if v == nil {
		return nil, nil
	}
	var out [][2]string
	for _, e := range all {
		if pair, ok := e.([]any); ok {
			names, err := list(pair)
			if err != nil || len(names) != 2 || names[0] == "" {
				return nil, errs.New(errs.Invalid, "%v is no pair of a certificate's and a key's file", e)
			}
			key := names[1]
			if key != "" {
				key = d.abs(key)
			}
			out = append(out, [2]string{d.abs(names[0]), key})
			continue
		}
		names, err := d.paths(e)
		if err != nil {
			return nil, err
		}
		for _, n := range names {
			out = append(out, [2]string{n, ""})
		}
	}
	return out, nil
}

// certificates reads Docker's layout: the registry itself, with the certificates in
// the directory.
func (d hostDir) certificates(name string) ([]place, error) {
	files, err := os.ReadDir(string(d))
	if err != nil {
		return nil, errs.New(errs.Invalid, "image.hostsDirs: %w", err)
	}
	p := defaultPlace(name)
	there := make(map[string]bool)
	for _, f := range files {
		there[f.Name()] = true
	}
	for _, f := range files {
		base, ext := strings.TrimSuffix(f.Name(), filepath.Ext(f.Name())), filepath.Ext(f.Name())
		switch ext {
		case ".crt":
			p.tls.cas = append(p.tls.cas, d.abs(f.Name()))
		case ".cert":
			if !there[base+".key"] {
				return nil, errs.New(errs.Invalid, "%s: the client certificate has no key beside it; it must be in %s.key", d.abs(f.Name()), base)
			}
			p.tls.pairs = append(p.tls.pairs, [2]string{d.abs(f.Name()), d.abs(base + ".key")})
		case ".key":
			if !there[base+".cert"] {
				return nil, errs.New(errs.Invalid, "%s: the key has no client certificate beside it; it must be in %s.cert (and that of an authority in a file NAME.crt)", d.abs(f.Name()), base)
			}
		}
	}
	if _, err := p.tls.read(); err != nil {
		return nil, err
	}
	return []place{p}, nil
}
