package cri

import (
	"context"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"
	"tags.cncf.io/container-device-interface/pkg/cdi"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/pod"
)

// CreateContainer implements the service.
func (s *Server) CreateContainer(ctx context.Context, r *v1.CreateContainerRequest) (*v1.CreateContainerResponse, error) {
	if r.Config == nil {
		return nil, errs.New(errs.Invalid, "CreateContainer: config is missing")
	}
	c, err := containerConfig(r.Config)
	if err != nil {
		return nil, err
	}
	id, err := s.o.Pods.CreateContainer(ctx, pod.ID(r.PodSandboxId), c)
	if err != nil {
		return nil, err
	}
	return &v1.CreateContainerResponse{ContainerId: string(id)}, nil
}

// containerConfig translates what a client asks for.
func containerConfig(c *v1.ContainerConfig) (pod.ContainerConfig, error) {
	var out pod.ContainerConfig
	out.Name, out.Attempt = c.GetMetadata().GetName(), c.GetMetadata().GetAttempt()
	out.Image, out.Command, out.Args, out.WorkingDir = c.GetImage().GetImage(), c.Command, c.Args, c.WorkingDir
	out.Labels, out.Annotations, out.LogPath = c.Labels, c.Annotations, c.LogPath
	out.Stdin, out.StdinOnce, out.TTY = c.Stdin, c.StdinOnce, c.Tty
	if out.Image == "" {
		return out, errs.New(errs.Invalid, "container %s: its image is missing", out.Name)
	}
	if c.StopSignal != v1.Signal_SIGNAL_RUNTIME_DEFAULT {
		out.StopSignal = signalName(c.StopSignal)
	}
	for _, e := range c.Envs {
		if e.Key == "" || strings.ContainsAny(e.Key, "=\x00") || strings.ContainsRune(string(e.Value), 0) {
			return out, errs.New(errs.Invalid, "container %s: environment variable %q has a name or value that cannot be", out.Name, e.Key)
		}
		out.Variables = append(out.Variables, e.Key+"="+string(e.Value))
	}
	for _, m := range c.Mounts {
		b := pod.Bind{HostPath: m.HostPath, ContainerPath: m.ContainerPath, ReadOnly: m.Readonly, Recursive: m.RecursiveReadOnly}
		if m.Image != nil && m.Image.Image != "" {
			b.Image, b.SubPath = m.Image.Image, m.ImageSubPath
			if !m.Readonly {
				return out, errs.New(errs.Invalid, "container %s: mount of image %s on %s: images can be mounted read-only alone", out.Name, b.Image, m.ContainerPath)
			}
		}
		if len(m.UidMappings)+len(m.GidMappings) > 0 {
			var err error
			if b.Users, err = idMaps(m.UidMappings, m.GidMappings); err != nil {
				return out, fmt.Errorf("container %s: mount on %s: %w", out.Name, m.ContainerPath, err)
			}
		}
		// SelinuxRelabel: without SELinux there is nothing to label, and kubelet asks for it
		// regardless.
		switch m.Propagation {
		case v1.MountPropagation_PROPAGATION_HOST_TO_CONTAINER:
			b.Propagation = "HostToContainer"
		case v1.MountPropagation_PROPAGATION_BIDIRECTIONAL:
			b.Propagation = "Bidirectional"
		}
		out.Binds = append(out.Binds, b)
	}
	for _, d := range c.Devices {
		if d.Permissions == "" || strings.Trim(d.Permissions, "rwm") != "" {
			return out, errs.New(errs.Invalid, "container %s: device %s: permissions %q are not of r, w and m", out.Name, d.HostPath, d.Permissions)
		}
		out.Nodes = append(out.Nodes, pod.DeviceNode{HostPath: d.HostPath, ContainerPath: d.ContainerPath, Access: d.Permissions})
	}
	for _, d := range c.CDIDevices {
		out.CDI = append(out.CDI, d.Name)
	}
	_, annotated, err := cdi.ParseAnnotations(c.Annotations) // as older device plugins ask
	if err != nil {
		return out, errs.New(errs.Invalid, "container %s: annotations of CDI devices: %w", out.Name, err)
	}
	for _, name := range annotated {
		if !slices.Contains(out.CDI, name) {
			out.CDI = append(out.CDI, name)
		}
	}
	out.Limits = limits(c.GetLinux().GetResources())
	out.OOMScoreAdj = clamp(c.GetLinux().GetResources().GetOomScoreAdj())
	return out, security(&out, c.GetLinux().GetSecurityContext())
}

// signalName is the name of a signal as signal(7) has it; real-time signals are relative
// to the ends of their range, 34 to 64 with every C library.
func signalName(s v1.Signal) string {
	name := strings.TrimPrefix(s.String(), "SIGNAL_")
	for prefix, base := range map[string]int{"SIGRTMINPLUS": 34, "SIGRTMAXMINUS": 64} {
		if n, ok := strings.CutPrefix(name, prefix); ok {
			v := 0
			for _, d := range n {
				v = 10*v + int(d-'0')
			}
			if base == 64 {
				v = -v
			}
			return itoa(base + v)
		}
	}
	switch name {
	case "SIGRTMIN":
		return "34"
	case "SIGRTMAX":
		return "64"
	}
	return name
}

