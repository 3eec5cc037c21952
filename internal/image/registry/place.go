package registry

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// place is one host that may be asked for what a registry has, as it is configured.
type place struct {
	host string // of the URL: host[:port]
	key  string // of its table in hosts.toml
	// root is the path of the API: /v2, or what override_path says.
	root string
	// plain: plain HTTP is allowed, where HTTPS is not spoken.
	plain bool
	// pull: it may be asked for what has a digest; resolve: for what a tag means, too.
	pull, resolve bool
	header        http.Header // sent to this host only
	tls           tlsFiles
	dialTimeout   time.Duration
	proxy         *url.URL // nil: as the environment says
	// origin: it is the registry of the name itself, whose credentials it gets.
	origin bool
}

// tlsFiles are what a host's TLS settings are read from.
type tlsFiles struct {
	cas   []string
	pairs [][2]string // certificate and key; "" is the certificate's own file
	skip  bool        // of verification
}

// defaultDial is how long a connection may take where nothing else is said.
const defaultDial = 15 * time.Second

// hostOf is where the registry of that name in image names is.
func hostOf(name string) string {
	switch name {
	case "docker.io", "index.docker.io":
		return "registry-1.docker.io"
	}
	return name
}

// defaultPlace is the registry itself, without settings.
func defaultPlace(name string) place {
	return place{host: hostOf(name), root: "/v2", plain: loopback(name), pull: true, resolve: true, dialTimeout: defaultDial, origin: true}
}

// plan returns whom to ask for images of the registry of that name, in order; the
// last one is the registry itself or what is configured in its stead. Files are
// read afresh.
func (c *Client) plan(name string) ([]place, error) {
	dir, err := c.hostDir(name)
	if err != nil {
		return nil, err
	}
	_, configured := c.hosts[name]
	if dir == "" || configured && dir.isDefault() {
		return c.configured(name)
	}
	places, err := dir.load(name)
	if err != nil {
		return nil, err
	}
	if configured {
		return nil, errs.New(errs.Invalid, "%s is configured in image.registries and in %s; keep one of them", name, dir)
	}
	return places, nil
}

// configured returns the places that image.registries names.
func (c *Client) configured(name string) ([]place, error) {
	var out []place
	for _, m := range c.hosts[name].Mirrors {
		u, err := parseMirror(m)
		if err != nil {
			return nil, err
		}
		p := defaultPlace(u.Host)
		p.origin = false
		p.plain = u.Scheme == "http" || c.hosts[u.Host].PlainHTTP || u.Scheme == "" && loopback(u.Host)
		if path := strings.Trim(u.Path, "/"); path != "" && path != "v2" {
			p.root += "/" + strings.TrimPrefix(path, "v2/")
		}
		p.tls = c.configuredTLS(u.Host)
		out = append(out, p)
	}
	origin := defaultPlace(name)
	origin.plain = origin.plain || c.hosts[name].PlainHTTP
	origin.tls = c.configuredTLS(name)
	return append(out, origin), nil
}

func (c *Client) configuredTLS(name string) (f tlsFiles) {
	if r := c.hosts[name]; r.CAFile != "" {
		f.cas = []string{r.CAFile}
	}
	f.skip = c.hosts[name].SkipVerify
	return f
}

// material is TLS settings whose files have been read.
type material struct {
	config *tls.Config
	sum    [sha256.Size]byte // of all that it was made of
}

// read reads the files.
func (f tlsFiles) read() (m material, err error) {
	sum := sha256.New()
	file := func(path string) ([]byte, error) {
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, errs.New(errs.Invalid, "%w", err)
		}
		fmt.Fprintf(sum, "%d:", len(data))
		sum.Write(data)
		return data, nil
	}
	m.config = &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: f.skip}
	fmt.Fprintf(sum, "%t %d %d ", f.skip, len(f.cas), len(f.pairs))
	for _, path := range f.cas {
		data, err := file(path)
		if err != nil {
			return m, err
		}
		if m.config.RootCAs == nil {
			if m.config.RootCAs, err = x509.SystemCertPool(); err != nil {
				m.config.RootCAs = x509.NewCertPool()
			}
		}
		if !m.config.RootCAs.AppendCertsFromPEM(data) {
			return m, errs.New(errs.Invalid, "%s has no certificate in PEM format", path)
		}
	}
	for _, pair := range f.pairs {
		cert, err := file(pair[0])
		if err != nil {
			return m, err
		}
		key := cert
		if pair[1] != "" {
			if key, err = file(pair[1]); err != nil {
				return m, err
			}
		}
		c, err := tls.X509KeyPair(cert, key)
		if err != nil {
			return m, errs.New(errs.Invalid, "%s: no client certificate with its key: %w", strings.Join(slices.DeleteFunc(pair[:], func(s string) bool { return s == "" }), ", "), err)
		}
		m.config.Certificates = append(m.config.Certificates, c)
	}
	sum.Sum(m.sum[:0])
	return m, nil
}

// transport returns the connections to the place. They are shared with other pulls
// as long as the place's settings, and what is in their files, are the same.
func (c *Client) transport(p place) (*http.Transport, error) {
	m, err := p.tls.read()
	if err != nil {
		return nil, errs.New(errs.KindOf(err), "the settings of %s: %w", p.host, err)
	}
	key := fmt.Sprint(p.host, " ", p.dialTimeout, " ", p.proxy, " ", hex.EncodeToString(m.sum[:]))
	c.mu.Lock()
	defer c.mu.Unlock()
	have := c.base[p.host]
	if t := have[key]; t != nil {
		return t, nil
	}
	// A host has few settings at a time; those of former files are not kept.
	if len(have) >= 4 {
		for _, t := range have {
			t.CloseIdleConnections()
		}
		have = nil
	}
	if have == nil {
		have = make(map[string]*http.Transport)
		c.base[p.host] = have
	}
	proxy := http.ProxyFromEnvironment
	if p.proxy != nil {
		proxy = http.ProxyURL(p.proxy)
	}
	t := &http.Transport{
		Proxy:                 proxy,
		DialContext:           (&net.Dialer{Timeout: p.dialTimeout, KeepAlive: 30 * time.Second}).DialContext,
		TLSClientConfig:       m.config,
		TLSHandshakeTimeout:   15 * time.Second,
		ResponseHeaderTimeout: 60 * time.Second,
		ForceAttemptHTTP2:     true,
		DisableCompression:    true, // layers are what their digest says, on the wire too
		MaxIdleConnsPerHost:   max(4, c.o.Parallel),
		IdleConnTimeout:       30 * time.Second,
		ReadBufferSize:        64 << 10,
	}
	have[key] = t
	return t, nil
}
