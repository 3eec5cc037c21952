package cri

import (
	"fmt"
	"strconv"
	"strings"

	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/pod"
)

func itoa(n int) string { return strconv.Itoa(n) }

// security translates a container's security context. Without one nothing is confined by
// a profile, as the CRI has it.
func security(out *pod.ContainerConfig, c *v1.LinuxContainerSecurityContext) error {
	sec := &out.Security
	sec.Privileged, sec.ReadOnlyRoot = c.GetPrivileged(), c.GetReadonlyRootfs()
	out.NoNewPrivs = c.GetNoNewPrivs()
	out.MaskedPaths, out.ReadonlyPaths = c.GetMaskedPaths(), c.GetReadonlyPaths()
	caps := c.GetCapabilities()
	sec.AddCapabilities, sec.DropCapabilities, out.Ambient = caps.GetAddCapabilities(), caps.GetDropCapabilities(), caps.GetAddAmbientCapabilities()
	if c.GetRunAsUser() != nil {
		sec.RunAsUser = ptr(c.RunAsUser.Value)
	}
	sec.RunAsUserName = c.GetRunAsUsername()
	if c.GetRunAsGroup() != nil {
		if sec.RunAsUser == nil && sec.RunAsUserName == "" {
			return errs.New(errs.Invalid, "container %s: run_as_group is given without run_as_user or run_as_username", out.Name)
		}
		sec.RunAsGroup = ptr(c.RunAsGroup.Value)
	}
	out.Groups, out.StrictGroups = c.GetSupplementalGroups(), c.GetSupplementalGroupsPolicy() == v1.SupplementalGroupsPolicy_Strict
	ns := c.GetNamespaceOptions()
	switch ns.GetPid() {
	case v1.NamespaceMode_POD:
		out.PID = pod.PIDPod
	case v1.NamespaceMode_CONTAINER:
		out.PID = pod.PIDContainer
	case v1.NamespaceMode_NODE:
		out.PID = pod.PIDNode
	case v1.NamespaceMode_TARGET:
		if ns.TargetId == "" {
			return errs.New(errs.Invalid, "container %s: PID namespace TARGET without target_id", out.Name)
		}
		out.PID, out.Target = pod.PIDTarget, pod.ContainerID(ns.TargetId)
	}
	var err error
	if out.Users, err = userMappings(ns.GetUsernsOptions()); err != nil {
		return fmt.Errorf("container %s: %w", out.Name, err)
	}
	if se := c.GetSelinuxOptions(); se != nil && (se.User != "" || se.Role != "" || se.Type != "" || se.Level != "") && !sec.Privileged {
		sec.SELinuxOptions = &pod.SELinux{User: se.User, Role: se.Role, Type: se.Type, Level: se.Level}
	}
	//lint:ignore SA1019 older clients, and critest, send it
	if sec.Seccomp, err = seccompProfile(c.GetSeccomp(), c.GetSeccompProfilePath()); err != nil {
		return err
	}
	//lint:ignore SA1019 the same
	sec.AppArmor, err = appArmorProfile(c.GetApparmor(), c.GetApparmorProfile())
	return err
}

// seccompProfile prefers the profile to the older path of one.
func seccompProfile(p *v1.SecurityProfile, path string) (*pod.SecurityProfile, error) {
	kind, ref := v1.SecurityProfile_Unconfined, ""
	if p != nil {
		kind, ref = p.ProfileType, p.LocalhostRef
	} else {
		switch {
		case path == "" || path == "unconfined":
		case path == "runtime/default" || path == "docker/default":
			kind = v1.SecurityProfile_RuntimeDefault
		case strings.HasPrefix(path, "localhost/"):
			kind, ref = v1.SecurityProfile_Localhost, strings.TrimPrefix(path, "localhost/")
		default:
			return nil, errs.New(errs.Invalid, "seccomp profile %q is none of runtime/default, unconfined, localhost/PATH", path)
		}
	}
	switch kind {
	case v1.SecurityProfile_RuntimeDefault:
		return &pod.SecurityProfile{Type: "RuntimeDefault"}, nil
	case v1.SecurityProfile_Localhost:
		// kubelet gives the path of its own directory of profiles with it.
		ref = strings.TrimPrefix(ref, "localhost/")
		if !strings.HasPrefix(ref, "/") {
			return nil, errs.New(errs.Invalid, "seccomp profile %q: the path of a localhost profile must be absolute", ref)
		}
		return &pod.SecurityProfile{Type: "File", Path: ref}, nil
	}
	return &pod.SecurityProfile{Type: "Unconfined"}, nil
}

func appArmorProfile(p *v1.SecurityProfile, name string) (*pod.SecurityProfile, error) {
	kind, ref := v1.SecurityProfile_RuntimeDefault, ""
	if p != nil {
		kind, ref = p.ProfileType, strings.TrimPrefix(p.LocalhostRef, "localhost/")
	} else {
		switch {
		case name == "" || name == "runtime/default":
		case name == "unconfined":
			kind = v1.SecurityProfile_Unconfined
		case strings.HasPrefix(name, "localhost/"):
			kind, ref = v1.SecurityProfile_Localhost, strings.TrimPrefix(name, "localhost/")
		default:
			return nil, errs.New(errs.Invalid, "AppArmor profile %q is none of runtime/default, unconfined, localhost/NAME", name)
		}
	}
	switch kind {
	case v1.SecurityProfile_Localhost:
		return &pod.SecurityProfile{Type: "Localhost", Path: ref}, nil
	case v1.SecurityProfile_Unconfined:
		return &pod.SecurityProfile{Type: "Unconfined"}, nil
	}
	return nil, nil
}
