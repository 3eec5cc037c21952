package control

import (
	"cmp"
	"context"
	"time"

	"connectrpc.com/connect"
	"k8s.io/apimachinery/pkg/labels"

	orlopv1 "github.com/orlop-io/orlop/api/orlop/v1"
	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/pod"
)

type pods struct{ *server }

// key names a pod; "" is the namespace default.
func key(namespace, name string) pod.Key {
	return pod.Key{Namespace: cmp.Or(namespace, "default"), Name: name}
}

// List implements the service.
func (p pods) List(ctx context.Context, req *connect.Request[orlopv1.ListPodsRequest]) (*connect.Response[orlopv1.ListPodsResponse], error) {
	selector, err := labels.Parse(req.Msg.GetSelector())
	if err != nil {
		return nil, errs.New(errs.Invalid, "the selector %q: %v; examples: app=web, app!=web, tier in (a,b), !old", req.Msg.GetSelector(), err)
	}
	list, err := p.o.Pods.List(ctx)
	if err != nil {
		return nil, err
	}
	resp := &orlopv1.ListPodsResponse{}
	for i := range list {
		if ns := req.Msg.Namespace; ns != "" && list[i].Spec.Namespace != ns || !selector.Matches(labels.Set(list[i].Spec.Labels)) {
			continue
		}
		m, err := encodePod(&list[i], req.Msg.GetWithObject())
		if err != nil {
			return nil, err
		}
		resp.Pods = append(resp.Pods, m)
	}
	return connect.NewResponse(resp), nil
}

// Get implements the service.
func (p pods) Get(ctx context.Context, req *connect.Request[orlopv1.GetPodRequest]) (*connect.Response[orlopv1.GetPodResponse], error) {
	one, err := p.o.Pods.Get(ctx, key(req.Msg.Namespace, req.Msg.Name))
	if err != nil {
		return nil, err
	}
	m, err := encodePod(&one, req.Msg.GetWithObject())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&orlopv1.GetPodResponse{Pod: m}), nil
}

// Events implements the service.
func (p pods) Events(ctx context.Context, req *connect.Request[orlopv1.EventsRequest], out *connect.ServerStream[orlopv1.Event]) error {
	f := pod.EventFilter{Namespace: req.Msg.Namespace, Pod: req.Msg.Pod, Watch: req.Msg.Watch}
	if req.Msg.Since != nil {
		f.Since = req.Msg.Since.AsTime()
	}
	if err := out.Send(nil); err != nil { // headers: who watches knows that it does, also where nothing happens
		return err
	}
	err := p.o.Pods.Events(ctx, f, func(e pod.Event) error {
		kind := "Normal"
		if e.Warning {
			kind = "Warning"
		}
		return out.Send(&orlopv1.Event{
			At: stamp(e.At), Type: kind, Reason: e.Reason, Message: e.Message, Namespace: e.Pod.Namespace, Pod: e.Pod.Name,
			Container: e.Container, PodId: string(e.PodID), Count: uint32(e.Count),
		})
	})
	if ctx.Err() != nil {
		return nil // the client has had enough
	}
	return err
}

// Stats implements the service.
func (p pods) Stats(ctx context.Context, req *connect.Request[orlopv1.StatsRequest]) (*connect.Response[orlopv1.StatsResponse], error) {
	if name := req.Msg.GetPod(); name != "" {
		if _, err := p.o.Pods.Get(ctx, key(req.Msg.GetNamespace(), name)); err != nil {
			return nil, err
		}
	}
	list, err := p.o.Pods.Stats(ctx, req.Msg.GetNamespace(), req.Msg.GetPod())
	if err != nil {
		return nil, err
	}
	resp := &orlopv1.StatsResponse{}
	for _, s := range list {
		total := &orlopv1.Usage{At: stamp(s.At)}
		m := &orlopv1.PodStats{Namespace: s.Pod.Namespace, Pod: s.Pod.Name, At: stamp(s.At), Total: total,
			NetworkReceiveBytes: s.ReceiveBytes, NetworkTransmitBytes: s.TransmitBytes}
		for _, c := range s.Containers {
			u := &orlopv1.Usage{
				At: stamp(s.At), CpuNanoseconds: uint64(c.CPU / time.Nanosecond), MemoryBytes: c.MemoryBytes, MemoryLimitBytes: c.MemoryLimitBytes,
				Processes: c.Processes, ReadBytes: c.ReadBytes, WriteBytes: c.WriteBytes, MemoryUsageBytes: c.MemoryUsageBytes,
			}
			total.CpuNanoseconds += u.CpuNanoseconds
			total.MemoryBytes += u.MemoryBytes
			total.MemoryLimitBytes += u.MemoryLimitBytes
			total.Processes += u.Processes
			total.ReadBytes += u.ReadBytes
			total.WriteBytes += u.WriteBytes
			total.MemoryUsageBytes += u.MemoryUsageBytes
			m.Containers = append(m.Containers, &orlopv1.ContainerStats{Name: c.Name, Usage: u})
		}
		for _, c := range s.Containers {
			if c.MemoryLimitBytes == 0 { // one without a limit: none for the pod
				total.MemoryLimitBytes = 0
			}
		}
		resp.Pods = append(resp.Pods, m)
	}
	return connect.NewResponse(resp), nil
}

// podNames returns namespace/name of every pod by its id.
func (s *server) podNames(ctx context.Context) map[string]string {
	names := make(map[string]string)
	if list, err := s.o.Pods.List(ctx); err == nil {
		for _, p := range list {
			names[string(p.ID)] = p.Spec.Key.String()
		}
	}
	return names
}
