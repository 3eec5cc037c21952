package cri

import (
	"context"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"path/filepath"
	"slices"

	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/pod"
)

// RunPodSandbox implements the service.
func (s *Server) RunPodSandbox(ctx context.Context, r *v1.RunPodSandboxRequest) (*v1.RunPodSandboxResponse, error) {
	if r.Config == nil {
		return nil, errs.New(errs.Invalid, "RunPodSandbox: config is missing")
	}
	c, err := sandboxConfig(r.Config)
	if err != nil {
		return nil, err
	}
	c.Handler = r.RuntimeHandler
	id, err := s.o.Pods.RunSandbox(ctx, c)
	if err != nil {
		return nil, err
	}
	return &v1.RunPodSandboxResponse{PodSandboxId: string(id)}, nil
}

// sandboxConfig translates what a client asks for.
func sandboxConfig(c *v1.PodSandboxConfig) (pod.SandboxConfig, error) {
	m, l := c.GetMetadata(), c.GetLinux()
	sec := l.GetSecurityContext()
	ns := sec.GetNamespaceOptions()
	var out pod.SandboxConfig
	out.Key = pod.Key{Namespace: m.GetNamespace(), Name: m.GetName()}
	out.UID, out.Attempt = m.GetUid(), m.GetAttempt()
	out.Labels, out.Annotations = c.Labels, c.Annotations
	out.Hostname, out.LogDir = c.Hostname, c.LogDirectory
	if len(c.Hostname) > 64 {
		return out, errs.New(errs.Invalid, "pod %s: host name %q is longer than 64 bytes", out.Key, c.Hostname)
	}
	out.RestartPolicy = pod.RestartNever // it is the client that restarts
	var err error
	if out.CgroupParent, err = cgroupParent(l.GetCgroupParent()); err != nil {
		return out, err
	}
	out.HostNetwork = ns.GetNetwork() == v1.NamespaceMode_NODE
	out.HostPID = ns.GetPid() == v1.NamespaceMode_NODE
	out.HostIPC = ns.GetIpc() == v1.NamespaceMode_NODE
	if out.Users, err = userMappings(ns.GetUsernsOptions()); err != nil {
		return out, fmt.Errorf("pod %s: %w", out.Key, err)
	}
	if out.Users != nil && (out.HostNetwork || out.HostPID || out.HostIPC) {
		return out, errs.New(errs.Invalid, "pod %s: a user namespace needs network, PID and IPC namespaces of the pod's own", out.Key)
	}
	for _, name := range slices.Sorted(maps.Keys(l.GetSysctls())) {
		out.Security.Sysctls = append(out.Security.Sysctls, pod.Sysctl{Name: name, Value: l.Sysctls[name]})
	}
	for _, p := range c.PortMappings {
		if p.HostPort == 0 {
			continue
		}
		if p.HostPort < 0 || p.HostPort > 65535 || p.ContainerPort <= 0 || p.ContainerPort > 65535 {
			return out, errs.New(errs.Invalid, "pod %s: port mapping %d → %d: ports are 1 to 65535", out.Key, p.HostPort, p.ContainerPort)
		}
		port := pod.Port{Port: uint16(p.ContainerPort), HostPort: uint16(p.HostPort), Protocol: p.Protocol.String()}
		if p.HostIp != "" {
			if port.HostIP, err = netip.ParseAddr(p.HostIp); err != nil {
				return out, errs.New(errs.Invalid, "pod %s: host IP of port %d: %w", out.Key, p.HostPort, err)
			}
		}
		out.Ports = append(out.Ports, port)
	}
	out.DNSPolicy = "Default"
	if d := c.DnsConfig; d != nil && len(d.Servers)+len(d.Searches)+len(d.Options) > 0 {
		out.DNSPolicy = "None"
		out.DNS.Searches, out.DNS.Options = d.Searches, d.Options
		for _, text := range d.Servers {
			ip, err := netip.ParseAddr(text)
			if err != nil {
				return out, errs.New(errs.Invalid, "pod %s: name server: %w", out.Key, err)
			}
			out.DNS.Servers = append(out.DNS.Servers, ip)
		}
	}
	return out, nil
}

// cgroupParent makes a path of what kubelet gives: a path with the cgroupfs driver, the
// name of a slice with systemd's, below whose dashes lie the slices above it
// (systemd.slice(5)).
func cgroupParent(p string) (string, error) {
	if p == "" {
		return "", nil
	}
	if filepath.IsAbs(p) {
		return filepath.Clean(p), nil
	}
	const suffix = ".slice"
	if filepath.Ext(p) != suffix || filepath.Base(p) != p {
		return "", errs.New(errs.Invalid, "cgroup parent %q is neither an absolute path nor the name of a slice", p)
	}
	path, name := "/", p[:len(p)-len(suffix)]
	for i := range len(name) {
		if name[i] == '-' {
			path = filepath.Join(path, name[:i]+suffix)
		}
	}
	return filepath.Join(path, p), nil
}

// StopPodSandbox implements the service.
func (s *Server) StopPodSandbox(ctx context.Context, r *v1.StopPodSandboxRequest) (*v1.StopPodSandboxResponse, error) {
	return &v1.StopPodSandboxResponse{}, s.o.Pods.StopSandbox(ctx, pod.ID(r.PodSandboxId))
}

