package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
	"google.golang.org/grpc/codes"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// plugin is one of the Node Resource Interface. It notes what it is told, and does what
// the functions say, which are set before it connects or between requests.
type plugin struct {
	stub stub.Stub

	mu     sync.Mutex
	events []string // "create NAME-OR-ID"
	synced chan struct{}
	known  []string // ids that it was told of at first

	run    func(context.Context, *api.PodSandbox) error
	create func(context.Context, *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error)
}

func (p *plugin) note(what, id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.events = append(p.events, what+" "+id)
}

// of lists what happened to one pod or container.
func (p *plugin) of(id string) (list []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, e := range p.events {
		if what, ok := strings.CutSuffix(e, " "+id); ok {
			list = append(list, what)
		}
	}
	return list
}

func (p *plugin) Synchronize(_ context.Context, pods []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
	for _, b := range pods {
		p.known = append(p.known, b.Id)
	}
	for _, c := range containers {
		p.known = append(p.known, c.Id)
	}
	close(p.synced)
	return nil, nil
}
func (p *plugin) RunPodSandbox(ctx context.Context, b *api.PodSandbox) error {
	p.note("run", b.Id)
	if p.run != nil {
		return p.run(ctx, b)
	}
	return nil
}
func (p *plugin) StopPodSandbox(_ context.Context, b *api.PodSandbox) error {
	p.note("stop", b.Id)
	return nil
}
func (p *plugin) RemovePodSandbox(_ context.Context, b *api.PodSandbox) error {
	p.note("remove", b.Id)
	return nil
}
func (p *plugin) CreateContainer(ctx context.Context, _ *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	p.note("create", c.Id)
	if p.create != nil {
		return p.create(ctx, c)
	}
	return nil, nil, nil
}
func (p *plugin) PostCreateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	p.note("post-create", c.Id)
	return nil
}
func (p *plugin) StartContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	p.note("start", c.Id)
	return nil
}
func (p *plugin) PostStartContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	p.note("post-start", c.Id)
	return nil
}
func (p *plugin) UpdateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container, r *api.LinuxResources) ([]*api.ContainerUpdate, error) {
	p.note("update", c.Id)
	return nil, nil
}
func (p *plugin) PostUpdateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	p.note("post-update", c.Id)
	return nil
}
func (p *plugin) StopContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) ([]*api.ContainerUpdate, error) {
	p.note("stop", c.Id)
	return nil, nil
}
func (p *plugin) RemoveContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	p.note("remove", c.Id)
	return nil
}

// connect registers the plugin with the node.
func (p *plugin) connect(t *testing.T, n *node, name string) {
	t.Helper()
	p.synced = make(chan struct{})
	var err error
	p.stub, err = stub.New(p, stub.WithPluginName(name), stub.WithPluginIdx("10"), stub.WithSocketPath(n.run+"/nri.sock"), stub.WithOnClose(func() {}))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.stub.Start(deadline(t)); err != nil {
		t.Fatalf("%v\n%s", err, n.tail())
	}
	t.Cleanup(p.stub.Stop)
	<-p.synced
}

