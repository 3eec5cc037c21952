package control

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	orlopv1 "github.com/orlop-io/orlop/api/orlop/v1"
	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/pod"
	"github.com/orlop-io/orlop/internal/server/control/manifest"
)

type configs struct{ *server }

// stamp returns nil for the zero time.
func stamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// List implements the service. It never sends values.
func (c configs) List(ctx context.Context, req *connect.Request[orlopv1.ListConfigsRequest]) (*connect.Response[orlopv1.ListConfigsResponse], error) {
	resp := &orlopv1.ListConfigsResponse{}
	for _, kind := range []string{manifest.KindConfigMap, manifest.KindSecret} {
		if k := req.Msg.GetKind(); k != "" && k != kind {
			continue
		}
		list, err := c.o.Pods.Configs(ctx, kind == manifest.KindSecret)
		if err != nil {
			return nil, err
		}
		slices.SortFunc(list, func(a, b pod.Config) int {
			return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
		})
		for _, one := range list {
			if ns := req.Msg.GetNamespace(); ns == "" || ns == one.Namespace {
				resp.Configs = append(resp.Configs, encodeConfig(&one, false))
			}
		}
	}
	return connect.NewResponse(resp), nil
}

// Get implements the service. A secret's values are sent only if they were asked for.
func (c configs) Get(ctx context.Context, req *connect.Request[orlopv1.GetConfigRequest]) (*connect.Response[orlopv1.GetConfigResponse], error) {
	kind := req.Msg.GetKind()
	if kind != manifest.KindConfigMap && kind != manifest.KindSecret {
		return nil, errs.New(errs.Invalid, "the kind %q is neither ConfigMap nor Secret", kind)
	}
	one, err := c.o.Pods.Config(ctx, kind == manifest.KindSecret, cmp.Or(req.Msg.GetNamespace(), "default"), req.Msg.GetName())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&orlopv1.GetConfigResponse{Config: encodeConfig(&one, !one.Secret || req.Msg.GetReveal())}), nil
}

func encodeConfig(c *pod.Config, values bool) *orlopv1.Config {
	out := &orlopv1.Config{
		Kind: manifest.KindConfigMap, Namespace: c.Namespace, Name: c.Name, Type: c.Type,
		Labels: c.Labels, Immutable: c.Immutable, CreatedAt: stamp(c.CreatedAt),
	}
	if c.Secret {
		out.Kind = manifest.KindSecret
	}
	for _, key := range slices.Sorted(maps.Keys(c.Data)) {
		it := &orlopv1.Config_Item{Key: key, SizeBytes: int64(len(c.Data[key]))}
		if values {
			it.Value = c.Data[key]
		}
		out.Items = append(out.Items, it)
	}
	return out
}