// RemovePodSandbox implements the service.
func (s *Server) RemovePodSandbox(ctx context.Context, r *v1.RemovePodSandboxRequest) (*v1.RemovePodSandboxResponse, error) {
	return &v1.RemovePodSandboxResponse{}, s.o.Pods.RemoveSandbox(ctx, pod.ID(r.PodSandboxId))
}

// PodSandboxStatus implements the service.
func (s *Server) PodSandboxStatus(ctx context.Context, r *v1.PodSandboxStatusRequest) (*v1.PodSandboxStatusResponse, error) {
	box, err := s.o.Pods.Sandbox(pod.ID(r.PodSandboxId))
	if err != nil {
		return nil, err
	}
	answer := &v1.PodSandboxStatusResponse{Status: sandboxStatus(box)}
	if r.Verbose {
		answer.Info = info(map[string]any{
			"config": box.Config, "networkNamespace": s.o.Pods.NetworkNamespace(box.ID),
		})
	}
	return answer, nil
}

func sandboxState(s pod.SandboxState) v1.PodSandboxState {
	if s == pod.SandboxReady {
		return v1.PodSandboxState_SANDBOX_READY
	}
	return v1.PodSandboxState_SANDBOX_NOTREADY
}

func sandboxMetadata(c *pod.SandboxConfig) *v1.PodSandboxMetadata {
	return &v1.PodSandboxMetadata{Name: c.Name, Namespace: c.Namespace, Uid: c.UID, Attempt: c.Attempt}
}

func sandboxStatus(b pod.Sandbox) *v1.PodSandboxStatus {
	c := &b.Config
	st := &v1.PodSandboxStatus{
		Id: string(b.ID), Metadata: sandboxMetadata(c), State: sandboxState(b.State), CreatedAt: b.CreatedAt.UnixNano(),
		Network: &v1.PodSandboxNetworkStatus{}, Labels: c.Labels, Annotations: c.Annotations, RuntimeHandler: c.Handler,
		Linux: &v1.LinuxPodSandboxStatus{Namespaces: &v1.Namespace{Options: &v1.NamespaceOption{
			Network: node(c.HostNetwork, v1.NamespaceMode_POD), Ipc: node(c.HostIPC, v1.NamespaceMode_POD), Pid: node(c.HostPID, v1.NamespaceMode_CONTAINER),
			UsernsOptions: encodeUsers(c.Users),
		}}},
	}
	for i, ip := range b.IPs {
		if i == 0 {
			st.Network.Ip = ip.String()
		} else {
			st.Network.AdditionalIps = append(st.Network.AdditionalIps, &v1.PodIP{Ip: ip.String()})
		}
	}
	return st
}

func node(host bool, otherwise v1.NamespaceMode) v1.NamespaceMode {
	if host {
		return v1.NamespaceMode_NODE
	}
	return otherwise
}

// ListPodSandbox implements the service.
func (s *Server) ListPodSandbox(ctx context.Context, r *v1.ListPodSandboxRequest) (*v1.ListPodSandboxResponse, error) {
	return &v1.ListPodSandboxResponse{Items: s.sandboxes(r.Filter)}, nil
}

// StreamPodSandboxes implements the service.
func (s *Server) StreamPodSandboxes(r *v1.StreamPodSandboxesRequest, stream v1.RuntimeService_StreamPodSandboxesServer) error {
	return pieces(s.sandboxes(r.Filter), func(l []*v1.PodSandbox) error {
		return stream.Send(&v1.StreamPodSandboxesResponse{PodSandboxes: l})
	})
}

func (s *Server) sandboxes(f *v1.PodSandboxFilter) []*v1.PodSandbox {
	var list []*v1.PodSandbox
	for _, b := range s.o.Pods.Sandboxes() {
		state := sandboxState(b.State)
		if !named(string(b.ID), f.GetId()) || f.GetState() != nil && f.State.State != state || !labelled(b.Config.Labels, f.GetLabelSelector()) {
			continue
		}
		list = append(list, &v1.PodSandbox{
			Id: string(b.ID), Metadata: sandboxMetadata(&b.Config), State: state, CreatedAt: b.CreatedAt.UnixNano(),
			Labels: b.Config.Labels, Annotations: b.Config.Annotations, RuntimeHandler: b.Config.Handler,
		})
	}
	return list
}

// named tells whether an id is meant: crictl shortens them.
func named(id, want string) bool {
	return want == "" || id == want || len(want) >= 4 && len(want) < len(id) && id[:len(want)] == want
}

// labelled tells whether labels have all that a selector names.
func labelled(labels, selector map[string]string) bool {
	for k, v := range selector {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// perPiece is how many items one message of a streamed list has.
const perPiece = 64

func pieces[T any](list []T, send func([]T) error) error {
	for piece := range slices.Chunk(list, perPiece) {
		if err := send(piece); err != nil {
			return err
		}
	}
	return nil
}

// UpdatePodSandboxResources implements the service. The pod's group is the client's own,
// which it has changed already; there is nothing else that follows from it.
func (s *Server) UpdatePodSandboxResources(ctx context.Context, r *v1.UpdatePodSandboxResourcesRequest) (*v1.UpdatePodSandboxResourcesResponse, error) {
	if _, err := s.o.Pods.Sandbox(pod.ID(r.PodSandboxId)); err != nil {
		return nil, err
	}
	return &v1.UpdatePodSandboxResourcesResponse{}, nil
}

func clamp(v int64) int { return int(max(math.MinInt32, min(math.MaxInt32, v))) }
