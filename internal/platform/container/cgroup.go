package container

import (
	"errors"
	"os"
	"path"
	"reflect"
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/cgroup"
)

// place settles where the container's group is, in words of package cgroup, from
// linux.cgroupsPath: an absolute path below the hierarchies' roots; a relative one,
// below this process's own groups; or with systemd slice:prefix:name. Nothing is the
// container's id, below this process's own groups or, with systemd, as a scope.
//
// Own groups may be different ones where there are several hierarchies. The container is below
// each, so that no limit of this process's ends with it. With cgroup2 alone it is
// beside: a group that has processes has no limits below it.
func (r *record) place(wanted string, h *cgroup.Host) (err error) {
	if r.Driver == cgroup.Systemd {
		r.Cgroup, err = unitPath(wanted, r.ID)
		return err
	}
	if path.IsAbs(wanted) {
		r.Cgroup = path.Clean(wanted)
		return nil
	}
	if wanted == "" {
		wanted = r.ID
	}
	own, err := h.Own()
	if err != nil {
		return err
	}
	r.Cgroup = path.Clean("/" + wanted)
	if h.Layout().Mode == cgroup.V2 {
		r.Cgroup = path.Join("/", path.Dir(own[""]), r.Cgroup)
		return nil
	}
	r.CgroupBelow = own
	return nil
}

// unitPath turns slice:prefix:name into the path of the scope.
func unitPath(wanted, id string) (string, error) {
	slice, prefix, name := "", "orlop", id
	if wanted != "" {
		part := strings.Split(wanted, ":")
		if len(part) != 3 {
			return "", errs.New(errs.Invalid, "cgroupsPath %q: with --systemd-cgroup it has the form slice:prefix:name", wanted)
		}
		slice, prefix, name = part[0], part[1], part[2]
	}
	if slice == "" {
		slice = "system.slice"
		if os.Geteuid() != 0 {
			slice = "user.slice"
		}
	}
	if slice == "-.slice" || strings.ContainsRune(slice, '/') || !strings.HasSuffix(slice, ".slice") {
		return "", errs.New(errs.Invalid, "cgroupsPath %q: %q is not the name of a slice below the root", wanted, slice)
	}
	if name == "" || strings.ContainsRune(prefix+name, '/') {
		return "", errs.New(errs.Invalid, "cgroupsPath %q: %q is not part of the name of a unit", wanted, prefix+name)
	}
	if strings.HasSuffix(name, ".slice") {
		return "/" + name, nil
	}
	if prefix != "" {
		name = prefix + "-" + name
	}
	return "/" + slice + "/" + name + ".scope", nil
}

// groups opens the host's control groups with a container's driver. They are looked for
// in the mount table, which a short command should read but once.
func (s *Store) groups(d cgroup.Driver) (*cgroup.Host, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h := s.hosts[d]; h != nil {
		return h, nil
	}
	h, err := cgroup.Open(cgroup.Options{Driver: d})
	if err != nil {
		return nil, err
	}
	if s.hosts == nil {
		s.hosts = map[cgroup.Driver]*cgroup.Host{}
	}
	s.hosts[d] = h
	return h, nil
}

// groups are the host's, beginning where the container's path does.
func (c *Container) groups() (*cgroup.Host, error) {
	h, err := c.store.groups(c.rec.Driver)
	if err != nil || len(c.rec.CgroupBelow) == 0 {
		return h, err
	}
	return h.Below(c.rec.CgroupBelow)
}

// group returns the container's group, nil if it has none or it is gone.
func (c *Container) group() (*cgroup.Group, error) {
	if c.rec.Cgroup == "" {
		return nil, nil
	}
	h, err := c.groups()
	if err != nil {
		return nil, err
	}
	g, err := h.Load(c.rec.Cgroup)
	if errors.Is(err, errs.NotFound) {
		return nil, nil
	}
	return g, err
}

// free makes sure that the container's group is nobody else's: one that has processes, or
// that is frozen, is. It comes before the intent, as a group that an intent names is
// taken for the container's own.
func (c *Container) free() error {
	if c.rec.Cgroup == "" {
		return nil
	}
	h, err := c.groups()
	if err != nil {
		return err
	}
	g, err := h.Group(c.rec.Cgroup)
	if err != nil {
		return err
	}
	if !g.Empty() {
		return errs.New(errs.InUse, "cgroup %s has processes already: give the container a cgroupsPath of its own", c.rec.Cgroup)
	}
	if frozen, err := g.Frozen(); err == nil && frozen {
		return errs.New(errs.FailedPrecondition, "cgroup %s is frozen: what would be started in it could not run", c.rec.Cgroup)
	}
	return nil
}

// makeGroup makes the container's group.
func (c *Container) makeGroup(spec *specs.Spec) (*cgroup.Group, error) {
	h, err := c.groups()
	if err != nil {
		return nil, err
	}
	var res *specs.LinuxResources
	if spec.Linux != nil {
		res = withDevices(spec.Linux.Resources)
	} else {
		res = withDevices(nil)
	}
	g, err := h.Create(c.rec.Cgroup, res, c.properties...)
	if err != nil {
		return nil, err
	}
	c.made = true
	return g, nil
}

// limited tells whether a specification asks for limits.
func limited(spec *specs.Spec) bool {
	if spec.Linux == nil || spec.Linux.Resources == nil {
		return false
	}
	r := *spec.Linux.Resources
	r.Devices = nil // without privileges there is no device to keep anybody from
	return !reflect.ValueOf(r).IsZero()
}

// withDevices adds the rules for the devices that every container has (config-linux.md,
// Default Devices), and that for making nodes, which by themselves give access to
// nothing. They come last, so that no wish can take them away.
func withDevices(res *specs.LinuxResources) *specs.LinuxResources {
	all := specs.LinuxResources{}
	if res != nil {
		all = *res
	}
	num := func(n int64) *int64 { return &n }
	rule := func(kind string, major, minor *int64, access string) specs.LinuxDeviceCgroup {
		return specs.LinuxDeviceCgroup{Allow: true, Type: kind, Major: major, Minor: minor, Access: access}
	}
	all.Devices = append(slices.Clone(all.Devices),
		rule("c", nil, nil, "m"), rule("b", nil, nil, "m"),
		rule("c", num(1), num(3), "rwm"),    // null
		rule("c", num(1), num(5), "rwm"),    // zero
		rule("c", num(1), num(7), "rwm"),    // full
		rule("c", num(1), num(8), "rwm"),    // random
		rule("c", num(1), num(9), "rwm"),    // urandom
		rule("c", num(5), num(0), "rwm"),    // tty
		rule("c", num(5), num(2), "rwm"),    // ptmx
		rule("c", num(136), nil, "rwm"),     // pts/*, of which /dev/console is one
		rule("c", num(10), num(200), "rwm"), // net/tun, of no use without CAP_NET_ADMIN
	)
	return &all
}
