package manifest

import (
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/validate/content"
	"k8s.io/apimachinery/pkg/util/validation"
)

// Kubernetes' rules for names. Each returns what is wrong, or "".

func first(msgs []string) string {
	if len(msgs) == 0 {
		return ""
	}
	// The regular expression helps nobody who has the example.
	msg, _, _ := strings.Cut(msgs[0], ", regex used for validation")
	if strings.Contains(msg, "(e.g.") && !strings.HasSuffix(msg, ")") {
		msg += ")"
	}
	return msg
}

func quoted(value, msg string) string {
	if msg == "" {
		return ""
	}
	if len(value) > 80 {
		value = value[:77] + "…"
	}
	return fmt.Sprintf("%q: %s", value, msg)
}

func dnsLabel(s string) string     { return quoted(s, first(validation.IsDNS1123Label(s))) }
func dnsSubdomain(s string) string { return quoted(s, first(validation.IsDNS1123Subdomain(s))) }
func labelKey(s string) string     { return quoted(s, first(content.IsLabelKey(s))) }
func labelValue(s string) string   { return quoted(s, first(content.IsLabelValue(s))) }
func portName(s string) string     { return quoted(s, first(validation.IsValidPortName(s))) }
func configKey(s string) string    { return quoted(s, first(validation.IsConfigMapKey(s))) }
func envName(s string) string      { return quoted(s, first(validation.IsRelaxedEnvVarName(s))) }
func headerName(s string) string   { return quoted(s, first(validation.IsHTTPHeaderName(s))) }

func portNumber(n int64) string {
	if n < 1 || n > 65535 {
		return fmt.Sprintf("%d is not a port; ports are 1 to 65535", n)
	}
	return ""
}

func userID(n int64) string {
	if n < 0 || n > 1<<31-1 {
		return fmt.Sprintf("%d is not an ID; IDs are 0 to 2147483647", n)
	}
	return ""
}

// relativePath must stay below where it starts.
func relativePath(s string) string {
	switch {
	case s == "":
		return "must be given"
	case strings.HasPrefix(s, "/"):
		return fmt.Sprintf("%q must be relative", s)
	case slices.Contains(strings.Split(s, "/"), ".."):
		return fmt.Sprintf("%q must not contain '..'", s)
	case strings.ContainsRune(s, 0):
		return fmt.Sprintf("%q must not contain a zero byte", s)
	}
	return ""
}

// keyPath is a relative path of a projected file; Kubernetes keeps names that begin
// with two dots for itself.
func keyPath(s string) string {
	if msg := relativePath(s); msg != "" {
		return msg
	}
	if strings.HasPrefix(s, "..") {
		return fmt.Sprintf("%q must not begin with '..'", s)
	}
	if path.Clean(s) == "." {
		return fmt.Sprintf("%q names no file", s)
	}
	return ""
}

// all reports each message that is not empty.
func (d *decoder) all(path string, msgs ...string) {
	for _, m := range msgs {
		if m != "" {
			d.invalid(path, "%s", m)
		}
	}
}

// oneOf checks a value of a closed set; "" is the default and fine.
func oneOf[T ~string](d *decoder, path string, v T, of ...T) {
	if v == "" || slices.Contains(of, v) {
		return
	}
	names := make([]string, len(of))
	for i, o := range of {
		names[i] = string(o)
	}
	hint := ""
	if near := nearest(string(v), names); near != "" {
		hint = "; did you mean " + near + "?"
	}
	d.invalid(path, "%q is not one of %s%s", v, strings.Join(names, ", "), hint)
}

// address parses an IP address.
func (d *decoder) address(path, s string) netip.Addr {
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" {
		d.invalid(path, "%q is not an IP address", s)
		return netip.Addr{}
	}
	return a
}

// atLeast checks a lower bound.
func (d *decoder) atLeast(path string, v, least int64) {
	if v < least {
		d.invalid(path, "%d is too small; at least %d", v, least)
	}
}
