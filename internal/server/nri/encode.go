package nri

import (
	"time"

	"github.com/containerd/nri/pkg/api"

	"github.com/orlop-io/orlop/internal/pod"
)

func each[A, B any](list []A, fn func(A) B) []B {
	out := make([]B, 0, len(list))
	for _, a := range list {
		out = append(out, fn(a))
	}
	return out
}

func encodePod(p pod.HookedPod) *api.PodSandbox {
	c := &p.Config
	out := &api.PodSandbox{
		Id: string(p.ID), Name: c.Name, Uid: c.UID, Namespace: c.Namespace, Labels: c.Labels, Annotations: c.Annotations, RuntimeHandler: c.Handler,
		Linux: &api.LinuxPodSandbox{CgroupParent: c.CgroupParent, CgroupsPath: p.Group, Namespaces: api.FromOCILinuxNamespaces(p.Namespaces)},
	}
	for _, ip := range p.IPs {
		out.Ips = append(out.Ips, ip.String())
	}
	return out
}

var states = map[pod.DrivenState]api.ContainerState{
	pod.DrivenCreated: api.ContainerState_CONTAINER_CREATED, pod.DrivenRunning: api.ContainerState_CONTAINER_RUNNING,
	pod.DrivenExited: api.ContainerState_CONTAINER_STOPPED,
}

func encodeContainer(c pod.HookedContainer) *api.Container {
	out := &api.Container{
		Id: string(c.ID), PodSandboxId: string(c.Sandbox), Name: c.Config.Name, State: states[c.State], Labels: c.Config.Labels, Annotations: c.Config.Annotations,
		Pid: uint32(c.PID), CreatedAt: nanos(c.CreatedAt), StartedAt: nanos(c.StartedAt), FinishedAt: nanos(c.FinishedAt),
		ExitCode: int32(c.ExitCode), StatusReason: c.Reason, StatusMessage: c.Message,
		Image: &api.Image{Name: c.Config.Image}, Linux: &api.LinuxContainer{CgroupsPath: c.Group},
	}
	s := c.OCI
	if s == nil {
		return out
	}
	out.Hooks, out.Mounts = api.FromOCIHooks(s.Hooks), api.FromOCIMounts(s.Mounts)
	if p := s.Process; p != nil {
		out.Args, out.Env = p.Args, p.Env
		out.User = &api.User{Uid: p.User.UID, Gid: p.User.GID, AdditionalGids: p.User.AdditionalGids}
		for _, l := range p.Rlimits {
			out.Rlimits = append(out.Rlimits, &api.POSIXRlimit{Type: l.Type, Hard: l.Hard, Soft: l.Soft})
		}
		if p.OOMScoreAdj != nil {
			out.Linux.OomScoreAdj = api.Int(*p.OOMScoreAdj)
		}
		if p.IOPriority != nil {
			out.Linux.IoPriority = api.FromOCILinuxIOPriority(p.IOPriority)
		}
	}
	if l := s.Linux; l != nil {
		out.Linux.Namespaces, out.Linux.Devices = api.FromOCILinuxNamespaces(l.Namespaces), api.FromOCILinuxDevices(l.Devices)
		out.Linux.Resources = api.FromOCILinuxResources(l.Resources, s.Annotations)
		out.Linux.Sysctl = l.Sysctl
		if l.Seccomp != nil {
			out.Linux.SeccompPolicy = api.FromOCILinuxSeccomp(l.Seccomp)
		}
	}
	return out
}

// nanos is 0 for a time that has not been.
func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func decodeUpdates(list []*api.ContainerUpdate) (out []pod.LimitsUpdate) {
	for _, u := range list {
		if r := u.GetLinux().GetResources(); r != nil {
			limits := r.ToOCI()
			// A container's devices are fixed at its start.
			limits.Devices = nil
			out = append(out, pod.LimitsUpdate{Container: pod.ContainerID(u.ContainerId), Limits: limits, IgnoreFailure: u.IgnoreFailure})
		}
	}
	return out
}
