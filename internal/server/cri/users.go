package cri

import (
	"math"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/namespace"
)

// userMappings translates what a user namespace maps; nil is the host's. The CRI has two
// modes, and one range of each kind of id.
func userMappings(u *v1.UserNamespace) (*namespace.IDMaps, error) {
	if u == nil {
		return nil, nil
	}
	switch u.Mode {
	case v1.NamespaceMode_NODE:
		if len(u.Uids)+len(u.Gids) > 0 {
			return nil, errs.New(errs.Invalid, "user namespace of mode NODE: it cannot have mappings")
		}
		return nil, nil
	case v1.NamespaceMode_POD:
	default:
		return nil, errs.New(errs.Invalid, "user namespace of mode %s: it is POD or NODE", u.Mode)
	}
	return idMaps(u.Uids, u.Gids)
}

func idMaps(uids, gids []*v1.IDMapping) (*namespace.IDMaps, error) {
	one := func(name string, list []*v1.IDMapping) ([]specs.LinuxIDMapping, error) {
		if len(list) != 1 {
			return nil, errs.New(errs.Invalid, "user namespace: %s has %d ranges; exactly one can be mapped", name, len(list))
		}
		m := list[0]
		switch {
		case m.ContainerId != 0:
			return nil, errs.New(errs.Invalid, "user namespace: the range of %s begins with %d; id 0 must be mapped", name, m.ContainerId)
		case m.Length == 0 || uint64(m.HostId)+uint64(m.Length) > math.MaxUint32:
			return nil, errs.New(errs.Invalid, "user namespace: the range of %s, %d ids from %d, is empty or too long", name, m.Length, m.HostId)
		}
		return []specs.LinuxIDMapping{{HostID: m.HostId, Size: m.Length}}, nil
	}
	var out namespace.IDMaps
	var err error
	if out.UIDs, err = one("uids", uids); err != nil {
		return nil, err
	}
	out.GIDs, err = one("gids", gids)
	return &out, err
}

func encodeUsers(m *namespace.IDMaps) *v1.UserNamespace {
	if m == nil {
		return &v1.UserNamespace{Mode: v1.NamespaceMode_NODE}
	}
	list := func(l []specs.LinuxIDMapping) (out []*v1.IDMapping) {
		for _, r := range l {
			out = append(out, &v1.IDMapping{ContainerId: r.ContainerID, HostId: r.HostID, Length: r.Size})
		}
		return out
	}
	return &v1.UserNamespace{Mode: v1.NamespaceMode_POD, Uids: list(m.UIDs), Gids: list(m.GIDs)}
}
