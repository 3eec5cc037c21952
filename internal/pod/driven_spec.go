package pod

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/namespace"
)

// buildContainer writes the specification, and returns with it the image's layers, which it
// holds until release. With dry nothing is made on the host.
func (d *Driven) buildContainer(ctx context.Context, pod *drivenPod, id ContainerID, c *ContainerConfig, img Image, dry bool) (oci *specs.Spec, layers []string, release func(), err error) {
	w, spec := pod.w, pod.w.spec()
	if layers, release, err = d.p.o.Images.Layers(ctx, img.ID); err != nil {
		return nil, nil, nil, err
	}
	fail := func(err error) (*specs.Spec, []string, func(), error) {
		release()
		return nil, nil, nil, fmt.Errorf("container %s of pod %s: %w", c.Name, spec.Key, err)
	}
	mounts, err := d.binds(ctx, pod, id, c, dry)
	if err != nil {
		return fail(err)
	}
	spec.HostPID = c.PID == PIDNode
	spec.SharePID = c.PID == PIDPod
	spec.Security.Groups = c.Groups
	if c.StrictGroups {
		spec.Security.GroupsPolicy = "Strict"
	}
	pid := ""
	switch {
	case dry:
	case c.PID == PIDPod:
		n, err := w.pausePID(ctx)
		if err != nil {
			return fail(err)
		}
		pid = fmt.Sprintf("/proc/%d/ns/pid", n)
	case c.PID == PIDTarget:
		target, err := d.Container(c.Target)
		if err == nil && (target.State != DrivenRunning || target.Sandbox != pod.rec.ID) {
			err = errs.New(errs.FailedPrecondition, "container %s, whose PID namespace it asks for, does not run in this pod", c.Target)
		}
		if err != nil {
			return fail(err)
		}
		pid = fmt.Sprintf("/proc/%d/ns/pid", target.PID)
	}
	oci, err = buildSpec(specInput{
		Pod: &spec, Container: &c.Container, Image: img.Config, Env: merged(img.Config.Env, c.Variables), Layers: layers, Mounts: mounts,
		Net: w.nsPath(namespace.Net), IPC: w.nsPath(namespace.IPC), UTS: w.nsPath(namespace.UTS), PID: pid, User: w.nsPath(namespace.User),
		SeccompDir: d.p.o.SeccompDir, CgroupParent: w.group(), Expand: func(s string) string { return s },
	})
	if err != nil {
		return fail(err)
	}
	if err := c.complete(oci); err != nil {
		return fail(err)
	}
	if err := d.InjectDevices(oci, c.CDI); err != nil {
		return fail(err)
	}
	if _, err := d.p.handlers.runtimeFor(ctx, &spec, oci.Mounts); err != nil {
		return fail(err)
	}
	return oci, layers, release, nil
}

// merged puts variables over the image's: the later wins.
func merged(image, own []string) []string {
	set := envMap(own)
	var env []string
	for _, e := range image {
		for name := range envMap([]string{e}) {
			if _, ok := set[name]; !ok {
				env = append(env, e)
			}
		}
	}
	return append(env, own...)
}

// complete sets what the client says itself instead of leaving it to the pod's rules.
func (c *ContainerConfig) complete(s *specs.Spec) error {
	s.Process.NoNewPrivileges = c.NoNewPrivs
	score := c.OOMScoreAdj
	s.Process.OOMScoreAdj = &score
	s.Annotations = c.Annotations
	if !c.Security.Privileged {
		s.Linux.MaskedPaths, s.Linux.ReadonlyPaths = c.MaskedPaths, c.ReadonlyPaths
	}
	for _, name := range c.Ambient {
		name = capabilityName(name)
		if !slices.Contains(allCapabilities, name) {
			return errs.New(errs.Invalid, "there is no capability %s; see capabilities(7)", name)
		}
		caps := s.Process.Capabilities
		for _, set := range []*[]string{&caps.Bounding, &caps.Effective, &caps.Permitted, &caps.Inheritable, &caps.Ambient} {
			if !slices.Contains(*set, name) {
				*set = append(slices.Clone(*set), name)
			}
		}
	}
	devices := s.Linux.Resources.Devices
	s.Linux.Resources = &specs.LinuxResources{}
	if c.Limits != nil {
		*s.Linux.Resources = *c.Limits
	}
	s.Linux.Resources.Devices = devices
	for _, n := range c.Nodes {
		list, err := nodes(n)
		if err != nil {
			return err
		}
		for _, dev := range list {
			s.Linux.Devices = slices.DeleteFunc(s.Linux.Devices, func(o specs.LinuxDevice) bool { return o.Path == dev.Path })
			s.Linux.Devices = append(s.Linux.Devices, dev)
			if !c.Security.Privileged {
				s.Linux.Resources.Devices = append(s.Linux.Resources.Devices, specs.LinuxDeviceCgroup{Allow: true, Type: dev.Type, Major: &dev.Major, Minor: &dev.Minor, Access: n.Access})
			}
		}
	}
	return nil
}

// nodes are the devices that a path of the host stands for: itself, or all below it.
func nodes(n DeviceNode) (list []specs.LinuxDevice, err error) {
	fi, err := os.Stat(n.HostPath)
	if err != nil {
		return nil, errs.New(errs.Invalid, "device %s: %w", n.HostPath, err)
	}
	to := n.ContainerPath
	if to == "" {
		to = n.HostPath
	}
	if !fi.IsDir() {
		d, err := device(n.HostPath, to, unix.Stat)
		if err != nil {
			return nil, err
		}
		return []specs.LinuxDevice{d}, nil
	}
	ents, err := os.ReadDir(n.HostPath)
	if err != nil {
		return nil, err
	}
	for _, e := range ents {
		if e.IsDir() || e.Type()&os.ModeDevice == 0 {
			continue
		}
		d, err := device(filepath.Join(n.HostPath, e.Name()), filepath.Join(to, e.Name()), unix.Lstat)
		if err == nil {
			list = append(list, d)
		}
	}
	return list, nil
}
