// Package registry reads images from OCI registries (distribution-spec): which
// host to ask, with what credentials, and how to go on where a connection broke.
//
// The handshake (challenge, token, scopes) is go-containerregistry's; what is asked
// and how long is ours. Rules that keep credentials where they belong:
//
//   - Credentials are for one host. A mirror gets those that the docker configuration
//     has for the mirror, never those of the registry it stands for, and never ones
//     that were given with the pull. A redirect to another host carries none.
//   - Plain HTTP goes to loopback hosts and to hosts configured so, never elsewhere,
//     and never by a redirect from HTTPS.
package registry

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/orlop-io/orlop/internal/base/config"
	"github.com/orlop-io/orlop/internal/base/errs"
)

// Options configure a Client.
type Options struct {
	Registries []config.Registry
	// HostsDirs have directories with a hosts.toml, or certificates, by registry.
	HostsDirs []string
	// DockerConfig is the directory of docker's config.json; "" is $DOCKER_CONFIG,
	// else /root/.docker.
	DockerConfig string
	// Parallel is how many connections to a host are kept for use again.
	Parallel int
	Log      *slog.Logger
}

// Client talks to registries. It is safe for concurrent use.
type Client struct {
	o     Options
	hosts map[string]config.Registry
	// base are transports by host and settings; guarded by mu.
	mu   sync.Mutex
	base map[string]map[string]*http.Transport

	// Times, changed by tests.
	stall   time.Duration   // without a byte, a connection counts as broken
	backoff []time.Duration // before each further attempt
}

// New checks the configuration and returns a client.
func New(o Options) (*Client, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	c := &Client{
		o: o, hosts: make(map[string]config.Registry), base: make(map[string]map[string]*http.Transport),
		stall:   30 * time.Second,
		backoff: []time.Duration{200 * time.Millisecond, time.Second, 3 * time.Second, 6 * time.Second},
	}
	for _, r := range o.Registries {
		if _, ok := c.hosts[r.Host]; ok {
			return nil, errs.New(errs.Invalid, "image.registries: host %q is configured twice", r.Host)
		}
		c.hosts[r.Host] = r
		for _, m := range r.Mirrors {
			if _, err := parseMirror(m); err != nil {
				return nil, errs.New(errs.Invalid, "image.registries: mirror %q of %q: %w", m, r.Host, err)
			}
		}
		if _, err := c.configuredTLS(r.Host).read(); err != nil {
			return nil, errs.New(errs.Invalid, "image.registries: caFile of %q: %w", r.Host, err)
		}
	}
	return c, nil
}

// Close closes idle connections.
func (c *Client) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, by := range c.base {
		for _, t := range by {
			t.CloseIdleConnections()
		}
	}
}

// endpoint is one place where a repository can be read.
type endpoint struct {
	place
	c    *Client
	repo string
	ns   string // the registry that a mirror stands for; "" for the registry itself
	auth func(context.Context) (authn.Authenticator, error)

	down atomic.Bool // a mirror that was out of reach

	mu     sync.Mutex
	client *http.Client // after the handshake
	scheme string
}

// Repository is one repository, at its registry and its mirrors.
type Repository struct {
	c         *Client
	name      string // host/repository, for messages
	endpoints []*endpoint
}

// Repository returns the repository of the host (as in image names: docker.io), as
// the configuration is now. auth, where not nil, is used for the registry itself
// instead of what the docker configuration has.
func (c *Client) Repository(host, repo string, auth *authn.AuthConfig) (*Repository, error) {
	places, err := c.plan(host)
	if err != nil {
		return nil, err
	}
	r := &Repository{c: c, name: host + "/" + repo}
	for _, p := range places {
		e := &endpoint{place: p, c: c, repo: repo}
		e.auth = func(ctx context.Context) (authn.Authenticator, error) { return c.credentials(ctx, p.host) }
		if p.origin {
			e.auth = func(ctx context.Context) (authn.Authenticator, error) {
				if auth != nil {
					return authn.FromConfig(*auth), nil
				}
				return c.credentials(ctx, host)
			}
		} else {
			e.ns = host
		}
		r.endpoints = append(r.endpoints, e)
	}
	return r, nil
}

