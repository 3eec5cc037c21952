package e2e

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// client is what kubelet is to a node: a client of its CRI socket.
type client struct {
	v1.RuntimeServiceClient
	images v1.ImageServiceClient
	n      *node
	logs   string
	pods   int
	// handler is the runtime handler of the pods that run makes.
	handler string
}

// cri connects to the node's socket and packs the tool's image.
func (n *node) cri() *client {
	n.t.Helper()
	soon := backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.2, MaxDelay: 200 * time.Millisecond} // a daemon is back in less than its second
	conn, err := grpc.NewClient("unix://"+n.run+"/cri.sock", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: soon, MinConnectTimeout: 20 * time.Second}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20), grpc.WaitForReady(true)))
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { conn.Close() })
	n.orlop("image", "pack", bin+"/tool", "-t", "localhost/tool:1", "--entrypoint", "/bin/tool")
	return &client{RuntimeServiceClient: v1.NewRuntimeServiceClient(conn), images: v1.NewImageServiceClient(conn), n: n, logs: n.t.TempDir()}
}

func deadline(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// sandbox is a configuration with a name of its own.
func (c *client) sandbox() *v1.PodSandboxConfig {
	c.pods++
	name := fmt.Sprintf("pod-%d", c.pods)
	return &v1.PodSandboxConfig{
		Metadata: &v1.PodSandboxMetadata{Name: name, Namespace: "cri", Uid: "uid-" + name},
		Hostname: name, LogDirectory: filepath.Join(c.logs, name), Labels: map[string]string{"test": "yes", "name": name},
		DnsConfig: &v1.DNSConfig{Servers: []string{"10.0.0.53"}, Searches: []string{"example.test"}, Options: []string{"ndots:3"}},
		Linux:     &v1.LinuxPodSandboxConfig{SecurityContext: &v1.LinuxSandboxSecurityContext{NamespaceOptions: &v1.NamespaceOption{Pid: v1.NamespaceMode_CONTAINER}}},
	}
}

func criContainer(name string, args ...string) *v1.ContainerConfig {
	return &v1.ContainerConfig{
		Metadata: &v1.ContainerMetadata{Name: name}, Image: &v1.ImageSpec{Image: "localhost/tool:1"}, Args: args, LogPath: name + "/0.log",
		Labels: map[string]string{"container": name},
		Linux: &v1.LinuxContainerConfig{SecurityContext: &v1.LinuxContainerSecurityContext{
			NamespaceOptions: &v1.NamespaceOption{Pid: v1.NamespaceMode_CONTAINER}, Seccomp: &v1.SecurityProfile{ProfileType: v1.SecurityProfile_RuntimeDefault},
		}},
	}
}

func (c *client) run(t *testing.T, s *v1.PodSandboxConfig) string {
	t.Helper()
	r, err := c.RunPodSandbox(deadline(t), &v1.RunPodSandboxRequest{Config: s, RuntimeHandler: c.handler})
	if err != nil {
		t.Fatalf("%v\n%s", err, c.n.tail())
	}
	return r.PodSandboxId
}

func (c *client) create(t *testing.T, pod string, conf *v1.ContainerConfig) string {
	t.Helper()
	r, err := c.CreateContainer(deadline(t), &v1.CreateContainerRequest{PodSandboxId: pod, Config: conf})
	if err != nil {
		t.Fatalf("%v\n%s", err, c.n.tail())
	}
	return r.ContainerId
}

func (c *client) start(t *testing.T, pod string, conf *v1.ContainerConfig) string {
	t.Helper()
	id := c.create(t, pod, conf)
	if _, err := c.StartContainer(deadline(t), &v1.StartContainerRequest{ContainerId: id}); err != nil {
		t.Fatalf("%v\n%s", err, c.n.tail())
	}
	return id
}

func (c *client) status(t *testing.T, id string) *v1.ContainerStatus {
	t.Helper()
	r, err := c.ContainerStatus(deadline(t), &v1.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		t.Fatalf("%v\n%s", err, c.n.tail())
	}
	return r.Status
}

// ended waits until a container has ended.
func (c *client) ended(t *testing.T, id string) *v1.ContainerStatus {
	t.Helper()
	var st *v1.ContainerStatus
	c.n.eventually(20*time.Second, func() error {
		if st = c.status(t, id); st.State != v1.ContainerState_CONTAINER_EXITED {
			return fmt.Errorf("container is %s", st.State)
		}
		return nil
	})
	return st
}

// look runs the command of that name in a container of its own, and returns what it
// tells about what it is given.
func (c *client) look(t *testing.T, pod, name string, change func(*v1.ContainerConfig), what ...string) string {
	t.Helper()
	cc := criContainer(name, append([]string{"look"}, what...)...)
	if change != nil {
		change(cc)
	}
	st := c.ended(t, c.start(t, pod, cc))
	var text string
	c.n.eventually(10*time.Second, func() error {
		raw, err := os.ReadFile(st.LogPath)
		if err != nil || !bytes.Contains(raw, []byte("end of look")) {
			return fmt.Errorf("log %q: %v", raw, err)
		}
		text = string(raw)
		return nil
	})
	return text
}

func (c *client) remove(t *testing.T, pod string) {
	t.Helper()
	for range 2 { // both calls are idempotent
		if _, err := c.StopPodSandbox(deadline(t), &v1.StopPodSandboxRequest{PodSandboxId: pod}); err != nil {
			t.Fatalf("%v\n%s", err, c.n.tail())
		}
	}
	for range 2 {
		if _, err := c.RemovePodSandbox(deadline(t), &v1.RemovePodSandboxRequest{PodSandboxId: pod}); err != nil {
			t.Fatalf("%v\n%s", err, c.n.tail())
		}
	}
}

func wantCode(t *testing.T, err error, want codes.Code, text string) {
	t.Helper()
	if status.Code(err) != want || !strings.Contains(fmt.Sprint(err), text) {
		t.Errorf("got %v, want code %s and %q in it", err, want, text)
	}
}

// A pod's life over the CRI, as kubelet leads it.
func TestCRILife(t *testing.T) { wholeLife(t, newNode(t).cri()) }

func wholeLife(t *testing.T, c *client) {
	n := c.n
	conf := c.sandbox()
	pod := c.run(t, conf)
	st, err := c.PodSandboxStatus(deadline(t), &v1.PodSandboxStatusRequest{PodSandboxId: pod, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	if s := st.Status; s.State != v1.PodSandboxState_SANDBOX_READY || s.Network.Ip == "" || len(s.Network.AdditionalIps) != 1 || s.Metadata.Uid != conf.Metadata.Uid || st.Info["info"] == "" {
		t.Errorf("status of the sandbox: %v", st)
	}
	if _, err := c.RunPodSandbox(deadline(t), &v1.RunPodSandboxRequest{Config: conf}); status.Code(err) != codes.AlreadyExists {
		t.Errorf("the same sandbox again: %v", err)
	}

	id := c.create(t, pod, criContainer("one", "exit", "3"))
	if s := c.status(t, id); s.State != v1.ContainerState_CONTAINER_CREATED || s.CreatedAt == 0 || s.StartedAt != 0 {
		t.Errorf("created: %v", s)
	}
	_, err = c.ExecSync(deadline(t), &v1.ExecSyncRequest{ContainerId: id, Cmd: []string{"/bin/tool", "exit", "0"}})
	wantCode(t, err, codes.FailedPrecondition, "created")
	if _, err := c.StartContainer(deadline(t), &v1.StartContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	s := c.ended(t, id)
	if s.ExitCode != 3 || s.Reason != "Error" || s.StartedAt == 0 || s.FinishedAt < s.StartedAt || s.LogPath != filepath.Join(conf.LogDirectory, "one/0.log") {
		t.Errorf("ended: %v", s)
	}
	n.eventually(10*time.Second, func() error {
		raw, err := os.ReadFile(s.LogPath)
		if err != nil || !bytes.Contains(raw, []byte(" stdout F to stdout\n")) || !bytes.Contains(raw, []byte(" stderr F to stderr\n")) {
			return fmt.Errorf("log: %q %v", raw, err)
		}
		return nil
	})
	_, err = c.StartContainer(deadline(t), &v1.StartContainerRequest{ContainerId: id})
	wantCode(t, err, codes.FailedPrecondition, "exited")

	// A command's streams, status and time limit.
	id = c.start(t, pod, criContainer("two", "count"))
	x, err := c.ExecSync(deadline(t), &v1.ExecSyncRequest{ContainerId: id, Cmd: []string{"/bin/tool", "exit", "7"}, Timeout: 10})
	if err != nil || x.ExitCode != 7 || string(x.Stdout) != "to stdout\n" || string(x.Stderr) != "to stderr\n" {
		t.Errorf("exec: %v %v", x, err)
	}
	begin := time.Now()
	_, err = c.ExecSync(deadline(t), &v1.ExecSyncRequest{ContainerId: id, Cmd: []string{"/bin/tool", "sleep"}, Timeout: 1})
	wantCode(t, err, codes.DeadlineExceeded, "timed out after 1 s")
	if took := time.Since(begin); took < time.Second || took > 5*time.Second {
		t.Errorf("a limit of 1 s took %s", took)
	}
	_, err = c.ExecSync(deadline(t), &v1.ExecSyncRequest{ContainerId: id, Cmd: []string{"/bin/nothing"}})
	if err == nil || !strings.Contains(err.Error(), "/bin/nothing") {
		t.Errorf("a command that is not there: %v", err)
	}

	// Logs that somebody else moves.
	log := c.status(t, id).LogPath
	n.eventually(10*time.Second, func() error { _, err := os.Stat(log); return err })
	if err := os.Rename(log, log+".old"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.ReopenContainerLog(deadline(t), &v1.ReopenContainerLogRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	n.eventually(10*time.Second, func() error {
		raw, err := os.ReadFile(log)
		if err != nil || !bytes.Contains(raw, []byte("count")) {
			return fmt.Errorf("log after it was moved: %q %v", raw, err)
		}
		return nil
	})

	// Filters, and statistics.
	for _, tt := range []struct {
		filter *v1.ContainerFilter
		want   int
	}{
		{nil, 2}, {&v1.ContainerFilter{Id: id}, 1}, {&v1.ContainerFilter{Id: id[:12]}, 1}, {&v1.ContainerFilter{PodSandboxId: pod}, 2}, {&v1.ContainerFilter{PodSandboxId: "0000"}, 0},
		{&v1.ContainerFilter{LabelSelector: map[string]string{"container": "one"}}, 1},
		{&v1.ContainerFilter{State: &v1.ContainerStateValue{State: v1.ContainerState_CONTAINER_RUNNING}}, 1},
	} {
		l, err := c.ListContainers(deadline(t), &v1.ListContainersRequest{Filter: tt.filter})
		if err != nil || len(l.Containers) != tt.want {
			t.Errorf("filter %v: %d containers, want %d: %v", tt.filter, len(l.GetContainers()), tt.want, err)
		}
	}
	stream, err := c.StreamContainers(deadline(t), &v1.StreamContainersRequest{})
	if err != nil {
		t.Fatal(err)
	}
	streamed := 0
	for {
		m, err := stream.Recv()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		streamed += len(m.Containers)
	}
	if streamed != 2 {
		t.Errorf("%d containers streamed", streamed)
	}
	stats, err := c.ContainerStats(deadline(t), &v1.ContainerStatsRequest{ContainerId: id})
	if err != nil || stats.Stats.Cpu.UsageCoreNanoSeconds.Value == 0 || stats.Stats.Memory.WorkingSetBytes.Value == 0 || stats.Stats.WritableLayer.InodesUsed.Value == 0 {
		t.Errorf("statistics: %v %v", stats, err)
	}
	pods, err := c.PodSandboxStats(deadline(t), &v1.PodSandboxStatsRequest{PodSandboxId: pod})
	if err != nil || len(pods.Stats.Linux.Containers) != 1 || pods.Stats.Linux.Network.DefaultInterface.Name != "eth0" {
		t.Errorf("statistics of the pod: %v %v", pods, err)
	}

	// orlop shows the pod, reaches into it, and leaves it to its client.
	if out := n.orlop("ps", "-A"); !strings.Contains(out, conf.Metadata.Name) {
		t.Errorf("orlop ps:\n%s", out)
	}
	if out := n.orlop("exec", "-n", "cri", conf.Metadata.Name, "-c", "two", "--", "/bin/tool", "exit", "0"); !strings.Contains(out, "to stdout") {
		t.Errorf("orlop exec: %q", out)
	}
	if _, err := n.try("delete", "pod", "-n", "cri", conf.Metadata.Name); err == nil || !strings.Contains(err.Error(), "crictl") {
		t.Errorf("orlop delete of a client's pod: %v", err)
	}

	// The end: a grace that is too short, then everything.
	if _, err := c.StopContainer(deadline(t), &v1.StopContainerRequest{ContainerId: id, Timeout: 10}); err != nil {
		t.Fatal(err)
	}
	if s := c.status(t, id); s.State != v1.ContainerState_CONTAINER_EXITED || s.ExitCode != 143 && s.ExitCode != 137 && s.ExitCode != 2 {
		t.Errorf("stopped: %v", s)
	}
	c.remove(t, pod)
	if _, err := c.PodSandboxStatus(deadline(t), &v1.PodSandboxStatusRequest{PodSandboxId: pod}); status.Code(err) != codes.NotFound {
		t.Errorf("removed: %v", err)
	}
	if _, err := c.ContainerStatus(deadline(t), &v1.ContainerStatusRequest{ContainerId: id}); status.Code(err) != codes.NotFound {
		t.Errorf("its container: %v", err)
	}
}

// What a container sees, by its configuration. The tool prints it.
func TestCRIInside(t *testing.T) { inside(t, newNode(t).cri()) }

func inside(t *testing.T, c *client) {
	shared := t.TempDir()
	if err := os.WriteFile(shared+"/file", []byte("from the host\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	conf := c.sandbox()
	conf.Linux.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "1"}
	pod := c.run(t, conf)
	show := func(name string, change func(*v1.ContainerConfig), what ...string) string {
		t.Helper()
		return c.look(t, pod, name, change, what...)
	}
	sec := func(cc *v1.ContainerConfig) *v1.LinuxContainerSecurityContext { return cc.Linux.SecurityContext }
	for _, tt := range []struct {
		name   string
		change func(*v1.ContainerConfig)
		show   []string
		want   []string
		not    []string
	}{
		{"files", nil, []string{"/etc/resolv.conf", "/etc/hostname", "/etc/hosts", "/proc/sys/net/ipv4/ip_unprivileged_port_start"},
			[]string{"nameserver 10.0.0.53", "search example.test", "options ndots:3", "F pod-1", "localhost", "F 1"}, nil},
		{"env", func(cc *v1.ContainerConfig) {
			cc.Envs = []*v1.KeyValue{{Key: "GREETING", Value: []byte("hello=there")}}
			cc.WorkingDir = "/made/for/it"
		}, []string{"env", "cwd"}, []string{"GREETING=hello=there", "/made/for/it"}, nil},
		{"user", func(cc *v1.ContainerConfig) {
			sec(cc).RunAsUser, sec(cc).RunAsGroup, sec(cc).SupplementalGroups = &v1.Int64Value{Value: 1234}, &v1.Int64Value{Value: 4321}, []int64{5, 6}
			sec(cc).NoNewPrivs = true
		}, []string{"/proc/self/status"}, []string{"Uid:\t1234", "Gid:\t4321", "Groups:\t5 6 4321", "NoNewPrivs:\t1", "Seccomp:\t2"}, nil},
		{"ambient", func(cc *v1.ContainerConfig) {
			sec(cc).RunAsUser = &v1.Int64Value{Value: 1234}
			sec(cc).Capabilities = &v1.Capability{DropCapabilities: []string{"ALL"}, AddAmbientCapabilities: []string{"NET_BIND_SERVICE"}}
			sec(cc).Seccomp = &v1.SecurityProfile{ProfileType: v1.SecurityProfile_Unconfined}
		}, []string{"/proc/self/status"}, []string{"CapEff:\t0000000000000400", "CapAmb:\t0000000000000400", "CapBnd:\t0000000000000400", "Seccomp:\t0"}, nil},
		{"masked", func(cc *v1.ContainerConfig) {
			sec(cc).MaskedPaths, sec(cc).ReadonlyPaths = []string{"/proc/version"}, []string{"/proc/sys"}
			sec(cc).ReadonlyRootfs = true
		}, []string{"/proc/version", "write:/proc/sys/kernel/domainname", "write:/file"}, []string{"read-only file system"}, []string{"Linux version"}},
		{"mounts", func(cc *v1.ContainerConfig) {
			cc.Mounts = []*v1.Mount{
				{HostPath: shared, ContainerPath: "/rw"}, {HostPath: shared, ContainerPath: "/ro", Readonly: true},
				{HostPath: shared, ContainerPath: "/rro", Readonly: true, RecursiveReadOnly: true},
				{ContainerPath: "/image", Readonly: true, Image: &v1.ImageSpec{Image: "localhost/tool:1"}},
				{ContainerPath: "/sub", Readonly: true, Image: &v1.ImageSpec{Image: "localhost/tool:1"}, ImageSubPath: "bin"},
			}
		}, []string{"/ro/file", "write:/rw/made", "write:/ro/made", "write:/rro/made", "stat:/image/bin/tool", "stat:/sub/tool", "write:/image/made"},
			[]string{"from the host", "wrote /rw/made", "/ro/made: read-only", "/rro/made: read-only", "found /image/bin/tool", "found /sub/tool", "/image/made: read-only"}, nil},
		{"devices", func(cc *v1.ContainerConfig) {
			cc.Devices = []*v1.Device{{HostPath: "/dev/null", ContainerPath: "/dev/another", Permissions: "rw"}}
		}, []string{"stat:/dev/another", "write:/dev/another"}, []string{"found /dev/another", "wrote /dev/another"}, nil},
		{"limits", func(cc *v1.ContainerConfig) {
			cc.Linux.Resources = &v1.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuQuota: 50000, CpuPeriod: 100000, OomScoreAdj: 900}
		}, []string{"/proc/self/oom_score_adj"}, []string{"F 900"}, nil},
		{"privileged", func(cc *v1.ContainerConfig) { sec(cc).Privileged = true }, []string{"/proc/self/status", "write:/proc/sys/net/ipv4/ip_forward"},
			[]string{"Seccomp:\t0", "wrote /proc/sys/net"}, nil},
		{"host-pid", func(cc *v1.ContainerConfig) { sec(cc).NamespaceOptions.Pid = v1.NamespaceMode_NODE }, []string{"pid"}, nil, []string{"F pid 1\n"}},
		{"pod-pid", func(cc *v1.ContainerConfig) { sec(cc).NamespaceOptions.Pid = v1.NamespaceMode_POD }, []string{"pid"}, nil, []string{"F pid 1\n"}},
		{"own-pid", nil, []string{"pid"}, []string{"F pid 1\n"}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := show(tt.name, tt.change, tt.show...)
			for _, w := range tt.want {
				if !strings.Contains(got, w) {
					t.Errorf("%q is not in\n%s", w, got)
				}
			}
			for _, w := range tt.not {
				if strings.Contains(got, w) {
					t.Errorf("%q is in\n%s", w, got)
				}
			}
		})
	}

	t.Run("update", func(t *testing.T) {
		id := c.start(t, pod, criContainer("update", "count"))
		if _, err := c.UpdateContainerResources(deadline(t), &v1.UpdateContainerResourcesRequest{ContainerId: id, Linux: &v1.LinuxContainerResources{MemoryLimitInBytes: 128 << 20}}); err != nil {
			t.Fatal(err)
		}
		st := c.status(t, id)
		if got := st.Resources.Linux.MemoryLimitInBytes; got != 128<<20 {
			t.Errorf("limit told: %d", got)
		}
		stats, err := c.ContainerStats(deadline(t), &v1.ContainerStatsRequest{ContainerId: id})
		if err != nil || stats.Stats.Memory.AvailableBytes.GetValue() == 0 || stats.Stats.Memory.AvailableBytes.Value > 128<<20 {
			t.Errorf("limit in force: %v %v", stats, err)
		}
	})
	t.Run("target", func(t *testing.T) {
		id := c.start(t, pod, criContainer("watched", "count"))
		got := show("watching", func(cc *v1.ContainerConfig) {
			sec(cc).NamespaceOptions = &v1.NamespaceOption{Pid: v1.NamespaceMode_TARGET, TargetId: id}
		}, "/proc/1/cmdline")
		if !strings.Contains(got, "count") {
			t.Errorf("process 1 of the container's namespace: %q", got)
		}
	})
	c.remove(t, pod)
}

// Requests that cannot succeed get a clear error, and leave nothing.
func TestCRIBadRequests(t *testing.T) {
	n := newNode(t)
	c := n.cri()
	for _, tt := range []struct {
		name string
		r    *v1.RunPodSandboxRequest
		code codes.Code
		text string
	}{
		{"no config", &v1.RunPodSandboxRequest{}, codes.InvalidArgument, "config is missing"},
		{"no metadata", &v1.RunPodSandboxRequest{Config: &v1.PodSandboxConfig{}}, codes.InvalidArgument, "metadata"},
		{"handler", &v1.RunPodSandboxRequest{Config: c.sandbox(), RuntimeHandler: "nothing"}, codes.InvalidArgument, `"nothing"`},
		{"sysctl", func() *v1.RunPodSandboxRequest {
			s := c.sandbox()
			s.Linux.Sysctls = map[string]string{"vm.swappiness": "1"}
			return &v1.RunPodSandboxRequest{Config: s}
		}(), codes.InvalidArgument, "vm.swappiness"},
		{"cgroup parent", func() *v1.RunPodSandboxRequest {
			s := c.sandbox()
			s.Linux.CgroupParent = "../../escape"
			return &v1.RunPodSandboxRequest{Config: s}
		}(), codes.InvalidArgument, "cgroup parent"},
		{"port", func() *v1.RunPodSandboxRequest {
			s := c.sandbox()
			s.PortMappings = []*v1.PortMapping{{HostPort: 70000, ContainerPort: 1}}
			return &v1.RunPodSandboxRequest{Config: s}
		}(), codes.InvalidArgument, "70000"},
		{"name server", func() *v1.RunPodSandboxRequest {
			s := c.sandbox()
			s.DnsConfig.Servers = []string{"not an address"}
			return &v1.RunPodSandboxRequest{Config: s}
		}(), codes.InvalidArgument, "name server"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := c.RunPodSandbox(deadline(t), tt.r)
			wantCode(t, err, tt.code, tt.text)
		})
	}
	pod := c.run(t, c.sandbox())
	for name, tt := range map[string]struct {
		change func(*v1.ContainerConfig)
		code   codes.Code
		text   string
	}{
		"no image":  {func(cc *v1.ContainerConfig) { cc.Image = nil }, codes.InvalidArgument, "image is missing"},
		"image":     {func(cc *v1.ContainerConfig) { cc.Image.Image = "localhost/nothing:1" }, codes.NotFound, "localhost/nothing:1"},
		"log path":  {func(cc *v1.ContainerConfig) { cc.LogPath = "../../../etc/cron.d/x" }, codes.InvalidArgument, "log path"},
		"group":     {func(cc *v1.ContainerConfig) { cc.Linux.SecurityContext.RunAsGroup = &v1.Int64Value{Value: 1} }, codes.InvalidArgument, "run_as_group"},
		"user name": {func(cc *v1.ContainerConfig) { cc.Linux.SecurityContext.RunAsUsername = "nobody-knows" }, codes.InvalidArgument, "nobody-knows"},
		"capability": {func(cc *v1.ContainerConfig) {
			cc.Linux.SecurityContext.Capabilities = &v1.Capability{AddCapabilities: []string{"FLY"}}
		}, codes.InvalidArgument, "CAP_FLY"},
		"profile": {func(cc *v1.ContainerConfig) {
			cc.Linux.SecurityContext.Seccomp = &v1.SecurityProfile{ProfileType: v1.SecurityProfile_Localhost, LocalhostRef: "/nowhere.json"}
		}, codes.NotFound, "/nowhere.json"},
		"device":      {func(cc *v1.ContainerConfig) { cc.Devices = []*v1.Device{{HostPath: "/etc/passwd", Permissions: "r"}} }, codes.InvalidArgument, "/etc/passwd"},
		"permissions": {func(cc *v1.ContainerConfig) { cc.Devices = []*v1.Device{{HostPath: "/dev/null", Permissions: "x"}} }, codes.InvalidArgument, "permissions"},
		"environment": {func(cc *v1.ContainerConfig) { cc.Envs = []*v1.KeyValue{{Key: "A=B", Value: []byte("c")}} }, codes.InvalidArgument, "environment"},
		"image path": {func(cc *v1.ContainerConfig) {
			cc.Mounts = []*v1.Mount{{ContainerPath: "/x", Readonly: true, Image: &v1.ImageSpec{Image: "localhost/tool:1"}, ImageSubPath: "../.."}}
		}, codes.InvalidArgument, "sub-path"},
		"image has no path": {func(cc *v1.ContainerConfig) {
			cc.Mounts = []*v1.Mount{{ContainerPath: "/x", Readonly: true, Image: &v1.ImageSpec{Image: "localhost/tool:1"}, ImageSubPath: "nothing"}}
		}, codes.InvalidArgument, "has no nothing"},
		"image writable": {func(cc *v1.ContainerConfig) {
			cc.Mounts = []*v1.Mount{{ContainerPath: "/x", Image: &v1.ImageSpec{Image: "localhost/tool:1"}}}
		}, codes.InvalidArgument, "read-only alone"},
		"rro": {func(cc *v1.ContainerConfig) {
			cc.Mounts = []*v1.Mount{{ContainerPath: "/x", HostPath: "/tmp", RecursiveReadOnly: true}}
		}, codes.InvalidArgument, "recursive read-only"},
	} {
		t.Run(name, func(t *testing.T) {
			cc := criContainer("bad")
			tt.change(cc)
			_, err := c.CreateContainer(deadline(t), &v1.CreateContainerRequest{PodSandboxId: pod, Config: cc})
			wantCode(t, err, tt.code, tt.text)
		})
	}
	t.Run("program", func(t *testing.T) {
		cc := criContainer("program")
		cc.Command = []string{"/bin/nothing"}
		id := c.create(t, pod, cc)
		_, err := c.StartContainer(deadline(t), &v1.StartContainerRequest{ContainerId: id})
		if err == nil || !strings.Contains(err.Error(), "/bin/nothing") {
			t.Errorf("got %v", err)
		}
		if st := c.status(t, id); st.State != v1.ContainerState_CONTAINER_EXITED || st.ExitCode != 127 || st.Reason != "StartError" {
			t.Errorf("status: %v", st)
		}
	})
	l, err := c.ListPodSandbox(deadline(t), &v1.ListPodSandboxRequest{})
	if err != nil || len(l.Items) != 1 {
		t.Errorf("%d sandboxes are left: %v", len(l.GetItems()), err)
	}
	for _, err := range []error{
		second(c.StopPodSandbox(deadline(t), &v1.StopPodSandboxRequest{PodSandboxId: "nothing"})),
		second(c.RemovePodSandbox(deadline(t), &v1.RemovePodSandboxRequest{PodSandboxId: "nothing"})),
		second(c.StopContainer(deadline(t), &v1.StopContainerRequest{ContainerId: "nothing"})),
		second(c.RemoveContainer(deadline(t), &v1.RemoveContainerRequest{ContainerId: "nothing"})),
		second(c.images.RemoveImage(deadline(t), &v1.RemoveImageRequest{Image: &v1.ImageSpec{Image: "localhost/nothing:1"}})),
	} {
		if err != nil {
			t.Errorf("what is gone cannot be taken away without an error: %v", err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

// Images over the CRI.
func TestCRIImages(t *testing.T) {
	n := newNode(t)
	c := n.cri()
	img, err := c.images.ImageStatus(deadline(t), &v1.ImageStatusRequest{Image: &v1.ImageSpec{Image: "localhost/tool:1"}, Verbose: true})
	if err != nil || img.Image == nil || !slices.Contains(img.Image.RepoTags, "localhost/tool:1") || img.Image.Size == 0 || img.Info["info"] == "" {
		t.Fatalf("status: %v %v", img, err)
	}
	if none, err := c.images.ImageStatus(deadline(t), &v1.ImageStatusRequest{Image: &v1.ImageSpec{Image: "localhost/none:1"}}); err != nil || none.Image != nil {
		t.Errorf("an image that is not here: %v %v", none, err)
	}
	l, err := c.images.ListImages(deadline(t), &v1.ListImagesRequest{})
	if err != nil || len(l.Images) != 1 {
		t.Errorf("list: %v %v", l, err)
	}
	fs, err := c.images.ImageFsInfo(deadline(t), &v1.ImageFsInfoRequest{})
	if err != nil || fs.ImageFilesystems[0].UsedBytes.Value == 0 {
		t.Errorf("filesystem: %v %v", fs, err)
	}
	if _, err := c.images.PullImage(deadline(t), &v1.PullImageRequest{Image: &v1.ImageSpec{Image: "127.0.0.1:1/nothing:1"}}); status.Code(err) != codes.Unavailable {
		t.Errorf("a registry that is not there: %v", err)
	}
	pod := c.run(t, c.sandbox())
	user := criContainer("user", "count")
	user.Image.Image = img.Image.Id // as kubelet does
	id := c.start(t, pod, user)
	if st := c.status(t, id); st.Image.Image != "localhost/tool:1" {
		t.Errorf("name of a container's image: %q", st.Image.Image)
	}
	_, err = c.images.RemoveImage(deadline(t), &v1.RemoveImageRequest{Image: &v1.ImageSpec{Image: img.Image.Id}})
	wantCode(t, err, codes.FailedPrecondition, "used by a container")
	if st := c.status(t, id); st.ImageId != img.Image.Id {
		t.Errorf("image of the container: %q", st.ImageId)
	}
	c.remove(t, pod)
	for range 2 {
		if _, err := c.images.RemoveImage(deadline(t), &v1.RemoveImageRequest{Image: &v1.ImageSpec{Image: img.Image.Id}}); err != nil {
			t.Errorf("removed: %v", err)
		}
	}
}
