// Package nri serves the Node Resource Interface: plugins of the node connect to its
// socket, are told of the pods that a client drives, and may adjust or refuse their
// containers. It translates to pod.Hooks (which has the rules) and back; the protocol is
// the work of github.com/containerd/nri.
package nri

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"
	nrilog "github.com/containerd/nri/pkg/log"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/trace"
	"github.com/orlop-io/orlop/internal/pod"
)

// Options are what a Server serves.
type Options struct {
	Pods    *pod.Driven
	Version string
	// Socket is where plugins connect.
	Socket string
	// Timeout bounds what a plugin takes for a request; one that takes longer is
	// disconnected, and the request goes on without it.
	Timeout time.Duration
	Log     *slog.Logger
}

// Server has the plugins. It implements pod.Hooks.
type Server struct {
	o       Options
	plugins *adaptation.Adaptation
	late    sync.WaitGroup // updates that new plugins ask for
}

// New returns a Server that is not started. Plugins that the runtime would start itself
// are not: who may connect to the socket starts them.
func New(o Options) (*Server, error) {
	s := &Server{o: o}
	nrilog.Set(logger{o.Log})
	adaptation.SetPluginRequestTimeout(o.Timeout)
	var err error
	s.plugins, err = adaptation.New("orlop", o.Version, s.synchronize, s.unsolicited, adaptation.WithSocketPath(o.Socket), adaptation.WithPluginPath("/nonexistent"))
	if err != nil {
		return nil, fmt.Errorf("plugins: %w", err)
	}
	return s, nil
}

// Start listens for plugins. What there is must be known by then.
func (s *Server) Start() error {
	if err := s.plugins.Start(); err != nil {
		return fmt.Errorf("plugins' socket %s: %w", s.o.Socket, err)
	}
	return nil
}

// Stop disconnects the plugins.
func (s *Server) Stop() {
	s.plugins.Stop()
	s.late.Wait()
}

// Hold implements pod.Hooks.
func (s *Server) Hold() func() { return s.plugins.BlockPluginSync().Unblock }

// synchronize tells a new plugin of what there is. Nothing changes meanwhile; what the
// plugin asks for is done afterwards, because it may have to wait for what is held up.
func (s *Server) synchronize(ctx context.Context, tell adaptation.SyncCB) error {
	pods, containers := s.o.Pods.Hooked(ctx)
	updates, err := tell(ctx, each(pods, encodePod), each(containers, encodeContainer))
	if err != nil {
		return err
	}
	s.late.Go(func() {
		if err := s.o.Pods.Apply(context.WithoutCancel(ctx), decodeUpdates(updates)); err != nil {
			s.o.Log.Error("what a new plugin asked for failed", "error", err)
		}
	})
	return nil
}

// unsolicited makes updates that a plugin asks for by itself, and returns those that failed.
func (s *Server) unsolicited(ctx context.Context, list []*api.ContainerUpdate) (failed []*api.ContainerUpdate, err error) {
	for _, u := range list {
		one := decodeUpdates([]*api.ContainerUpdate{u})
		one[0].IgnoreFailure = false
		if err := s.o.Pods.Apply(ctx, one); err != nil {
			s.o.Log.Warn("an update that a plugin asked for failed", "container", u.ContainerId, "error", err)
			failed = append(failed, u)
		}
	}
	return failed, nil
}

// Pod implements pod.Hooks.
func (s *Server) Pod(ctx context.Context, h pod.HookEvent, p pod.HookedPod) (err error) {
	ctx, span := trace.Start(ctx, "plugins "+string(h)+" pod")
	defer span.End(&err)
	box := encodePod(p)
	switch h {
	case pod.HookRun:
		err = s.plugins.RunPodSandbox(ctx, &api.RunPodSandboxRequest{Pod: box})
	case pod.HookStop:
		err = s.plugins.StopPodSandbox(ctx, &api.StopPodSandboxRequest{Pod: box})
	case pod.HookRemove:
		err = s.plugins.RemovePodSandbox(ctx, &api.RemovePodSandboxRequest{Pod: box})
	default:
		return errs.New(errs.Internal, "hook %s is none of a pod", h)
	}
	return refused(err)
}