// parseMirror reads [http[s]://]host[:port][/path].
func parseMirror(s string) (*url.URL, error) {
	full := s
	if !strings.Contains(s, "://") {
		full = "//" + s
	}
	u, err := url.Parse(full)
	if err != nil || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Scheme != "" && u.Scheme != "http" && u.Scheme != "https" {
		return nil, errs.New(errs.Invalid, "it must look like https://mirror.example or mirror.example:5000/path, without credentials (those go into docker's config.json)")
	}
	return u, nil
}

// loopback tells whether the host is this machine.
func loopback(host string) bool {
	h, _, err := net.SplitHostPort(host)
	if err != nil {
		h = strings.Trim(host, "[]")
	}
	if h == "localhost" || strings.HasSuffix(h, ".localhost") {
		return true
	}
	a, err := netip.ParseAddr(h)
	return err == nil && a.IsLoopback()
}

// connect makes the handshake, once. first is what will be asked for.
func (e *endpoint) connect(ctx context.Context, first string) (*http.Client, string, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.client != nil {
		return e.client, e.scheme, nil
	}
	var opts []name.Option
	if e.plain {
		opts = append(opts, name.Insecure)
	}
	reg, err := name.NewRegistry(e.host, opts...)
	if err != nil {
		return nil, "", errs.New(errs.Invalid, "registry host %q: %w", e.host, err)
	}
	auth, err := e.auth(ctx)
	if err != nil {
		return nil, "", err
	}
	base, err := e.c.transport(e.place)
	if err != nil {
		return nil, "", err
	}
	g := &guard{base: base, plain: e.plain, own: e.host, header: e.header}
	if e.root != "/v2" {
		g.ping = e.url("", first)
	}
	rt, err := transport.NewWithContext(ctx, reg, auth, g, []string{"repository:" + e.scope() + ":pull"})
	if err != nil {
		return nil, "", err
	}
	e.scheme = "https"
	if g.usedPlain() {
		e.scheme = "http"
	}
	e.client = &http.Client{Transport: rt, CheckRedirect: checkRedirect}
	return e.client, e.scheme, nil
}

// url is where what is, of the repository.
func (e *endpoint) url(scheme, what string) *url.URL {
	u := &url.URL{Scheme: scheme, Host: e.host, Path: e.root + "/" + e.repo + "/" + what}
	if e.ns != "" { // as containerd tells mirrors of several registries
		u.RawQuery = url.Values{"ns": {e.ns}}.Encode()
	}
	return u
}

// scope is the repository's name at the endpoint, for which a token is wanted.
func (e *endpoint) scope() string {
	if prefix, ok := strings.CutPrefix(e.root, "/v2/"); ok {
		return prefix + "/" + e.repo
	}
	return e.repo
}

func checkRedirect(req *http.Request, via []*http.Request) error {
	if len(via) >= 10 {
		return errs.New(errs.Unavailable, "the registry redirected 10 times")
	}
	if via[0].URL.Scheme == "https" && req.URL.Scheme != "https" {
		return errs.New(errs.PermissionDenied, "the registry redirected from HTTPS to %s://%s, which is refused", req.URL.Scheme, req.URL.Host)
	}
	// The transport sets credentials by host; nothing else may travel along.
	req.Header.Del("Authorization")
	req.Header.Del("Cookie")
	return nil
}

// guard is what every request goes through: it refuses plain HTTP where that is
// not allowed, since the handshake would try it for private addresses.
type guard struct {
	base   http.RoundTripper
	plain  bool
	own    string
	header http.Header // for own
	// ping, where not nil, takes the place of /v2/ in the handshake: what lies under
	// another path need not answer there, but says what credentials it wants.
	ping *url.URL

	mu     sync.Mutex
	scheme string // of the last answer of own; guarded by mu
}

