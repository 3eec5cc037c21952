package container

import (
	"fmt"
	"strings"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/cgroup"
)

// subgroup is the group that a further process joins: g, the container's, or what of it --cgroup
// names.
func (c *Container) subgroup(g *cgroup.Group, args []string) (*cgroup.Group, error) {
	paths, err := subgroupPaths(args)
	if err != nil {
		return nil, err
	}
	if len(paths) == 0 {
		return g, nil
	}
	if g == nil {
		return nil, errs.New(errs.FailedPrecondition, "container %s has no control group for --cgroup to be below", c.rec.ID)
	}
	if g, err = g.Sub(paths); err != nil {
		return nil, fmt.Errorf("--cgroup: %w", err)
	}
	return g, nil
}

// subgroupPaths reads what --cgroup says, which is runc's format: one PATH for all
// hierarchies, returned under "", or CONTROLLER[,CONTROLLER...]:PATH any number of times, returned by controller.
func subgroupPaths(args []string) (map[string]string, error) {
	paths := map[string]string{}
	for _, arg := range args {
		controllers, path, named := strings.Cut(arg, ":")
		if !named {
			if len(args) > 1 {
				return nil, errs.New(errs.Invalid, "--cgroup %s: with several, each names its controllers: CONTROLLER:PATH", arg)
			}
			paths[""] = arg
			continue
		}
		for controller := range strings.SplitSeq(controllers, ",") {
			if controller == "" {
				return nil, errs.New(errs.Invalid, "--cgroup %s: a controller's name is missing before the colon", arg)
			}
			if _, twice := paths[controller]; twice {
				return nil, errs.New(errs.Invalid, "--cgroup %s: controller %s is named twice", arg, controller)
			}
			paths[controller] = path
		}
	}
	return paths, nil
}
