package image

import (
	"regexp"
	"strings"

	"github.com/opencontainers/go-digest"
	"github.com/orlop-io/orlop/internal/base/errs"
)

// Name is an image reference in full: every part that a user may leave out is
// filled in, as Docker does.
type Name struct {
	Host       string        // docker.io, ghcr.io, localhost:5000, localhost
	Repository string        // library/busybox
	Tag        string        // "" only where there is a digest
	Digest     digest.Digest // "" where the image is named by tag alone
}

const (
	defaultHost = "docker.io"
	defaultTag  = "latest"
	maxNameLen  = 255
)

// The grammar is that of the distribution project's references.
var (
	repoComponent = regexp.MustCompile(`^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*$`)
	tagGrammar    = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$`)
	hostGrammar   = regexp.MustCompile(`^(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*|\[[0-9a-fA-F:]+\])(?::[0-9]{1,5})?$`)
	hexID         = regexp.MustCompile(`^[0-9a-f]{64}$`)
)

// ParseName reads a reference as a user writes it: busybox, busybox:1.37,
// ghcr.io/a/b, localhost/notes:1, a/b@sha256:….
func ParseName(s string) (Name, error) {
	bad := func(why string) (Name, error) {
		if len(s) > 300 {
			s = s[:300] + "…"
		}
		return Name{}, errs.New(errs.Invalid, "image name %q: %s; a name looks like registry.example/project/app:1.2", s, why)
	}
	if s == "" {
		return bad("it is empty")
	}
	var n Name
	rest, dgst, hasDigest := strings.Cut(s, "@")
	if hasDigest {
		n.Digest = digest.Digest(dgst)
		if !isSHA256(n.Digest) {
			return bad("what follows the @ is no sha256 digest")
		}
	}
	// The first component is a host if it has a dot or a port, or is localhost.
	if first, more, ok := strings.Cut(rest, "/"); ok && (strings.ContainsAny(first, ".:") || first == "localhost") {
		n.Host, rest = strings.ToLower(first), more
		if !hostGrammar.MatchString(first) {
			return bad("the registry host is malformed")
		}
	} else {
		n.Host = defaultHost
	}
	if i := strings.LastIndexByte(rest, ':'); i >= 0 {
		n.Tag, rest = rest[i+1:], rest[:i]
		if !tagGrammar.MatchString(n.Tag) {
			return bad("the tag is malformed")
		}
	} else if !hasDigest {
		n.Tag = defaultTag
	}
	if n.Host == "index.docker.io" || n.Host == "registry-1.docker.io" {
		n.Host = defaultHost
	}
	if n.Host == defaultHost && !strings.Contains(rest, "/") {
		if hexID.MatchString(rest) {
			return bad("64 hexadecimal digits are an image ID, not a name")
		}
		rest = "library/" + rest
	}
	for c := range strings.SplitSeq(rest, "/") {
		if !repoComponent.MatchString(c) {
			if strings.ToLower(c) != c {
				return bad("the repository must be lower case")
			}
			return bad("the repository is malformed")
		}
	}
	n.Repository = rest
	if len(n.Host)+1+len(n.Repository) > maxNameLen {
		return bad("it is longer than 255 bytes")
	}
	return n, nil
}

// String returns the full name: host/repository[:tag][@digest].
func (n Name) String() string {
	s := n.Host + "/" + n.Repository
	if n.Tag != "" {
		s += ":" + n.Tag
	}
	if n.Digest != "" {
		s += "@" + n.Digest.String()
	}
	return s
}

// tagged returns host/repository:tag, or "" where there is no tag.
func (n Name) tagged() string {
	if n.Tag == "" {
		return ""
	}
	return n.Host + "/" + n.Repository + ":" + n.Tag
}

// digested returns host/repository@d.
func (n Name) digested(d digest.Digest) string {
	return n.Host + "/" + n.Repository + "@" + d.String()
}
