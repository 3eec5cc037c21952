package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// containerd is Debian's containerd with runc, through its CRI socket, its pods on the
// reference bridge plugin.
type containerd struct {
	criClient
	dir      string
	registry registry
	group    group
}

const containerdConfig = `version = 2
root = "%[1]s/root"
state = "/run/containerd"
[grpc]
  address = "%[2]s"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "%[3]s"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "%[1]s/cni"
  [plugins."io.containerd.grpc.v1.cri".registry.configs."%[4]s".tls]
    insecure_skip_verify = true
`

const containerdSocket = "/run/containerd.sock"

// bridgeConfig is a network of the reference plugins, as containerd and podman use them.
func bridgeConfig(name, bridge, data, subnet string) string {
	return fmt.Sprintf(`{"cniVersion":"0.4.0","name":%q,"plugins":[
 {"type":"bridge","bridge":%q,"isGateway":true,"ipMasq":true,
  "ipam":{"type":"host-local","dataDir":%q,"ranges":[[{"subnet":%q}]],"routes":[{"dst":"0.0.0.0/0"}]}},
 {"type":"portmap","capabilities":{"portMappings":true}}]}`, name, bridge, data, subnet)
}

func (c *containerd) Name() string { return "containerd" }
func (c *containerd) Group() group { return c.group }

func (c *containerd) Version() (string, error) {
	own, err := version("containerd", "--version")
	if err != nil {
		return "", err
	}
	runc, err := version("runc", "--version")
	if w := strings.Fields(own); len(w) > 2 {
		own = "containerd " + w[2]
	}
	return own + ", " + runc, err
}

func (c *containerd) Start(ctx context.Context) (err error) {
	if err := os.MkdirAll(c.dir+"/cni", 0o700); err != nil {
		return err
	}
	for file, text := range map[string]string{
		"config.toml":           fmt.Sprintf(containerdConfig, c.dir, containerdSocket, c.registry.pause(), c.registry.host),
		"cni/10-bench.conflist": bridgeConfig("containerd", "ctbr0", c.dir+"/ipam", "10.231.0.0/20"),
	} {
		if err := os.WriteFile(filepath.Join(c.dir, file), []byte(text), 0o600); err != nil {
			return err
		}
	}
	if c.group, err = newGroup("containerd"); err != nil {
		return err
	}
	log := c.dir + "/containerd.log"
	if _, err = c.group.spawn(log, "containerd", "--config", c.dir+"/config.toml"); err != nil {
		return err
	}
	c.image, c.logs, c.parent = c.registry.idle(), c.dir+"/logs", c.group.pods()
	return withLog(c.dial(ctx, containerdSocket), log)
}

// Drop removes the image and waits until its content is gone, so that the next
// pull is a whole one.
func (c *containerd) Drop(ctx context.Context, ref string) error {
	if err := c.criClient.Drop(ctx, ref); err != nil {
		return err
	}
	return until(ctx, func() error {
		out, err := output(exec.CommandContext(ctx, "ctr", "-a", containerdSocket, "-n", "k8s.io", "content", "ls", "-q"))
		if err == nil && strings.Count(out, "\n") > 6 { // the idle image's few blobs stay
			err = fmt.Errorf("content is still there")
		}
		return err
	})
}