// limits translates resources. Zero and empty are not said.
func limits(r *v1.LinuxContainerResources) *specs.LinuxResources {
	if r == nil {
		return nil
	}
	var out specs.LinuxResources
	var cpu specs.LinuxCPU
	if r.CpuPeriod > 0 {
		cpu.Period = ptr(uint64(r.CpuPeriod))
	}
	if r.CpuQuota != 0 {
		cpu.Quota = ptr(r.CpuQuota)
	}
	if r.CpuShares > 0 {
		cpu.Shares = ptr(uint64(r.CpuShares))
	}
	cpu.Cpus, cpu.Mems = r.CpusetCpus, r.CpusetMems
	if cpu != (specs.LinuxCPU{}) {
		out.CPU = &cpu
	}
	if r.MemoryLimitInBytes != 0 {
		out.Memory = &specs.LinuxMemory{Limit: ptr(r.MemoryLimitInBytes)}
		if swap := r.MemorySwapLimitInBytes; swap != 0 {
			out.Memory.Swap = ptr(swap)
		} else {
			out.Memory.Swap = ptr(r.MemoryLimitInBytes)
		}
	}
	for _, h := range r.HugepageLimits {
		out.HugepageLimits = append(out.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: h.PageSize, Limit: h.Limit})
	}
	out.Unified = r.Unified
	return &out
}

func ptr[T any](v T) *T { return &v }

// StartContainer implements the service.
func (s *Server) StartContainer(ctx context.Context, r *v1.StartContainerRequest) (*v1.StartContainerResponse, error) {
	return &v1.StartContainerResponse{}, s.o.Pods.StartContainer(ctx, pod.ContainerID(r.ContainerId))
}

// StopContainer implements the service.
func (s *Server) StopContainer(ctx context.Context, r *v1.StopContainerRequest) (*v1.StopContainerResponse, error) {
	grace := time.Duration(max(0, min(r.Timeout, math.MaxInt64/int64(time.Second)))) * time.Second
	return &v1.StopContainerResponse{}, s.o.Pods.StopContainer(ctx, pod.ContainerID(r.ContainerId), grace)
}

// RemoveContainer implements the service.
func (s *Server) RemoveContainer(ctx context.Context, r *v1.RemoveContainerRequest) (*v1.RemoveContainerResponse, error) {
	return &v1.RemoveContainerResponse{}, s.o.Pods.RemoveContainer(ctx, pod.ContainerID(r.ContainerId))
}

// UpdateContainerResources implements the service.
func (s *Server) UpdateContainerResources(ctx context.Context, r *v1.UpdateContainerResourcesRequest) (*v1.UpdateContainerResourcesResponse, error) {
	if r.Linux == nil {
		return nil, errs.New(errs.Invalid, "UpdateContainerResources: linux is missing")
	}
	return &v1.UpdateContainerResourcesResponse{}, s.o.Pods.UpdateContainer(ctx, pod.ContainerID(r.ContainerId), limits(r.Linux))
}

// ReopenContainerLog implements the service.
func (s *Server) ReopenContainerLog(ctx context.Context, r *v1.ReopenContainerLogRequest) (*v1.ReopenContainerLogResponse, error) {
	return &v1.ReopenContainerLogResponse{}, s.o.Pods.ReopenLog(ctx, pod.ContainerID(r.ContainerId))
}

func containerState(s pod.DrivenState) v1.ContainerState {
	switch s {
	case pod.DrivenCreated:
		return v1.ContainerState_CONTAINER_CREATED
	case pod.DrivenRunning:
		return v1.ContainerState_CONTAINER_RUNNING
	case pod.DrivenExited:
		return v1.ContainerState_CONTAINER_EXITED
	}
	return v1.ContainerState_CONTAINER_UNKNOWN
}

func containerMetadata(c *pod.ContainerConfig) *v1.ContainerMetadata {
	return &v1.ContainerMetadata{Name: c.Name, Attempt: c.Attempt}
}

// ListContainers implements the service.
func (s *Server) ListContainers(ctx context.Context, r *v1.ListContainersRequest) (*v1.ListContainersResponse, error) {
	list := s.containers(r.Filter)
	out := make([]*v1.Container, 0, len(list))
	for i := range list {
		out = append(out, listed(&list[i]))
	}
	return &v1.ListContainersResponse{Containers: out}, nil
}

// StreamContainers implements the service.
func (s *Server) StreamContainers(r *v1.StreamContainersRequest, stream v1.RuntimeService_StreamContainersServer) error {
	return pieces(s.containers(r.Filter), func(l []pod.DrivenContainer) error {
		answer := &v1.StreamContainersResponse{}
		for i := range l {
			answer.Containers = append(answer.Containers, listed(&l[i]))
		}
		return stream.Send(answer)
	})
}

