package cgroup

import (
	"errors"
	"testing"

	"github.com/orlop-io/orlop/internal/base/errs"
)

func TestOCIPath(t *testing.T) {
	for path, want := range map[string]string{
		"/orlop/pod1/app":                                   "orlop-pod1.slice:orlop:pod1-app",
		"/orlop/podab-cd/0123":                              `orlop-podab\x2dcd.slice:orlop:podab\x2dcd-0123`,
		"/kubepods.slice/kubepods-pod1.slice/app":           "kubepods-pod1.slice:kubepods:pod1-app",
		"/kubepods.slice/kubepods-pod1.slice/cri-abc.scope": "kubepods-pod1.slice:cri:abc",
		"/orlop/pod1/app/below":                             "",
		"/orlop/pod1":                                       "",
		"/orlop.slice/plain.scope":                          "",
	} {
		u, err := translate(path)
		if err != nil {
			t.Fatal(err)
		}
		g := &Group{path: path, rel: u.path, unit: u}
		got, systemd, err := g.OCIPath()
		if got != want || !systemd || (want == "") != errors.Is(err, errs.Unsupported) {
			t.Errorf("%s: %q %t %v; want %q", path, got, systemd, err, want)
		}
	}
	g := &Group{path: "/orlop/pod1/app", rel: "/orlop/pod1/app"}
	if got, systemd, err := g.OCIPath(); got != g.path || systemd || err != nil {
		t.Errorf("%q %t %v", got, systemd, err)
	}
}
