package pod

import (
	"errors"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/namespace"
)

func TestFreeUsers(t *testing.T) {
	ids := func(uid, gid, size uint32) *namespace.IDMaps {
		return &namespace.IDMaps{UIDs: []specs.LinuxIDMapping{{HostID: uid, Size: size}}, GIDs: []specs.LinuxIDMapping{{HostID: gid, Size: size}}}
	}
	const first = 1 << 20
	for _, tt := range []struct {
		name  string
		taken []*namespace.IDMaps
		want  uint32 // 0: none is free
	}{
		{"the first", nil, first},
		{"the next", []*namespace.IDMaps{ids(first, first, 65536)}, first + 65536},
		{"a gap", []*namespace.IDMaps{ids(first+2*65536, first+2*65536, 65536), ids(first, first, 65536)}, first + 65536},
		{"a client's range that is not aligned", []*namespace.IDMaps{ids(first+65535, 0, 2)}, first + 2*65536},
		{"groups count too", []*namespace.IDMaps{ids(0, first, 1)}, first + 65536},
		{"all are taken", []*namespace.IDMaps{ids(first-10, first, 4*65536)}, 0},
	} {
		got, err := freeUsers(first, 3, tt.taken)
		if tt.want == 0 {
			if !errors.Is(err, errs.ResourceExhausted) {
				t.Errorf("%s: %+v, %v", tt.name, got, err)
			}
			continue
		}
		if err != nil || !got.Equal(ids(tt.want, tt.want, idsPerPod)) {
			t.Errorf("%s: %+v, %v; want from %d on", tt.name, got, err, tt.want)
		}
	}
}

func TestCheckIDs(t *testing.T) {
	users, err := freeUsers(1<<20, 1, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		id identity
		ok bool
	}{
		{identity{uid: 0, gid: 65535, groups: []uint32{7}}, true},
		{identity{uid: 65536}, false}, {identity{gid: 65536}, false}, {identity{groups: []uint32{1, 70000}}, false},
	} {
		if err := tt.id.checkIDs(users, "c"); (err == nil) != tt.ok || err != nil && !errors.Is(err, errs.Invalid) {
			t.Errorf("%+v: %v", tt.id, err)
		}
		if err := tt.id.checkIDs(nil, "c"); err != nil {
			t.Errorf("%+v without a namespace: %v", tt.id, err)
		}
	}
}
