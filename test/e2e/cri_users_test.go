package e2e

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"google.golang.org/grpc/codes"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const firstID = 500000

func users(first, size uint32) *v1.UserNamespace {
	m := []*v1.IDMapping{{HostId: first, Length: size}}
	return &v1.UserNamespace{Mode: v1.NamespaceMode_POD, Uids: m, Gids: m}
}

// A pod in a user namespace of its own: its root is nobody on the host, and root over the
// pod's network, files and volumes.
func TestCRIUserNamespace(t *testing.T) {
	c := newNode(t).cri()
	ownUsers(t, c)
	badUsers(t, c)
}

func ownUsers(t *testing.T, c *client) {
	n := c.n
	volume := t.TempDir()
	if err := os.WriteFile(volume+"/file", []byte("from the host\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	conf := c.sandbox()
	conf.Linux.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "77", "kernel.shm_rmid_forced": "1"}
	conf.Linux.SecurityContext.NamespaceOptions.UsernsOptions = users(firstID, 65536)
	pod := c.run(t, conf)
	st, err := c.PodSandboxStatus(deadline(t), &v1.PodSandboxStatusRequest{PodSandboxId: pod})
	if err != nil {
		t.Fatal(err)
	}
	if u := st.Status.Linux.Namespaces.Options.UsernsOptions; u.GetMode() != v1.NamespaceMode_POD || len(u.Uids) != 1 || u.Uids[0].HostId != firstID || u.Gids[0].Length != 65536 {
		t.Errorf("the sandbox says of its user namespace: %v", u)
	}
	look := func(name string, change func(*v1.ContainerConfig), what ...string) string {
		t.Helper()
		return c.look(t, pod, name, change, what...)
	}
	got := look("in", func(cc *v1.ContainerConfig) {
		cc.Linux.SecurityContext.NamespaceOptions.UsernsOptions = users(firstID, 65536)
		u := users(firstID, 65536)
		cc.Mounts = []*v1.Mount{{HostPath: volume, ContainerPath: "/volume", UidMappings: u.Uids, GidMappings: u.Gids}}
	}, "/proc/self/uid_map", "/volume/file", "write:/volume/made", "write:/etc/hosts", "write:/dev/shm/made", "write:/made", "write:/dev/stdout",
		"/proc/sys/net/ipv4/ip_unprivileged_port_start", "/proc/sys/kernel/shm_rmid_forced", "write:/proc/1/oom_score_adj", "pid")
	for _, want := range []string{"500000", "from the host", "wrote /volume/made", "wrote /etc/hosts", "wrote /dev/shm/made", "wrote /made", "wrote /dev/stdout", "F 77", "F pid 1\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in\n%s", want, got)
		}
	}
	// What it made in the volume belongs to the host's root, as everything in there.
	fi, err := os.Stat(volume + "/made")
	if err != nil || fi.Sys().(*syscall.Stat_t).Uid != 0 {
		t.Errorf("the file in the volume: %v %v", fi, err)
	}
	if got := look("shared-pid", func(cc *v1.ContainerConfig) { cc.Linux.SecurityContext.NamespaceOptions.Pid = v1.NamespaceMode_POD }, "pid", "/proc/self/uid_map"); !strings.Contains(got, "500000") {
		t.Errorf("in the pod's PID namespace: %s", got)
	}
	// On the host its processes are who the mapping says.
	id := c.start(t, pod, criContainer("runs", "sleep"))
	full, err := c.ContainerStatus(deadline(t), &v1.ContainerStatusRequest{ContainerId: id, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	_, text, _ := strings.Cut(full.Info["info"], `"pid":`)
	var pid int
	fmt.Sscan(text, &pid)
	if fi, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err != nil || fi.Sys().(*syscall.Stat_t).Uid != firstID {
		t.Errorf("process %d: %v %v", pid, fi, err)
	}
	x, err := c.ExecSync(deadline(t), &v1.ExecSyncRequest{ContainerId: id, Cmd: []string{"/bin/tool", "show", "/proc/self/uid_map"}})
	if err != nil || !strings.Contains(string(x.Stdout), "500000") {
		t.Errorf("exec: %v %v", x, err)
	}

	// It survives the daemon.
	n.kill()
	n.start()
	if got := look("after", func(*v1.ContainerConfig) {}, "/proc/self/uid_map"); !strings.Contains(got, "500000") {
		t.Errorf("after a restart of the daemon: %s", got)
	}

	other := criContainer("other")
	other.Linux.SecurityContext.NamespaceOptions.UsernsOptions = users(700000, 65536)
	_, err = c.CreateContainer(deadline(t), &v1.CreateContainerRequest{PodSandboxId: pod, Config: other})
	wantCode(t, err, codes.InvalidArgument, "mappings are not the pod's")
	c.remove(t, pod)
}

// badUsers: what a user namespace cannot be.
func badUsers(t *testing.T, c *client) {
	two := []*v1.IDMapping{{HostId: 1000, Length: 10}, {HostId: 2000, Length: 10}}
	one := []*v1.IDMapping{{ContainerId: 1, HostId: 1000, Length: 10}}
	for text, u := range map[string]*v1.UserNamespace{
		"exactly one":         {Mode: v1.NamespaceMode_POD, Uids: two, Gids: two},
		"id 0 must be mapped": {Mode: v1.NamespaceMode_POD, Uids: one, Gids: one},
		"has 0 ranges":        {Mode: v1.NamespaceMode_POD},
		"mode CONTAINER":      {Mode: v1.NamespaceMode_CONTAINER},
		"mode TARGET":         {Mode: v1.NamespaceMode_TARGET},
		"cannot have":         {Mode: v1.NamespaceMode_NODE, Uids: one},
		"empty or too long":   users(4294967000, 65536),
	} {
		conf := c.sandbox()
		conf.Linux.SecurityContext.NamespaceOptions.UsernsOptions = u
		_, err := c.RunPodSandbox(deadline(t), &v1.RunPodSandboxRequest{Config: conf})
		wantCode(t, err, codes.InvalidArgument, text)
	}
	conf := c.sandbox()
	conf.Linux.SecurityContext.NamespaceOptions = &v1.NamespaceOption{UsernsOptions: users(firstID, 65536), Network: v1.NamespaceMode_NODE}
	_, err := c.RunPodSandbox(deadline(t), &v1.RunPodSandboxRequest{Config: conf})
	wantCode(t, err, codes.InvalidArgument, "of the pod's own")
}
