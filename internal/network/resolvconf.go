package network

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// DNS is what a pod asks of its resolver configuration.
type DNS struct {
	// Policy is Default or ClusterFirst (the host's, with what follows merged over it), or
	// None (only what follows). "" is Default. There is no cluster's resolver here: what a
	// cluster has of its own it gives as None with servers.
	Policy   string
	Servers  []netip.Addr
	Searches []string
	Options  []string // name or name:value
}

// Limits of Kubernetes (apis/core/validation: MaxDNSNameservers, MaxDNSSearchPaths,
// MaxDNSSearchListChars). glibc reads no more than 3 servers either.
const (
	maxServers     = 3
	maxSearches    = 32
	maxSearchBytes = 2048
)

// ResolvConf returns the pod's resolv.conf(5). host is the content of the host's
// (HostResolvConf finds it); it is not looked at with policy None. As in Kubernetes, the
// host's servers and search domains come first, then the pod's, each once; an option of
// the pod takes the place of the host's of the same name.
//
// Servers of the host on a loopback address are left out: in a pod that address is the
// pod's own. If none is left, the file names none, so lookups fail at once; nobody's
// lookups are sent to a server of somebody else's that nobody chose.
//
// Warnings tell what was left out. Errors are errs.Invalid: the pod's own configuration is
// wrong, or beyond the limits.
func ResolvConf(d DNS, host []byte) (conf []byte, warnings []string, err error) {
	var base resolver
	switch d.Policy {
	case "", "Default", "ClusterFirst", "ClusterFirstWithHostNet":
		base = parseResolvConf(host)
		loopback := 0
		base.servers = slices.DeleteFunc(base.servers, func(s string) bool {
			a, err := netip.ParseAddr(s)
			if err == nil && a.IsLoopback() {
				loopback++
				return true
			}
			return false
		})
		if loopback > 0 {
			warnings = append(warnings, fmt.Sprintf("%d DNS server(s) of the host are on a loopback address, out of a pod's reach, and left out", loopback))
		}
	case "None":
		if len(d.Servers) == 0 {
			return nil, nil, errs.New(errs.Invalid, "dnsPolicy None needs at least one server in dnsConfig.nameservers")
		}
	default:
		return nil, nil, errs.New(errs.Invalid, "dnsPolicy %q: give Default, ClusterFirst or None", d.Policy)
	}
	if err := d.check(); err != nil {
		return nil, nil, err
	}
	for _, s := range d.Servers {
		base.servers = append(base.servers, s.String())
	}
	base.servers = unique(base.servers)
	base.searches = unique(append(base.searches, d.Searches...))
	base.merge(d.Options)

	if n := len(base.servers); n > maxServers {
		warnings = append(warnings, fmt.Sprintf("%d DNS servers are more than %d: the last are left out", n, maxServers))
		base.servers = base.servers[:maxServers]
	}
	fit, size := 0, -1
	for _, s := range base.searches[:min(len(base.searches), maxSearches)] {
		if size += 1 + len(s); size > maxSearchBytes {
			break
		}
		fit++
	}
	if n := len(base.searches); n > fit {
		warnings = append(warnings, fmt.Sprintf("%d search domains, from %q on, are left out: at most %d, of %d bytes together, can be", n-fit, base.searches[fit], maxSearches, maxSearchBytes))
		base.searches = base.searches[:fit]
	}
	if len(base.servers) == 0 {
		warnings = append(warnings, "the pod has no DNS server: set dnsConfig.nameservers in its manifest, or a server in the host's /etc/resolv.conf that pods can reach")
	}
	return base.bytes(), warnings, nil
}

func (d *DNS) check() error {
	if len(d.Servers) > maxServers {
		return errs.New(errs.Invalid, "dnsConfig.nameservers: %d are more than %d", len(d.Servers), maxServers)
	}
	for _, s := range d.Servers {
		if !s.IsValid() {
			return errs.New(errs.Invalid, "dnsConfig.nameservers: an address is missing")
		}
	}
	if n := len(d.Searches); n > maxSearches {
		return errs.New(errs.Invalid, "dnsConfig.searches: %d are more than %d", n, maxSearches)
	}
	if n := len(strings.Join(d.Searches, " ")); n > maxSearchBytes {
		return errs.New(errs.Invalid, "dnsConfig.searches: %d bytes are more than %d", n, maxSearchBytes)
	}
	for _, s := range d.Searches {
		if err := plainWord(s); err != nil {
			return errs.New(errs.Invalid, "dnsConfig.searches: %q %w", s, err)
		}
	}
	for _, o := range d.Options {
		if err := plainWord(o); err != nil {
			return errs.New(errs.Invalid, "dnsConfig.options: %q %w", o, err)
		}
	}
	return nil
}

// resolver is what a resolv.conf says.
type resolver struct{ servers, searches, options []string }

// parseResolvConf reads as glibc does: the last domain or search line counts, words that it
// does not know are passed over, a comment has a whole line.
func parseResolvConf(data []byte) (r resolver) {
	for line := range strings.Lines(string(data)) {
		if strings.HasPrefix(line, "#") || strings.HasPrefix(line, ";") {
			continue
		}
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		switch f[0] {
		case "nameserver":
			r.servers = append(r.servers, f[1])
		case "search":
			r.searches = f[1:]
		case "domain":
			r.searches = f[1:2]
		case "options":
			r.merge(f[1:])
		}
	}
	r.searches = slices.DeleteFunc(slices.Clone(r.searches), func(s string) bool { return s == "." })
	return r
}

// merge puts options over those that are there, by name.
func (r *resolver) merge(options []string) {
	for _, o := range options {
		name, _, _ := strings.Cut(o, ":")
		r.options = slices.DeleteFunc(r.options, func(have string) bool {
			n, _, _ := strings.Cut(have, ":")
			return n == name
		})
		r.options = append(r.options, o)
	}
}

func (r *resolver) bytes() []byte {
	var b bytes.Buffer
	for _, s := range r.servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if len(r.searches) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(r.searches, " "))
	}
	if len(r.options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(r.options, " "))
	}
	return b.Bytes()
}

// unique keeps the first of equal words.
func unique(words []string) (out []string) {
	seen := make(map[string]bool, len(words))
	for _, w := range words {
		if !seen[w] {
			seen[w] = true
			out = append(out, w)
		}
	}
	return out
}

// HostResolvConf returns the content of the host's resolver configuration that is of use to
// a pod: where /etc/resolv.conf names only resolvers on loopback addresses (systemd-resolved
// puts 127.0.0.53 there), that of systemd-resolved's own servers, if there is one. A host
// without any has an empty one.
func HostResolvConf() ([]byte, error) {
	return hostResolvConf("/etc/resolv.conf", "/run/systemd/resolve/resolv.conf")
}

func hostResolvConf(path, upstream string) ([]byte, error) {
	data, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("read the host's resolver configuration: %w", err)
	}
	r := parseResolvConf(data)
	for _, s := range r.servers {
		if a, err := netip.ParseAddr(s); err != nil || !a.IsLoopback() {
			return data, nil
		}
	}
	better, err := os.ReadFile(upstream)
	if err != nil || len(parseResolvConf(better).servers) == 0 {
		return data, nil
	}
	return better, nil
}