func listed(c *pod.DrivenContainer) *v1.Container {
	return &v1.Container{
		Id: string(c.ID), PodSandboxId: string(c.Sandbox), Metadata: containerMetadata(&c.Config), Image: &v1.ImageSpec{Image: c.Config.Image},
		ImageRef: c.ImageID, ImageId: c.ImageID, State: containerState(c.State), CreatedAt: c.CreatedAt.UnixNano(),
		Labels: c.Config.Labels, Annotations: c.Config.Annotations,
	}
}

// containers are those that a filter lets through.
func (s *Server) containers(f *v1.ContainerFilter) []pod.DrivenContainer {
	var list []pod.DrivenContainer
	for _, c := range s.o.Pods.Containers("") {
		if named(string(c.ID), f.GetId()) && named(string(c.Sandbox), f.GetPodSandboxId()) && labelled(c.Config.Labels, f.GetLabelSelector()) &&
			(f.GetState() == nil || f.State.State == containerState(c.State)) {
			list = append(list, c)
		}
	}
	return list
}

// ContainerStatus implements the service.
func (s *Server) ContainerStatus(ctx context.Context, r *v1.ContainerStatusRequest) (*v1.ContainerStatusResponse, error) {
	c, err := s.o.Pods.Container(pod.ContainerID(r.ContainerId))
	if err != nil {
		return nil, err
	}
	answer := &v1.ContainerStatusResponse{Status: s.containerStatus(ctx, &c)}
	if r.Verbose {
		answer.Info = info(map[string]any{"sandboxID": c.Sandbox, "pid": c.PID, "config": c.Config})
	}
	return answer, nil
}

func (s *Server) containerStatus(ctx context.Context, c *pod.DrivenContainer) *v1.ContainerStatus {
	conf := &c.Config
	st := &v1.ContainerStatus{
		Id: string(c.ID), Metadata: containerMetadata(conf), State: containerState(c.State), CreatedAt: c.CreatedAt.UnixNano(),
		StartedAt: nanos(c.StartedAt), FinishedAt: nanos(c.FinishedAt), ExitCode: int32(c.ExitCode),
		Image: &v1.ImageSpec{Image: s.imageName(ctx, conf.Image)}, ImageRef: s.imageRef(ctx, c.ImageID), ImageId: c.ImageID,
		Reason: c.Reason, Message: c.Message, Labels: conf.Labels, Annotations: conf.Annotations, LogPath: c.LogPath,
		Resources: &v1.ContainerResources{Linux: encodeLimits(conf.Limits, conf.OOMScoreAdj)},
		User:      &v1.ContainerUser{Linux: &v1.LinuxContainerUser{Uid: int64(c.User.UID), Gid: int64(c.User.GID)}},
	}
	for _, g := range c.User.AdditionalGids {
		st.User.Linux.SupplementalGroups = append(st.User.Linux.SupplementalGroups, int64(g))
	}
	if n, ok := v1.Signal_value["SIGNAL_"+conf.StopSignal]; ok {
		st.StopSignal = v1.Signal(n)
	} else if n, ok := v1.Signal_value[conf.StopSignal]; ok {
		st.StopSignal = v1.Signal(n)
	}
	for _, b := range conf.Binds {
		m := &v1.Mount{ContainerPath: b.ContainerPath, HostPath: b.HostPath, Readonly: b.ReadOnly, RecursiveReadOnly: b.Recursive, ImageSubPath: b.SubPath}
		if b.Image != "" {
			m.Image = &v1.ImageSpec{Image: b.Image}
			if img, err := s.o.Images.Resolve(ctx, b.Image); err == nil {
				m.Image.ImageRef = img.ID.String() // as pulling it has answered
			}
		}
		switch b.Propagation {
		case "HostToContainer":
			m.Propagation = v1.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
		case "Bidirectional":
			m.Propagation = v1.MountPropagation_PROPAGATION_BIDIRECTIONAL
		}
		st.Mounts = append(st.Mounts, m)
	}
	return st
}

func nanos(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func encodeLimits(r *specs.LinuxResources, oom int) *v1.LinuxContainerResources {
	out := &v1.LinuxContainerResources{OomScoreAdj: int64(oom)}
	if r == nil {
		return out
	}
	if c := r.CPU; c != nil {
		if c.Period != nil {
			out.CpuPeriod = int64(*c.Period)
		}
		if c.Quota != nil {
			out.CpuQuota = *c.Quota
		}
		if c.Shares != nil {
			out.CpuShares = int64(*c.Shares)
		}
		out.CpusetCpus, out.CpusetMems = c.Cpus, c.Mems
	}
	if m := r.Memory; m != nil {
		if m.Limit != nil {
			out.MemoryLimitInBytes = *m.Limit
		}
		if m.Swap != nil {
			out.MemorySwapLimitInBytes = *m.Swap
		}
	}
	for _, h := range r.HugepageLimits {
		out.HugepageLimits = append(out.HugepageLimits, &v1.HugepageLimit{PageSize: h.Pagesize, Limit: h.Limit})
	}
	out.Unified = r.Unified
	return out
}

// info is the verbose part of an answer.
func info(v map[string]any) map[string]string {
	raw, err := json.Marshal(v)
	if err != nil {
		return nil
	}
	return map[string]string{"info": string(raw)}
}
