package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// containerd is Debian's containerd with runc, through its CRI socket, its pods on the
// reference bridge plugin.
type containerd struct {
	dir      string
	registry registry
	group    group
	rt       cri.RuntimeServiceClient
	img      cri.ImageServiceClient
	mu       sync.Mutex
	pods     map[string]string // name → sandbox, guarded by mu
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
	c.pods = make(map[string]string)
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
	conn, err := grpc.NewClient("unix://"+containerdSocket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	c.rt, c.img = cri.NewRuntimeServiceClient(conn), cri.NewImageServiceClient(conn)
	return withLog(until(ctx, func() error {
		st, err := c.rt.Status(ctx, &cri.StatusRequest{})
		if err != nil {
			return err
		}
		for _, cond := range st.Status.Conditions {
			if !cond.Status {
				return fmt.Errorf("%s: %s", cond.Type, cond.Message)
			}
		}
		return nil
	}), log)
}

func (c *containerd) StartPod(ctx context.Context, name string) error {
	pc := &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: name, Namespace: "bench", Uid: name},
		Hostname:     name,
		LogDirectory: filepath.Join(c.dir, "logs", name),
		Linux:        &cri.LinuxPodSandboxConfig{CgroupParent: c.group.pods()},
	}
	if err := os.MkdirAll(pc.LogDirectory, 0o700); err != nil {
		return err
	}
	sb, err := c.rt.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: pc})
	if err != nil {
		return fmt.Errorf("RunPodSandbox: %w", err)
	}
	c.mu.Lock()
	c.pods[name] = sb.PodSandboxId
	c.mu.Unlock()
	ct, err := c.rt.CreateContainer(ctx, &cri.CreateContainerRequest{
		PodSandboxId: sb.PodSandboxId, SandboxConfig: pc,
		Config: &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: "idle"},
			Image:    &cri.ImageSpec{Image: c.registry.idle()},
			LogPath:  "idle.log",
			Linux: &cri.LinuxContainerConfig{
				Resources: &cri.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuShares: 100},
				SecurityContext: &cri.LinuxContainerSecurityContext{
					Seccomp: &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault},
				},
			},
		},
	})
	if err != nil {
		return fmt.Errorf("CreateContainer: %w", err)
	}
	if _, err := c.rt.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: ct.ContainerId}); err != nil {
		return fmt.Errorf("StartContainer: %w", err)
	}
	return nil
}

func (c *containerd) RemovePod(ctx context.Context, name string) error {
	c.mu.Lock()
	id := c.pods[name]
	delete(c.pods, name)
	c.mu.Unlock()
	l, err := c.rt.ListContainers(ctx, &cri.ListContainersRequest{Filter: &cri.ContainerFilter{PodSandboxId: id}})
	if err != nil {
		return err
	}
	for _, ct := range l.Containers {
		if _, err := c.rt.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: ct.Id, Timeout: 0}); err != nil {
			return err
		}
	}
	if _, err := c.rt.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
		return err
	}
	_, err = c.rt.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: id})
	return err
}

func (c *containerd) Pull(ctx context.Context, ref string) error {
	_, err := c.img.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}})
	return err
}

// Drop removes the image and waits until its content is gone, so that the next
// pull is a whole one.
func (c *containerd) Drop(ctx context.Context, ref string) error {
	if _, err := c.img.RemoveImage(ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: ref}}); err != nil {
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
