package container

import (
	"errors"
	"fmt"
	"os/exec"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/checkpoint"
	"github.com/orlop-io/orlop/internal/platform/namespace"
)

// unlockNetwork takes away what keeps packets from the network namespace that a container
// joins. CRIU drops all of them while it saves or restores (by a chain of iptables that has its name), counts on the
// namespace to end with what it has saved, and when it restores into the same one adds a second lock, which it then cannot
// take away. But a namespace that is joined goes on, with others in it.
func unlockNetwork(spec *specs.Spec) error {
	path, err := checkpoint.Joined(spec, specs.NetworkNamespace, "net")
	if err != nil || path == "" {
		return err
	}
	err = namespace.Do(path, func() error {
		var failed error
		for _, tool := range []string{"iptables", "ip6tables"} {
			if _, err := exec.LookPath(tool); err != nil {
				continue // then CRIU has not made it either
			}
			run := func(args ...string) error { return exec.Command(tool, append([]string{"-w"}, args...)...).Run() }
			if run("-S", "CRIU") != nil {
				continue
			}
			for _, chain := range []string{"INPUT", "OUTPUT"} {
				for run("-D", chain, "-j", "CRIU") == nil {
				}
			}
			failed = errors.Join(failed, run("-F", "CRIU"), run("-X", "CRIU"))
		}
		return failed
	})
	if err != nil && !errors.Is(err, errs.NotFound) {
		return fmt.Errorf("let packets into network namespace %s again: %w", path, err)
	}
	return nil
}
