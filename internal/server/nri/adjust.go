package nri

import (
	"fmt"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/runtime-tools/generate"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// Adjust implements pod.Hooks. It changes a specification by the library's own rules, so
// that plugins find here what they find with other runtimes.
func (s *Server) Adjust(spec *specs.Spec, adjustment []byte) error {
	if len(adjustment) == 0 {
		return nil
	}
	var a api.ContainerAdjustment
	if err := proto.Unmarshal(adjustment, &a); err != nil {
		return errs.New(errs.Corrupt, "adjustment by plugins: %w", err)
	}
	if l := a.GetLinux(); l.GetCgroupsPath() != "" {
		return errs.New(errs.Unsupported, "a plugin sets the container's cgroup path, which is the runtime's; adjust its resources instead")
	}
	// Hooks of a plugin run as root on the host, and so does whoever may connect here.
	err := generate.SpecGenerator(newEditor(spec), generate.WithCDIDeviceInjector(s.o.Pods.InjectDevices), generate.WithBlockIOResolver(func(class string) (*specs.LinuxBlockIO, error) {
		return nil, errs.New(errs.Unsupported, "a plugin asks for block I/O class %q; there are none here", class)
	}), generate.WithRdtResolver(func(class string) (*specs.LinuxIntelRdt, error) {
		return nil, errs.New(errs.Unsupported, "a plugin asks for RDT class %q; there are none here", class)
	})).Adjust(&a)
	if err != nil {
		return fmt.Errorf("adjust the specification: %w", err)
	}
	return nil
}
