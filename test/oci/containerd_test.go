package oci

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// containerd starts it with roots of its own and orlop-oci as the runtime of CRI, and returns
// its socket.
func containerd(t *testing.T) string {
	t.Helper()
	dir := work + "/containerd"
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	socket := dir + "/s"
	config := fmt.Sprintf(`version = 2
root = "%[1]s/root"
state = "%[1]s/state"
[grpc]
  address = "%[2]s"
[ttrpc]
  address = "%[2]s.ttrpc"
[plugins."io.containerd.internal.v1.opt"]
  path = "%[1]s/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "%[3]s"
  stream_server_port = "0"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    conf_dir = "%[1]s/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "orlop"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.orlop]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.orlop.options]
        BinaryName = "%[4]s"
        SystemdCgroup = false
`, dir, socket, image, orlopOCI)
	if err := os.WriteFile(dir+"/config.toml", []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	log, err := os.Create(dir + "/log")
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command("containerd", "-c", dir+"/config.toml")
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal("containerd is needed: ", err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(os.Interrupt)
		cmd.Wait()
		if t.Failed() {
			data, _ := os.ReadFile(dir + "/log")
			t.Logf("containerd said:\n%s", data[max(0, len(data)-8000):])
		}
	})
	eventually(t, "containerd does not answer", func() bool { return command(t, "", "ctr", "-a", socket, "version").code == 0 })
	return socket
}

func TestContainerd(t *testing.T) {
	socket := containerd(t)
	ctr := func(args ...string) []string { return append([]string{"ctr", "-a", socket}, args...) }
	ok := func(args ...string) string {
		t.Helper()
		r := command(t, "", ctr(args...)...)
		if r.code != 0 {
			t.Fatalf("ctr %v: code %d: %s", args, r.code, r.err)
		}
		return r.out
	}
	ok("image", "import", archive)
	defer ok("image", "rm", "--sync", image)
	runArgs := func(args ...string) []string {
		return append([]string{"run", "--runc-binary", orlopOCI, "--cgroup", groups + "/ctr"}, args...)
	}
	for _, tt := range []struct {
		args []string
		out  string
		code int
		err  string
	}{
		{[]string{"--rm", image, "t", "echo", "hello"}, "hello\n", 0, ""},
		{[]string{"--rm", image, "t", "sh", "-c", "exit 7"}, "", 7, ""},
		{[]string{"--rm", "--memory-limit", "33554432", image, "t", "sh", "-c", "echo $HOME"}, "/root\n", 0, ""},
		{[]string{"--rm", image, "t", "/bin/none"}, "", 1, "/bin/none: no such file or directory"},
	} {
		if r := command(t, "", ctr(runArgs(tt.args...)...)...); r.out != tt.out || r.code != tt.code || !strings.Contains(r.err, tt.err) {
			t.Errorf("%v: %+v, want %q, %d, %q", tt.args, r, tt.out, tt.code, tt.err)
		}
	}
	ok(runArgs("-d", image, "life")...)
	// ctr opens its FIFO beside what it does, and drops what is in it if the process has ended by then.
	if out := ok("task", "exec", "--exec-id", "e", "life", "sh", "-c", "echo in; sleep 0.3"); out != "in\n" {
		t.Errorf("%q", out)
	}
	if out, code := terminal(t, "", ctr("task", "exec", "-t", "--exec-id", "e", "life", "sh", "-c", "tty; sleep 0.3; exit 4")...); code != 4 || !strings.Contains(out, "/dev/pts/") {
		t.Errorf("%q %d", out, code)
	}
	ok("task", "pause", "life")
	if out := ok("task", "ls"); !strings.Contains(out, "PAUSED") {
		t.Errorf("%q", out)
	}
	ok("task", "resume", "life")
	if out := ok("task", "metrics", "life"); !strings.Contains(out, "memory") {
		t.Errorf("%q", out)
	}
	ok("task", "kill", "-s", "SIGKILL", "life")
	eventually(t, "the task does not stop", func() bool { return strings.Contains(ok("task", "ls"), "STOPPED") })
	command(t, "", ctr("task", "rm", "life")...) // ends with the status of the task
	ok("container", "rm", "life")

	t.Run("CRI", func(t *testing.T) { testCRI(t, socket) })
}

