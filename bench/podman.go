package main

import (
	"context"
	"os"
	"path/filepath"
)

// podman is Debian's podman with runc and conmon, a container with a network namespace of
// its own on the reference bridge plugin as its pod: cheaper than a podman pod, which has
// an infra container besides.
type podman struct {
	dir      string
	registry registry
	group    group
}

// podmanConfig goes by CONTAINERS_CONF, which replaces every other configuration.
const podmanConfig = `[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "none"
helper_binaries_dir = ["/usr/libexec/podman", "/usr/lib/podman"]
[containers]
log_driver = "k8s-file"
[network]
network_backend = "cni"
cni_plugin_dirs = ["/usr/lib/cni"]
default_network = "podman"
`

func (p *podman) Name() string             { return "podman" }
func (p *podman) Version() (string, error) { return version("podman", "--version") }
func (p *podman) Group() group             { return p.group }

func (p *podman) podman(ctx context.Context, args ...string) error {
	return p.group.run(ctx, "podman", append([]string{"--root", p.dir + "/root", "--runroot", "/run/podman", "--tmpdir", "/run/podman-tmp",
		"--storage-driver", "overlay", "--network-config-dir", p.dir + "/net"}, args...)...)
}

func (p *podman) Start(context.Context) (err error) {
	if p.group, err = newGroup("podman"); err != nil {
		return err
	}
	if err := os.MkdirAll(p.dir+"/net", 0o700); err != nil {
		return err
	}
	for file, text := range map[string]string{
		"containers.conf":     podmanConfig,
		"net/podman.conflist": bridgeConfig("podman", "pmbr0", p.dir+"/ipam", "10.233.0.0/20"),
	} {
		if err := os.WriteFile(filepath.Join(p.dir, file), []byte(text), 0o600); err != nil {
			return err
		}
	}
	return os.Setenv("CONTAINERS_CONF", p.dir+"/containers.conf")
}

func (p *podman) StartPod(ctx context.Context, name string) error {
	return p.podman(ctx, "run", "--detach", "--name", name, "--hostname", name, "--network", "podman", "--memory", "64m", "--cpu-shares", "102",
		"--cgroup-parent", p.group.pods(), "--tls-verify=false", p.registry.idle())
}

func (p *podman) RemovePod(ctx context.Context, name string) error {
	return p.podman(ctx, "rm", "--force", "--time", "0", name)
}

func (p *podman) Pull(ctx context.Context, ref string) error {
	return p.podman(ctx, "pull", "--quiet", "--tls-verify=false", ref)
}

func (p *podman) Drop(ctx context.Context, ref string) error {
	return p.podman(ctx, "rmi", "--force", ref)
}
