package control

import (
	"cmp"
	"context"

	"connectrpc.com/connect"

	orlopv1 "github.com/orlop-io/orlop/api/orlop/v1"
	"github.com/orlop-io/orlop/internal/volume"
)

type volumes struct{ *server }

// List implements the service.
func (v volumes) List(ctx context.Context, req *connect.Request[orlopv1.ListVolumesRequest]) (*connect.Response[orlopv1.ListVolumesResponse], error) {
	list, err := v.o.Volumes.Claims(ctx)
	if err != nil {
		return nil, err
	}
	names := v.podNames(ctx)
	resp := &orlopv1.ListVolumesResponse{}
	for _, c := range list {
		if ns := req.Msg.GetNamespace(); ns == "" || ns == c.Namespace {
			resp.Volumes = append(resp.Volumes, encodeClaim(&c, names))
		}
	}
	return connect.NewResponse(resp), nil
}

// Get implements the service.
func (v volumes) Get(ctx context.Context, req *connect.Request[orlopv1.GetVolumeRequest]) (*connect.Response[orlopv1.GetVolumeResponse], error) {
	c, err := v.o.Volumes.Claim(ctx, cmp.Or(req.Msg.GetNamespace(), "default"), req.Msg.GetName())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&orlopv1.GetVolumeResponse{Volume: encodeClaim(&c, v.podNames(ctx))}), nil
}

func encodeClaim(c *volume.Claim, pods map[string]string) *orlopv1.Volume {
	out := &orlopv1.Volume{
		Namespace: c.Namespace, Name: c.Name, Id: string(c.Volume), Phase: string(c.Phase), SizeBytes: max(c.SizeBytes, c.CapacityBytes),
		UsedBytes: c.UsedBytes, AccessModes: c.AccessModes, Mode: string(c.Mode), Class: c.Class, Labels: c.Labels,
		CreatedAt: stamp(c.CreatedAt), Path: c.Path, ResizePending: c.ResizePending,
	}
	for _, h := range c.Holders {
		out.UsedBy = append(out.UsedBy, cmp.Or(pods[h], h))
	}
	return out
}
