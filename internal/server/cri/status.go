package cri

import (
	"context"

	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop-io/orlop/internal/pod"
)

// Version implements the service.
func (s *Server) Version(context.Context, *v1.VersionRequest) (*v1.VersionResponse, error) {
	return &v1.VersionResponse{Version: "0.1.0", RuntimeName: "orlop", RuntimeVersion: s.o.Version, RuntimeApiVersion: "v1"}, nil
}

// Status implements the service.
func (s *Server) Status(ctx context.Context, r *v1.StatusRequest) (*v1.StatusResponse, error) {
	answer := &v1.StatusResponse{
		Status: &v1.RuntimeStatus{Conditions: []*v1.RuntimeCondition{
			{Type: "RuntimeReady", Status: true}, {Type: "NetworkReady", Status: true},
		}},
		Features: &v1.RuntimeFeatures{SupplementalGroupsPolicy: true},
	}
	for i, h := range s.o.Pods.Handlers(ctx) {
		f := &v1.RuntimeHandlerFeatures{RecursiveReadOnlyMounts: h.RecursiveReadOnly, UserNamespaces: h.UserNamespaces}
		if i == 0 { // who says nothing gets the default
			answer.RuntimeHandlers = append(answer.RuntimeHandlers, &v1.RuntimeHandler{Features: f})
		}
		answer.RuntimeHandlers = append(answer.RuntimeHandlers, &v1.RuntimeHandler{Name: h.Name, Features: f})
	}
	if r.Verbose {
		answer.Info = info(map[string]any{"version": s.o.Version, "imageDirectory": s.o.ImageDir, "streaming": s.listener.Addr().String()})
	}
	return answer, nil
}

// RuntimeConfig implements the service.
func (s *Server) RuntimeConfig(context.Context, *v1.RuntimeConfigRequest) (*v1.RuntimeConfigResponse, error) {
	driver := v1.CgroupDriver_CGROUPFS
	if s.o.SystemdCgroups {
		driver = v1.CgroupDriver_SYSTEMD
	}
	return &v1.RuntimeConfigResponse{Linux: &v1.LinuxRuntimeConfiguration{CgroupDriver: driver}}, nil
}

// UpdateRuntimeConfig implements the service. Pods' addresses come from the node's own
// block, whatever the orchestrator proposes.
func (s *Server) UpdateRuntimeConfig(context.Context, *v1.UpdateRuntimeConfigRequest) (*v1.UpdateRuntimeConfigResponse, error) {
	return &v1.UpdateRuntimeConfigResponse{}, nil
}

// GetContainerEvents implements the service.
func (s *Server) GetContainerEvents(_ *v1.GetEventsRequest, stream v1.RuntimeService_GetContainerEventsServer) error {
	ctx := stream.Context()
	types := map[pod.DrivenEventType]v1.ContainerEventType{
		pod.EventCreated: v1.ContainerEventType_CONTAINER_CREATED_EVENT, pod.EventStarted: v1.ContainerEventType_CONTAINER_STARTED_EVENT,
		pod.EventStopped: v1.ContainerEventType_CONTAINER_STOPPED_EVENT, pod.EventDeleted: v1.ContainerEventType_CONTAINER_DELETED_EVENT,
	}
	return s.o.Pods.Watch(ctx, func(e pod.DrivenEvent) error {
		answer := &v1.ContainerEventResponse{ContainerId: string(e.Container), ContainerEventType: types[e.Type], CreatedAt: e.At.UnixNano()}
		if e.Container == "" {
			answer.ContainerId = string(e.Sandbox)
		}
		if b, err := s.o.Pods.Sandbox(e.Sandbox); err == nil {
			answer.PodSandboxStatus = sandboxStatus(b)
		}
		for _, c := range s.o.Pods.Containers(e.Sandbox) {
			answer.ContainersStatuses = append(answer.ContainersStatuses, s.containerStatus(ctx, &c))
		}
		return stream.Send(answer)
	})
}