// Plugins see every step of driven pods in order, adjust and refuse them, and cannot hold
// up the node.
func TestCRIPlugins(t *testing.T) {
	n := newNode(t)
	n.configure(fmt.Sprintf("cri: {nri: {socket: %s/nri.sock, timeout: 3s}}\n", n.run))
	c := n.cri()
	early := c.run(t, c.sandbox())
	running := c.start(t, early, criContainer("running", "sleep"))

	p := &plugin{}
	p.connect(t, n, "watcher")
	if !slices.Contains(p.known, early) || !slices.Contains(p.known, running) {
		t.Errorf("a plugin was told of %v, want %s and %s among them", p.known, early, running)
	}

	// While it is asked, nobody sees the pod; its error refuses it, and nothing is left.
	var seen string
	p.run = func(ctx context.Context, b *api.PodSandbox) error {
		seen = b.Id
		r, err := c.ListPodSandbox(ctx, &v1.ListPodSandboxRequest{})
		if err != nil {
			return err
		}
		for _, i := range r.Items {
			if i.Id == b.Id {
				t.Error("a pod is listed while a plugin is asked")
			}
		}
		if _, err := c.CreateContainer(ctx, &v1.CreateContainerRequest{PodSandboxId: b.Id, Config: criContainer("too-early")}); err == nil {
			t.Error("a container was made while a plugin is asked for its pod")
		}
		return errors.New("not here")
	}
	box := c.sandbox()
	_, err := c.RunPodSandbox(deadline(t), &v1.RunPodSandboxRequest{Config: box})
	wantCode(t, err, codes.FailedPrecondition, "not here")
	if _, err := c.PodSandboxStatus(deadline(t), &v1.PodSandboxStatusRequest{PodSandboxId: seen}); err == nil {
		t.Error("the pod that was refused is there")
	}
	p.run = nil
	pod := c.run(t, box)

	// A container likewise; then it is adjusted.
	shared := t.TempDir()
	n.write(shared+"/file", "from a plugin\n")
	p.create = func(ctx context.Context, one *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		if r, err := c.ContainerStatus(ctx, &v1.ContainerStatusRequest{ContainerId: one.Id}); err == nil {
			t.Errorf("a container is there while a plugin is asked: %v", r)
		}
		return nil, nil, errors.New("no such container")
	}
	_, err = c.CreateContainer(deadline(t), &v1.CreateContainerRequest{PodSandboxId: pod, Config: criContainer("adjusted")})
	wantCode(t, err, codes.FailedPrecondition, "no such container")
	if r, err := c.ListContainers(deadline(t), &v1.ListContainersRequest{Filter: &v1.ContainerFilter{PodSandboxId: pod}}); err != nil || len(r.Containers) != 0 {
		t.Errorf("what was refused left %v %v", r, err)
	}
	p.create = func(_ context.Context, one *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		if !slices.Contains(one.Args, "look") || one.Linux.CgroupsPath == "" || len(one.Linux.Namespaces) == 0 || len(one.Mounts) == 0 {
			t.Errorf("a plugin is told %v", one)
		}
		a := &api.ContainerAdjustment{}
		a.AddEnv("FROM_PLUGIN", "yes")
		a.AddMount(&api.Mount{Source: shared, Destination: "/plugin", Type: "bind", Options: []string{"rbind", "ro"}})
		a.AddDevice(&api.LinuxDevice{Path: "/dev/plugin", Type: "c", Major: 1, Minor: 3})
		a.AddRlimit("RLIMIT_NOFILE", 77, 77)
		a.AddAnnotation("plugin", "was here")
		a.SetLinuxMemoryLimit(96 << 20)
		u := &api.ContainerUpdate{}
		u.SetContainerId(running)
		u.SetLinuxMemoryLimit(64 << 20)
		return a, []*api.ContainerUpdate{u}, nil
	}
	id := c.create(t, pod, criContainer("adjusted", "look", "env", "/plugin/file", "write:/plugin/made", "write:/dev/plugin", "/proc/self/limits"))
	p.create = nil
	if r := c.status(t, running).Resources.Linux; r.MemoryLimitInBytes != 64<<20 {
		t.Errorf("the limits of another container: %v", r)
	}
	// What it said is kept: it counts after the daemon, and the plugin, were gone.
	p.stub.Stop()
	n.kill()
	n.start()
	p.connect(t, n, "watcher")
	if !slices.Contains(p.known, id) {
		t.Errorf("after a restart it was told of %v, want %s among them", p.known, id)
	}
	if _, err := c.StartContainer(deadline(t), &v1.StartContainerRequest{ContainerId: id}); err != nil {
		t.Fatalf("%v\n%s", err, n.tail())
	}
	st := c.ended(t, id)
	var text string
	n.eventually(10*time.Second, func() error {
		raw, _ := os.ReadFile(st.LogPath)
		if text = string(raw); !strings.Contains(text, "end of look") {
			return fmt.Errorf("log %q", raw)
		}
		return nil
	})
	for _, want := range []string{"FROM_PLUGIN=yes", "from a plugin", "/plugin/made: read-only", "wrote /dev/plugin", "Max open files            77"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not in\n%s", want, text)
		}
	}

	// It ended by itself, and the plugin is told before it is removed.
	n.eventually(10*time.Second, func() error {
		if l := p.of(id); !slices.Equal(l, []string{"create", "post-create", "start", "post-start", "stop"}) {
			return fmt.Errorf("events %v", l)
		}
		return nil
	})
	if _, err := c.UpdateContainerResources(deadline(t), &v1.UpdateContainerResourcesRequest{ContainerId: running, Linux: &v1.LinuxContainerResources{MemoryLimitInBytes: 128 << 20}}); err != nil {
		t.Error(err)
	}
	if l := p.of(running); !slices.Equal(l, []string{"update", "post-update"}) {
		t.Errorf("events of an update: %v", l)
	}
	u := &api.ContainerUpdate{}
	u.SetContainerId(running)
	u.SetLinuxMemoryLimit(112 << 20)
	if failed, err := p.stub.UpdateContainers([]*api.ContainerUpdate{u}); err != nil || len(failed) != 0 || c.status(t, running).Resources.Linux.MemoryLimitInBytes != 112<<20 {
		t.Errorf("an update by the plugin itself: %v %v", failed, err)
	}
	u.SetContainerId("0123")
	if failed, err := p.stub.UpdateContainers([]*api.ContainerUpdate{u}); err != nil || len(failed) != 1 {
		t.Errorf("an update of a container that is not there: %v %v", failed, err)
	}
	c.remove(t, pod)
	if l := p.of(id); !slices.Equal(l, []string{"create", "post-create", "start", "post-start", "stop", "remove"}) {
		t.Errorf("events of the container: %v", l)
	}
	if l := p.of(pod); !slices.Equal(l, []string{"run", "stop", "remove"}) {
		t.Errorf("events of the pod: %v", l)
	}

	// One that hangs is disconnected; the request goes on without it.
	p.run = func(ctx context.Context, _ *api.PodSandbox) error {
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Second):
		}
		return ctx.Err()
	}
	begin := time.Now()
	c.remove(t, c.run(t, c.sandbox()))
	if took := time.Since(begin); took > 15*time.Second {
		t.Errorf("a plugin held up the node for %s", took)
	}
	c.remove(t, early)
}
