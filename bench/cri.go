package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// criClient drives pods step by step, as kubelet does, on any runtime's CRI socket.
type criClient struct {
	image  string // of the idle container
	logs   string // directory
	parent string // of the pods' groups
	rt     cri.RuntimeServiceClient
	img    cri.ImageServiceClient

	mu   sync.Mutex
	pods map[string]criPod // by name, guarded by mu
}

type criPod struct{ sandbox, container string }

// dial connects to the socket and waits until the runtime says that it is ready.
func (c *criClient) dial(ctx context.Context, socket string) error {
	c.pods = make(map[string]criPod)
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	c.rt, c.img = cri.NewRuntimeServiceClient(conn), cri.NewImageServiceClient(conn)
	return until(ctx, func() error {
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
	})
}

// StartPod goes from RunPodSandbox until the container's status is that it runs.
func (c *criClient) StartPod(ctx context.Context, name string) error {
	security := &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}
	own := &cri.NamespaceOption{Network: cri.NamespaceMode_POD, Pid: cri.NamespaceMode_CONTAINER}
	pc := &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: name, Namespace: "bench", Uid: name},
		Hostname:     name,
		LogDirectory: filepath.Join(c.logs, name),
		Linux: &cri.LinuxPodSandboxConfig{CgroupParent: c.parent,
			SecurityContext: &cri.LinuxSandboxSecurityContext{NamespaceOptions: own, Seccomp: security}},
	}
	if err := os.MkdirAll(pc.LogDirectory, 0o700); err != nil {
		return err
	}
	sb, err := c.rt.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: pc})
	if err != nil {
		return fmt.Errorf("RunPodSandbox: %w", err)
	}
	ct, err := c.rt.CreateContainer(ctx, &cri.CreateContainerRequest{
		PodSandboxId: sb.PodSandboxId, SandboxConfig: pc,
		Config: &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: "idle"},
			Image:    &cri.ImageSpec{Image: c.image},
			LogPath:  "idle.log",
			Linux: &cri.LinuxContainerConfig{
				Resources:       &cri.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuShares: 100},
				SecurityContext: &cri.LinuxContainerSecurityContext{NamespaceOptions: own, Seccomp: security},
			},
		},
	})
	if err != nil {
		return fmt.Errorf("CreateContainer: %w", err)
	}
	c.mu.Lock()
	c.pods[name] = criPod{sb.PodSandboxId, ct.ContainerId}
	c.mu.Unlock()
	if _, err := c.rt.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: ct.ContainerId}); err != nil {
		return fmt.Errorf("StartContainer: %w", err)
	}
	for {
		st, err := c.rt.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: ct.ContainerId})
		if err != nil {
			return fmt.Errorf("ContainerStatus: %w", err)
		}
		switch st.Status.State {
		case cri.ContainerState_CONTAINER_RUNNING:
			return nil
		case cri.ContainerState_CONTAINER_EXITED:
			return fmt.Errorf("the container ended: %s", st.Status.Message)
		}
		time.Sleep(time.Millisecond)
	}
}

// RemovePod ends and removes a pod in kubelet's steps, without a grace: the workload takes no signals.
func (c *criClient) RemovePod(ctx context.Context, name string) error {
	c.mu.Lock()
	p := c.pods[name]
	delete(c.pods, name)
	c.mu.Unlock()
	if _, err := c.rt.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: p.container}); err != nil {
		return fmt.Errorf("StopContainer: %w", err)
	}
	if _, err := c.rt.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: p.sandbox}); err != nil {
		return fmt.Errorf("StopPodSandbox: %w", err)
	}
	if _, err := c.rt.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: p.container}); err != nil {
		return fmt.Errorf("RemoveContainer: %w", err)
	}
	if _, err := c.rt.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: p.sandbox}); err != nil {
		return fmt.Errorf("RemovePodSandbox: %w", err)
	}
	return nil
}

// Exec is ExecSync of /bin/true.
func (c *criClient) Exec(ctx context.Context, name string) error {
	c.mu.Lock()
	p := c.pods[name]
	c.mu.Unlock()
	resp, err := c.rt.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: p.container, Cmd: []string{"/bin/true"}, Timeout: 10})
	if err != nil {
		return fmt.Errorf("ExecSync: %w", err)
	}
	if resp.ExitCode != 0 {
		return fmt.Errorf("ExecSync: /bin/true ended with %d: %s", resp.ExitCode, resp.Stderr)
	}
	return nil
}

func (c *criClient) Pull(ctx context.Context, ref string) error {
	_, err := c.img.PullImage(ctx, &cri.PullImageRequest{Image: &cri.ImageSpec{Image: ref}})
	return err
}

func (c *criClient) Drop(ctx context.Context, ref string) error {
	_, err := c.img.RemoveImage(ctx, &cri.RemoveImageRequest{Image: &cri.ImageSpec{Image: ref}})
	return err
}

// orlopCRI is a daemon like orlop's, by CRI. It is another one, as memory is read of each.
type orlopCRI struct {
	criClient
	daemon *orlop
}

func (o *orlopCRI) Name() string             { return o.daemon.Name() }
func (o *orlopCRI) Version() (string, error) { return o.daemon.Version() }
func (o *orlopCRI) Group() group             { return o.daemon.group }

func (o *orlopCRI) Start(ctx context.Context) error {
	if err := o.daemon.Start(ctx); err != nil {
		return err
	}
	o.image, o.logs, o.parent = o.daemon.registry.idle(), o.daemon.dir+"/logs", o.daemon.group.pods()
	return o.dial(ctx, o.daemon.run()+"/cri.sock")
}
