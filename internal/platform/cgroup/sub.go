package cgroup

import (
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// Sub returns the group in which a process is to be that asks for places below g: by
// controller a path below g, in the hierarchy that carries it; or under "" one for all
// hierarchies. Where nothing is asked for it is g itself. It makes nothing: a path must
// be there (errs.NotFound), under "" in one hierarchy at least; in the others it is
// the nearest group above. A path that leaves g, a controller that the host has not, and two paths in one
// hierarchy are errs.Invalid.
//
// What is returned is for Spawn, SpawnOnThread and Add.
func (g *Group) Sub(paths map[string]string) (*Group, error) {
	all := slices.Clone(g.host.v1)
	if g.host.unified.mount != "" {
		all = append(all, g.host.unified)
	}
	s := &Group{host: g.host, path: g.path, unit: g.unit, rel: g.rel, below: maps.Clone(g.below)}
	if s.below == nil {
		s.below = map[string]string{}
	}
	asked := map[string]string{} // by mount point, the controller
	for _, controller := range slices.Sorted(maps.Keys(paths)) {
		sub, err := below(paths[controller])
		if err != nil {
			return nil, err
		}
		found := false
		for _, t := range all {
			if controller != "" && !t.has(controller) {
				continue
			}
			at := g.in(t) + sub
			if controller == "" {
				for at != g.in(t) && !isDir(t.mount+at) {
					at = path.Dir(at)
				}
				found = found || at == g.in(t)+sub && isDir(t.mount+at)
			} else {
				if other, twice := asked[t.mount]; twice && s.below[t.mount] != g.below[t.mount]+sub {
					return nil, errs.New(errs.Invalid, "controllers %s and %s are in one hierarchy, %s: give both the same path", other, controller, t.mount)
				}
				if !isDir(t.mount + at) {
					return nil, errs.New(errs.NotFound, "cgroup %s does not exist: make it first", t.mount+at)
				}
				asked[t.mount], found = controller, true
			}
			s.below[t.mount] = at[len(g.rel):]
		}
		switch {
		case found:
		case controller == "":
			return nil, errs.New(errs.NotFound, "cgroup %s%s does not exist: make it first", g.path, sub)
		default:
			return nil, errs.New(errs.Invalid, "no control groups of this host (%s) have a controller %s: use one of %v", g.host.layout.Mode, controller, g.host.layout.Names())
		}
	}
	return s, nil
}

// below checks a path below a group: "/a/b", or "" for the group itself.
func below(p string) (string, error) {
	if strings.Trim(p, "./") == "" && !strings.Contains(p, "..") {
		return "", nil
	}
	return clean(p)
}
