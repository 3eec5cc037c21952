package cri

import (
	"context"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop-io/orlop/internal/base/trace"
	"github.com/orlop-io/orlop/internal/pod"
	"github.com/orlop-io/orlop/internal/server/rpc"
)

// acts are the methods that begin a trace where the client has begun none: those that
// change something. ExecSync is not one of them, since probes are made of it.
var acts = map[string]bool{
	"RunPodSandbox": true, "StopPodSandbox": true, "RemovePodSandbox": true, "UpdatePodSandboxResources": true,
	"CreateContainer": true, "StartContainer": true, "StopContainer": true, "RemoveContainer": true, "UpdateContainerResources": true,
	"ReopenContainerLog": true, "CheckpointContainer": true, "CheckpointPod": true, "RestorePod": true, "Exec": true, "Attach": true, "PortForward": true,
	"UpdateRuntimeConfig": true, "PullImage": true, "RemoveImage": true,
}

// endless are the streams that last as long as the client wants; how long that is says nothing.
var endless = map[string]bool{"GetContainerEvents": true}

// begin begins to watch a request, whose span kubelet's metadata name the parent of.
func (s *Server) begin(ctx context.Context, method string) (context.Context, *rpc.Call) {
	r := rpc.Request{Server: "cri", System: "grpc", Method: strings.TrimPrefix(method, "/"), Looks: !acts[method[strings.LastIndexByte(method, '/')+1:]]}
	if md, ok := metadata.FromIncomingContext(ctx); ok {
		if v := md.Get(trace.TraceparentField); len(v) == 1 {
			r.Parent = trace.Parent{Traceparent: v[0], State: strings.Join(md.Get(trace.TracestateField), ",")}
		}
	}
	return s.o.Watch.Begin(ctx, r)
}

// watchUnary measures and traces a request.
func (s *Server) watchUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	ctx, call := s.begin(ctx, info.FullMethod)
	if call.Traced() {
		s.describe(call, req)
	}
	answer, err := handle(ctx, req)
	if call.Traced() && err == nil {
		s.describe(call, answer)
	}
	call.End(status.Code(err).String(), err)
	return answer, err
}

func (s *Server) watchStream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	if endless[info.FullMethod[strings.LastIndexByte(info.FullMethod, '/')+1:]] {
		return handle(srv, stream)
	}
	ctx, call := s.begin(stream.Context(), info.FullMethod)
	err := handle(srv, streamWithin{stream, ctx})
	call.End(status.Code(err).String(), err)
	return err
}

// streamWithin is a stream with another context.
type streamWithin struct {
	grpc.ServerStream
	ctx context.Context
}

func (s streamWithin) Context() context.Context { return s.ctx }

// describe says what a message is about, as far as it says so itself: every message of the
// protocol names its objects alike. Keys are those of OpenTelemetry's conventions.
func (s *Server) describe(call *rpc.Call, message any) {
	sandbox := func(c *v1.PodSandboxConfig) {
		call.Set("k8s.namespace.name", c.GetMetadata().GetNamespace())
		call.Set("k8s.pod.name", c.GetMetadata().GetName())
		call.Set("k8s.pod.uid", c.GetMetadata().GetUid())
	}
	switch m := message.(type) {
	case interface{ GetConfig() *v1.PodSandboxConfig }:
		sandbox(m.GetConfig())
	case interface{ GetConfig() *v1.ContainerConfig }:
		call.Set("k8s.container.name", m.GetConfig().GetMetadata().GetName())
		call.Set("container.image.name", m.GetConfig().GetImage().GetImage())
	}
	if m, ok := message.(interface{ GetSandboxConfig() *v1.PodSandboxConfig }); ok {
		sandbox(m.GetSandboxConfig())
	}
	if m, ok := message.(interface{ GetImage() *v1.ImageSpec }); ok {
		call.Set("container.image.name", m.GetImage().GetImage())
	}
	if m, ok := message.(interface{ GetPodSandboxId() string }); ok {
		call.Set("orlop.sandbox.id", m.GetPodSandboxId())
		s.describePod(call, pod.ID(m.GetPodSandboxId()))
	}
	if m, ok := message.(interface{ GetContainerId() string }); ok {
		call.Set("container.id", m.GetContainerId())
		if c, err := s.o.Pods.Container(pod.ContainerID(m.GetContainerId())); err == nil {
			call.Set("k8s.container.name", c.Config.Name)
			s.describePod(call, c.Sandbox)
		}
	}
}

func (s *Server) describePod(call *rpc.Call, id pod.ID) {
	if box, err := s.o.Pods.Sandbox(id); err == nil {
		call.Set("k8s.namespace.name", box.Config.Namespace)
		call.Set("k8s.pod.name", box.Config.Name)
		call.Set("k8s.pod.uid", box.Config.UID)
	}
}