func (g *guard) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme == "http" && !g.plain {
		return nil, errs.New(errs.PermissionDenied, "%s would be asked by plain HTTP; if that is meant, set plainHTTP for it in image.registries, or its URL with http:// in hosts.toml", req.URL.Host)
	}
	if req.URL.Host != g.own && req.URL.Scheme == "http" && req.Header.Get("Authorization") != "" {
		return nil, errs.New(errs.PermissionDenied, "the registry %s wants credentials to be sent to %s by plain HTTP, which is refused", g.own, req.URL.Host)
	}
	ping := g.ping != nil && req.URL.Host == g.own && req.URL.Path == "/v2/"
	if ping || req.URL.Host == g.own && len(g.header) > 0 {
		req = req.Clone(req.Context()) // a RoundTripper does not change it
		if ping {
			req.URL.Path, req.URL.RawQuery = g.ping.Path, g.ping.RawQuery
		}
		for k, v := range g.header {
			if req.Header.Get(k) == "" || k == "User-Agent" {
				req.Header[k] = v
			}
		}
	}
	resp, err := g.base.RoundTrip(req)
	if err == nil && ping && resp.StatusCode >= 300 && resp.StatusCode != http.StatusUnauthorized {
		// No credentials are wanted; what it says to the question itself comes to light then.
		resp.StatusCode = http.StatusOK
	}
	if err == nil && req.URL.Host == g.own {
		g.mu.Lock()
		g.scheme = req.URL.Scheme
		g.mu.Unlock()
	}
	return resp, err
}

func (g *guard) usedPlain() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.scheme == "http"
}

// classify gives an error of a request its kind and its remedy.
func classify(err error, host string) error {
	if err == nil {
		return nil
	}
	// TLS first: where plain HTTP is allowed, what came of trying that is in the error, too.
	var certErr *tls.CertificateVerificationError
	if errors.As(err, &certErr) {
		return errs.New(errs.Unavailable, "the certificate of %s is not trusted (set caFile or skipVerify for it in image.registries, or ca in its hosts.toml): %w", host, certErr)
	}
	if strings.Contains(err.Error(), "remote error: tls: ") { // the alert's type is not exported
		return errs.New(errs.Unavailable, "%s ends the TLS handshake; if it wants a client certificate, set client in its hosts.toml: %w", host, err)
	}
	var te *transport.Error
	if errors.As(err, &te) {
		return statusError(te.StatusCode, te.Error(), host)
	}
	if k := errs.KindOf(err); k != errs.Internal {
		return err
	}
	if strings.Contains(err.Error(), "server gave HTTP response to HTTPS client") {
		return errs.New(errs.Unavailable, "%s speaks plain HTTP; if that is meant, set plainHTTP for it in image.registries, or its URL with http:// in hosts.toml", host)
	}
	if strings.Contains(err.Error(), "invalid realm") {
		return errs.New(errs.PermissionDenied, "%s: %w", host, err)
	}
	return errs.New(errs.Unavailable, "%s cannot be reached: %w", host, err)
}

func statusError(code int, text, host string) error {
	if len(text) > 500 {
		text = text[:500] + "…"
	}
	switch code {
	case http.StatusUnauthorized:
		return errs.New(errs.Unauthenticated, "%s refused the credentials, or wants some (log in with: docker login %s, or give them with the pull): %s", host, host, text)
	case http.StatusForbidden:
		return errs.New(errs.PermissionDenied, "%s does not allow it: %s", host, text)
	case http.StatusNotFound:
		return errs.New(errs.NotFound, "%s does not have it: %s", host, text)
	case http.StatusTooManyRequests:
		return errs.New(errs.Unavailable, "%s limits requests; log in or try later: %s", host, text)
	}
	return errs.New(errs.Unavailable, "%s: %s", host, text)
}

// SetTimes changes how long a silent connection is waited for, and the pauses
// before further attempts. It is for tests, before the client is used.
func (c *Client) SetTimes(stall time.Duration, backoff ...time.Duration) {
	c.stall, c.backoff = stall, backoff
}
