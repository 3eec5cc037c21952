package cgroup

import (
	"strings"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// OCIPath is what names the group in a specification (config-linux.md, "Control groups":
// cgroupsPath) for a runtime that is to use the same one: with the systemd driver, which it has to be told,
// slice:prefix:name, of which runtimes make the unit prefix-name.scope in the slice.
func (g *Group) OCIPath() (path string, systemd bool, err error) {
	if g.unit == nil {
		return g.path, false, nil
	}
	prefix, name, ok := strings.Cut(strings.TrimSuffix(g.unit.name, ".scope"), "-")
	if !g.unit.scope || g.unit.below != "" || !ok {
		return "", true, errs.New(errs.Unsupported, "cgroup %s: OCI runtimes can have a scope named PREFIX-NAME.scope from systemd, and this is %s%s", g.path, g.unit.name, g.unit.below)
	}
	return g.unit.slice + ":" + prefix + ":" + name, true, nil
}
