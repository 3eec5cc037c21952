package pod

import (
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"tags.cncf.io/container-device-interface/pkg/cdi"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// InjectDevices adds devices by the names that vendors have given them in the directories of
// Container Device Interface specifications: their nodes, mounts, variables and hooks.
// The directories are read anew each time, because device plugins write there.
func (d *Driven) InjectDevices(s *specs.Spec, names []string) error {
	if len(names) == 0 {
		return nil
	}
	cache, err := cdi.NewCache(cdi.WithSpecDirs(d.p.o.CDIDirs...), cdi.WithAutoRefresh(false))
	if err != nil {
		return err
	}
	// What is changed in place must not be somebody else's.
	s.Mounts, s.Process.Env, s.Linux.Devices = slices.Clone(s.Mounts), slices.Clone(s.Process.Env), slices.Clone(s.Linux.Devices)
	unknown, err := cache.InjectDevices(s, names...)
	if len(unknown) > 0 {
		var bad []string
		for file, list := range cache.GetErrors() {
			for _, e := range list {
				bad = append(bad, file+": "+e.Error())
			}
		}
		slices.Sort(bad)
		hint := "is its driver's specification there?"
		if len(bad) > 0 {
			hint = "there are specifications that cannot be read: " + strings.Join(bad, "; ")
		}
		return errs.New(errs.Invalid, "CDI device %s is not in %s; %s", strings.Join(unknown, ", "), strings.Join(d.p.o.CDIDirs, " or "), hint)
	}
	if err != nil {
		return errs.New(errs.Invalid, "CDI devices %s: %w", strings.Join(names, ", "), err)
	}
	return nil
}