func testCRI(t *testing.T, socket string) {
	if r := command(t, "", "ctr", "-a", socket, "-n", "k8s.io", "image", "import", archive); r.code != 0 {
		t.Fatal(r.err)
	}
	defer command(t, "", "ctr", "-a", socket, "-n", "k8s.io", "image", "rm", "--sync", image)
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	client := cri.NewRuntimeServiceClient(conn)
	pod := &cri.PodSandboxConfig{
		Metadata: &cri.PodSandboxMetadata{Name: "pod", Uid: "u", Namespace: "default"}, LogDirectory: work + "/logs",
		Linux: &cri.LinuxPodSandboxConfig{CgroupParent: groups + "/cri", SecurityContext: &cri.LinuxSandboxSecurityContext{
			NamespaceOptions: &cri.NamespaceOption{Network: cri.NamespaceMode_NODE, Pid: cri.NamespaceMode_CONTAINER}}},
	}
	var sandbox *cri.RunPodSandboxResponse
	if sandbox, err = client.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: pod}); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if _, err := client.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: sandbox.PodSandboxId}); err != nil {
			t.Error(err)
		}
		if _, err := client.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: sandbox.PodSandboxId}); err != nil {
			t.Error(err)
		}
	}()
	c, err := client.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: sandbox.PodSandboxId, SandboxConfig: pod, Config: &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: "app"}, Image: &cri.ImageSpec{Image: image}, Command: []string{"sh", "-c", "sleep 1000"}, LogPath: "app.log",
		Linux: &cri.LinuxContainerConfig{Resources: &cri.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuShares: 512},
			SecurityContext: &cri.LinuxContainerSecurityContext{RunAsUser: &cri.Int64Value{Value: 1000}, NoNewPrivs: true,
				MaskedPaths: []string{"/proc/kcore"}, ReadonlyPaths: []string{"/proc/sys"}}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: c.ContainerId}); err != nil {
		t.Fatal(err)
	}
	out, err := client.ExecSync(ctx, &cri.ExecSyncRequest{ContainerId: c.ContainerId, Cmd: []string{"sh", "-c", "echo in; id -u; exit 6"}, Timeout: 10})
	if err != nil || string(out.Stdout) != "in\n1000\n" || out.ExitCode != 6 {
		t.Errorf("%v %v", out, err)
	}
	if _, err := client.UpdateContainerResources(ctx, &cri.UpdateContainerResourcesRequest{ContainerId: c.ContainerId,
		Linux: &cri.LinuxContainerResources{MemoryLimitInBytes: 96 << 20}}); err != nil {
		t.Error(err)
	}
	stats, err := client.ContainerStats(ctx, &cri.ContainerStatsRequest{ContainerId: c.ContainerId})
	if err != nil || stats.Stats.Memory.GetWorkingSetBytes().GetValue() == 0 {
		t.Errorf("%v %v", stats, err)
	}
	if _, err := client.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: c.ContainerId, Timeout: 0}); err != nil {
		t.Error(err)
	}
	st, err := client.ContainerStatus(ctx, &cri.ContainerStatusRequest{ContainerId: c.ContainerId})
	if err != nil || st.Status.State != cri.ContainerState_CONTAINER_EXITED || st.Status.ExitCode != 137 {
		t.Errorf("%v %v", st, err)
	}
	if _, err := client.RemoveContainer(ctx, &cri.RemoveContainerRequest{ContainerId: c.ContainerId}); err != nil {
		t.Error(err)
	}
}
