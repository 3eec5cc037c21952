package container

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/runtime-spec/specs-go/features"

	"github.com/orlop-io/orlop/internal/platform/cgroup"
	"github.com/orlop-io/orlop/internal/platform/executor"
	"github.com/orlop-io/orlop/internal/platform/seccomp"
)

// Features says what containers may ask for (features.md): what this program can do, and
// of kernel's kinds, like namespaces and capabilities, what this kernel has.
func Features() (*features.Features, error) {
	h, err := cgroup.Open(cgroup.Options{Driver: cgroup.Cgroupfs})
	if err != nil {
		return nil, err
	}
	layout := h.Layout()
	_, rdma := layout.Controllers["rdma"]
	yes, no := true, false
	known, supported := seccomp.Flags()
	f := &features.Features{
		OCIVersionMin: "1.0.0",
		OCIVersionMax: specs.Version,
		Hooks:         []string{"prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"},
		MountOptions:  executor.MountOptions(),
		// By these who may write annotations decides what else happens on the host.
		PotentiallyUnsafeConfigAnnotations: []string{cgroup.PropertyAnnotation},
		Linux: &features.Linux{
			Namespaces:   executor.Namespaces(),
			Capabilities: executor.Capabilities(),
			Cgroup:       &features.Cgroup{V1: &yes, V2: &yes, Systemd: &yes, SystemdUser: &no, Rdma: &rdma},
			Seccomp: &features.Seccomp{Enabled: &yes, Actions: text(seccomp.Actions()), Operators: text(seccomp.Operators()), Archs: text(seccomp.Archs()),
				KnownFlags: text(known), SupportedFlags: text(supported)},
			Apparmor:        &features.Apparmor{Enabled: &yes},
			Selinux:         &features.Selinux{Enabled: &yes},
			IntelRdt:        &features.IntelRdt{Enabled: &yes, Schemata: &yes, Monitoring: &yes},
			MountExtensions: &features.MountExtensions{IDMap: &features.IDMap{Enabled: &yes}},
			NetDevices:      &features.NetDevices{Enabled: &yes},
			MemoryPolicy:    &features.MemoryPolicy{Modes: executor.MemoryPolicyModes(), Flags: executor.MemoryPolicyFlags()},
		},
	}
	return f, nil
}

func text[S ~string](list []S) (out []string) {
	for _, s := range list {
		out = append(out, string(s))
	}
	return out
}