// Create implements pod.Hooks.
func (s *Server) Create(ctx context.Context, p pod.HookedPod, c pod.HookedContainer) (_ []byte, _ []pod.LimitsUpdate, err error) {
	ctx, span := trace.Start(ctx, "plugins create container")
	defer span.End(&err)
	r, err := s.plugins.CreateContainer(ctx, &api.CreateContainerRequest{Pod: encodePod(p), Container: encodeContainer(c)})
	if err != nil {
		return nil, nil, refused(err)
	}
	for _, e := range r.GetEvict() {
		s.o.Log.Warn("a plugin asks for the eviction of a container, which is the client's to decide", "container", e.GetContainerId(), "reason", e.GetReason())
	}
	updates := decodeUpdates(r.GetUpdate())
	if r.GetAdjust() == nil || proto.Size(r.Adjust) == 0 {
		return nil, updates, nil
	}
	adjustment, err := proto.Marshal(r.Adjust)
	return adjustment, updates, err
}

// Container implements pod.Hooks.
func (s *Server) Container(ctx context.Context, h pod.HookEvent, p pod.HookedPod, c pod.HookedContainer) (_ []pod.LimitsUpdate, err error) {
	ctx, span := trace.Start(ctx, "plugins "+string(h)+" container")
	defer span.End(&err)
	box, one := encodePod(p), encodeContainer(c)
	switch h {
	case pod.HookPostCreate:
		err = s.plugins.PostCreateContainer(ctx, &api.PostCreateContainerRequest{Pod: box, Container: one})
	case pod.HookStart:
		err = s.plugins.StartContainer(ctx, &api.StartContainerRequest{Pod: box, Container: one})
	case pod.HookPostStart:
		err = s.plugins.PostStartContainer(ctx, &api.PostStartContainerRequest{Pod: box, Container: one})
	case pod.HookPostUpdate:
		err = s.plugins.PostUpdateContainer(ctx, &api.PostUpdateContainerRequest{Pod: box, Container: one})
	case pod.HookStop:
		var r *api.StopContainerResponse
		r, err = s.plugins.StopContainer(ctx, &api.StopContainerRequest{Pod: box, Container: one})
		return decodeUpdates(r.GetUpdate()), refused(err)
	case pod.HookRemove:
		err = s.plugins.RemoveContainer(ctx, &api.RemoveContainerRequest{Pod: box, Container: one})
	default:
		return nil, errs.New(errs.Internal, "hook %s is none of a container", h)
	}
	return nil, refused(err)
}

// Update implements pod.Hooks.
func (s *Server) Update(ctx context.Context, p pod.HookedPod, c pod.HookedContainer, limits *specs.LinuxResources) (_ *specs.LinuxResources, _ []pod.LimitsUpdate, err error) {
	ctx, span := trace.Start(ctx, "plugins update container")
	defer span.End(&err)
	r, err := s.plugins.UpdateContainer(ctx, &api.UpdateContainerRequest{
		Pod: encodePod(p), Container: encodeContainer(c), LinuxResources: api.FromOCILinuxResources(limits, nil),
	})
	if err != nil {
		return nil, nil, refused(err)
	}
	var others []pod.LimitsUpdate
	for _, u := range decodeUpdates(r.GetUpdate()) {
		if u.Container == c.ID {
			limits = u.Limits
		} else {
			others = append(others, u)
		}
	}
	return limits, others, nil
}

// refused is what a plugin's error is to the client of a request.
func refused(err error) error {
	if err == nil {
		return nil
	}
	// The code in it is the plugin's, not for the client.
	return errs.New(errs.FailedPrecondition, "%s", status.Convert(err).Message())
}

// logger writes the library's log; what plugins do all the time is for debugging.
type logger struct{ log *slog.Logger }

func (l logger) Debugf(_ context.Context, f string, a ...any) { l.log.Debug(fmt.Sprintf(f, a...)) }
func (l logger) Infof(_ context.Context, f string, a ...any)  { l.log.Debug(fmt.Sprintf(f, a...)) }
func (l logger) Warnf(_ context.Context, f string, a ...any)  { l.log.Warn(fmt.Sprintf(f, a...)) }
func (l logger) Errorf(_ context.Context, f string, a ...any) { l.log.Error(fmt.Sprintf(f, a...)) }
