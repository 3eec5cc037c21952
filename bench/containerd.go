package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// containerd is Debian's containerd with runc, through its CRI socket, on a
// configuration, directories and a bridge of its own.
type containerd struct {
	dir, registry string
	group         string
	leave         func()
	cmd           *exec.Cmd
	conn          *grpc.ClientConn
	rt            cri.RuntimeServiceClient
	img           cri.ImageServiceClient
	mu            sync.Mutex
	pods          map[string]string // name → sandbox, guarded by mu
}

const containerdConfig = `version = 2
root = "%[1]s/root"
state = "%[1]s/state"
[grpc]
  address = "%[1]s/c.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "%[2]s/bench/pause:1"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "%[1]s/cni"
`

const bridgeConfig = `{"cniVersion":"0.4.0","name":"orlbench","plugins":[
 {"type":"bridge","bridge":"orlbench0","isGateway":true,"ipMasq":true,
  "ipam":{"type":"host-local","dataDir":"%s/ipam","ranges":[[{"subnet":"10.231.0.0/20"}]],"routes":[{"dst":"0.0.0.0/0"}]}},
 {"type":"portmap","capabilities":{"portMappings":true}}]}`

func (c *containerd) Name() string  { return "containerd + runc" }
func (c *containerd) Group() string { return c.group }

func (c *containerd) Start(ctx context.Context) error {
	c.pods = map[string]string{}
	if err := os.MkdirAll(c.dir+"/cni", 0o700); err != nil {
		return err
	}
	for file, text := range map[string]string{
		"config.toml":              fmt.Sprintf(containerdConfig, c.dir, c.registry),
		"cni/10-orlbench.conflist": fmt.Sprintf(bridgeConfig, c.dir),
	} {
		if err := os.WriteFile(filepath.Join(c.dir, file), []byte(text), 0o600); err != nil {
			return err
		}
	}
	group, enter, leave, err := measureGroup("orlbench-containerd")
	if err != nil {
		return err
	}
	c.group, c.leave = group, leave
	if c.cmd, err = spawn(enter, c.dir+"/containerd.log", "containerd", "--config", c.dir+"/config.toml"); err != nil {
		return err
	}
	if c.conn, err = grpc.NewClient("unix://"+c.dir+"/c.sock", grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
		return err
	}
	c.rt, c.img = cri.NewRuntimeServiceClient(c.conn), cri.NewImageServiceClient(c.conn)
	err = until(ctx, func() error {
		st, err := c.rt.Status(ctx, &cri.StatusRequest{})
		if err != nil {
			return err
		}
		for _, cond := range st.Status.Conditions {
			if !cond.Status {
				return fmt.Errorf("containerd: %s: %s", cond.Type, cond.Message)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return c.Pull(ctx, c.registry+"/bench/idle:1")
}

func (c *containerd) Stop() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if c.rt != nil {
		if l, err := c.rt.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{}); err == nil {
			for _, s := range l.Items {
				c.rt.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: s.Id})
				c.rt.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: s.Id})
			}
		}
		c.conn.Close()
	}
	if c.cmd != nil {
		c.cmd.Process.Signal(syscall.SIGTERM)
		c.cmd.Wait()
	}
	run(ctx, "ip", "link", "delete", "orlbench0")
	unmountBelow(c.dir)
	os.RemoveAll(c.dir)
	if c.leave != nil {
		c.leave()
	}
	for _, h := range []string{"memory", "cpu", "cpuacct", "cpuset", "devices", "freezer", "blkio", "pids", "systemd", "unified"} {
		removeGroups("/sys/fs/cgroup/" + h + "/orlbench-containerd")
	}
}

// unmountBelow detaches every mount below dir, the deepest first.
func unmountBelow(dir string) {
	raw, _ := os.ReadFile("/proc/self/mountinfo")
	lines := strings.Split(string(raw), "\n")
	for i := len(lines) - 1; i >= 0; i-- {
		if w := strings.Fields(lines[i]); len(w) > 4 && strings.HasPrefix(w[4], dir+"/") {
			syscall.Unmount(w[4], syscall.MNT_DETACH)
		}
	}
}

func (c *containerd) StartPod(ctx context.Context, name string) error {
	pc := &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: name, Namespace: "bench", Uid: name},
		Hostname:     name,
		LogDirectory: filepath.Join(c.dir, "logs", name),
		Linux:        &cri.LinuxPodSandboxConfig{CgroupParent: c.group},
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
			Image:    &cri.ImageSpec{Image: c.registry + "/bench/idle:1"},
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
		out, err := run(ctx, "ctr", "-a", c.dir+"/c.sock", "-n", "k8s.io", "content", "ls", "-q")
		if err == nil && strings.Count(out, "\n") > 6 { // the idle image's few blobs stay
			err = fmt.Errorf("content is still there")
		}
		return err
	})
}

func (c *containerd) Own(pid int, cmdline string) bool {
	return pid == c.cmd.Process.Pid || strings.Contains(cmdline, "containerd-shim-runc-v2") && strings.Contains(cmdline, c.dir) ||
		cmdline == "/pause"
}
