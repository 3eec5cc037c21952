package e2e

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop-io/orlop/test/kubelet"
)

// kubeletNode is a node whose pods a real kubelet leads, in stand-alone mode: they are the
// manifests in a directory.
type kubeletNode struct {
	*node
	c      *client // the CRI beside kubelet, to look at what it does
	binary string
	home   string   // everything of kubelet's
	groups []string // kubelet's root, in each hierarchy
	// sysctls are the machine's before kubelet started.
	sysctls map[string]string
	cmd     *exec.Cmd
	exited  chan error
	api     *http.Client
}

// kubeletSysctls are what kubelet sets for the whole machine, and what to.
var kubeletSysctls = map[string]string{
	"vm/overcommit_memory": "1", "vm/panic_on_oom": "0", "kernel/panic": "10", "kernel/panic_on_oops": "1",
	"kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000",
}

// besideTheMachine runs kubelet in a mount namespace where ordinary files, those in the directory $0, lie
// over these sysctls: what it sets does not reach the machine, however the test ends. /proc becomes private first, or
// a host with shared mounts would get the files too.
const besideTheMachine = `mount --make-rprivate /proc
cd "$0"
for f in */* */*/*; do [ -d "$f" ] || mount --bind "$f" "/proc/sys/$f"; done
cd /
exec "$@"`

// kubeletPaths are what kubelet makes beside its directory, whatever it is told.
var kubeletPaths = []string{"/var/lib/kubelet", "/var/log/containers"}

// newKubeletNode makes a node and starts a kubelet on it.
func newKubeletNode(t *testing.T) *kubeletNode {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	defer cancel()
	binary, err := kubelet.Binary(ctx)
	if errors.Is(err, kubelet.ErrNotBuilt) {
		t.Skip(err) // test/run.sh tells
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range kubeletPaths {
		if _, err := os.Stat(p); err == nil {
			t.Fatalf("%s exists: another kubelet is, or was, on this machine; these tests would disturb it", p)
		}
	}
	k := &kubeletNode{binary: binary, sysctls: make(map[string]string)}
	t.Cleanup(func() { k.sweep(t) }) // runs last
	k.node = newNode(t)
	k.home = "/var/lib/kubelet-" + k.name
	for _, d := range []string{"manifests", "logs", "pki", "notes"} {
		if err := os.MkdirAll(filepath.Join(k.home, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// What kubelet mounts in its directory is seen here too.
	if err := errors.Join(unix.Mount(k.home, k.home, "", unix.MS_BIND, ""), unix.Mount("", k.home, "", unix.MS_SHARED, "")); err != nil {
		t.Fatal(err)
	}
	k.makeGroups()
	k.coverSysctls()
	k.write(k.home+"/resolv.conf", "nameserver 10.0.0.53\n")
	k.configure("0%")
	k.api = &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DialContext: dialIn(k.netns),
	}}
	k.c = k.cri()
	t.Cleanup(k.end)
	k.startKubelet()
	k.checkSysctls()
	return k
}

// configure writes kubelet's configuration. It is short of disk where less than the share free is available.
func (k *kubeletNode) configure(free string) {
	k.t.Helper()
	k.write(k.home+"/config.yaml", fmt.Sprintf(`
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
staticPodPath: %[1]s/manifests
podLogsDir: %[1]s/logs
volumePluginDir: %[1]s/plugins
containerRuntimeEndpoint: unix://%[2]s/cri.sock
address: 127.0.0.1
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
resolvConf: %[1]s/resolv.conf
cgroupDriver: cgroupfs
cgroupRoot: /kubelet-%[3]s
failCgroupV1: false
failSwapOn: false
enforceNodeAllocatable: []
oomScoreAdj: 0
makeIPTablesUtilChains: false
evictionHard: {memory.available: 0%%, nodefs.available: "%[4]s", nodefs.inodesFree: 0%%, imagefs.available: "%[4]s", imagefs.inodesFree: 0%%}
imageGCHighThresholdPercent: 100
imageMinimumGCAge: 1ns
containerLogMaxSize: 2Ki
containerLogMonitorInterval: 3s
volumeStatsAggPeriod: 2s
`, k.home, k.run, k.name, free))
}

// coverSysctls makes the files that kubelet sees in place of the machine's sysctls.
func (k *kubeletNode) coverSysctls() {
	k.t.Helper()
	for name := range kubeletSysctls {
		file := filepath.Join(k.home, "sysctl", name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			k.t.Fatal(err)
		}
		now, err := os.ReadFile("/proc/sys/" + name)
		if err != nil {
			k.t.Fatal(err)
		}
		k.write(file, string(now))
		k.sysctls[name] = string(now)
	}
}

// checkSysctls waits until kubelet has set what lies over the sysctls, and tells whether the machine's are as they were.
func (k *kubeletNode) checkSysctls() {
	k.t.Helper()
	k.soon(20*time.Second, func() error {
		for name, want := range kubeletSysctls {
			covered, err := os.ReadFile(filepath.Join(k.home, "sysctl", name))
			if err != nil || strings.TrimSpace(string(covered)) != want {
				return fmt.Errorf("kubelet has not set %s to %s, where it sees it: %q %v", name, want, covered, err)
			}
		}
		return nil
	})
	for name, was := range k.sysctls {
		if now, err := os.ReadFile("/proc/sys/" + name); err != nil || string(now) != was {
			k.t.Errorf("the machine's %s was %q and is %q: %v", name, was, now, err)
		}
	}
}

const kubeletAPI = "https://127.0.0.1:10250"

func (k *kubeletNode) startKubelet() {
	k.t.Helper()
	log, err := os.OpenFile(k.home+"/log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		k.t.Fatal(err)
	}
	defer log.Close()
	k.cmd = k.command(context.Background(), "unshare", "--mount", "--propagation", "unchanged", "sh", "-ec", besideTheMachine, k.home+"/sysctl",
		k.binary, "--config", k.home+"/config.yaml", "--root-dir", k.home+"/root", "--cert-dir", k.home+"/pki",
		"--hostname-override", "node", "--node-ip", k.uplink, "--v", "2")
	k.cmd.Stdout, k.cmd.Stderr = log, log
	if err := k.cmd.Start(); err != nil {
		k.t.Fatal(err)
	}
	k.exited = make(chan error, 1)
	go func(cmd *exec.Cmd, exited chan error) { exited <- cmd.Wait() }(k.cmd, k.exited)
	k.soon(60*time.Second, func() error {
		select {
		case err := <-k.exited:
			k.exited <- err
			k.t.Fatalf("kubelet ended: %v\n%s", err, k.kubeletLog())
		default:
		}
		_, err := k.get("/healthz")
		return err
	})
}

// killKubelet ends it as the kernel would when memory is short.
func (k *kubeletNode) killKubelet() {
	k.cmd.Process.Kill()
	<-k.exited
	k.exited <- nil
}

// soon is eventually, with the kubelet's log where it fails.
func (k *kubeletNode) soon(d time.Duration, ok func() error) {
	k.t.Helper()
	deadline := time.Now().Add(d)
	for {
		err := ok()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			k.t.Fatalf("not within %s: %v\n%s\n%s", d, err, k.kubeletLog(), k.tail())
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (k *kubeletNode) kubeletLog() string {
	raw, _ := os.ReadFile(k.home + "/log")
	lines := strings.Split(strings.TrimSpace(string(raw)), "\n")
	return "kubelet's log:\n  " + strings.Join(lines[max(0, len(lines)-40):], "\n  ")
}

// get asks the kubelet's API.
func (k *kubeletNode) get(path string) (string, error) {
	resp, err := k.api.Get(kubeletAPI + path)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("GET %s: %s: %s", path, resp.Status, b)
	}
	return string(b), err
}

// pod returns a pod as kubelet sees it.
func (k *kubeletNode) pod(name string) (*corev1.Pod, error) {
	text, err := k.get("/pods")
	if err != nil {
		return nil, err
	}
	var list corev1.PodList
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		return nil, err
	}
	for i := range list.Items {
		if list.Items[i].Name == name+"-node" {
			return &list.Items[i], nil
		}
	}
	return nil, fmt.Errorf("kubelet has no pod %s", name)
}

// container is one container's part of a pod's status.
func (k *kubeletNode) container(pod, name string) (corev1.ContainerStatus, error) {
	p, err := k.pod(pod)
	if err != nil {
		return corev1.ContainerStatus{}, err
	}
	for _, st := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
		if st.Name == name {
			return st, nil
		}
	}
	return corev1.ContainerStatus{}, fmt.Errorf("pod %s has no status of %s: %s %s", pod, name, p.Status.Phase, p.Status.Message)
}

// is waits until a container's status is as fn wants it; fn tells what is wrong.
func (k *kubeletNode) is(d time.Duration, pod, name string, fn func(corev1.ContainerStatus) bool) (st corev1.ContainerStatus) {
	k.t.Helper()
	k.soon(d, func() (err error) {
		if st, err = k.container(pod, name); err == nil && !fn(st) {
			err = fmt.Errorf("container %s of %s: ready %v, restarts %d, state %+v, last %+v", name, pod, st.Ready, st.RestartCount, st.State, st.LastTerminationState)
		}
		return err
	})
	return st
}

func ready(st corev1.ContainerStatus) bool { return st.Ready }

// apply gives kubelet the manifests of these names.
func (k *kubeletNode) apply(names ...string) {
	k.t.Helper()
	for _, name := range names {
		raw, err := os.ReadFile("testdata/kubelet/" + name + ".yaml")
		if err != nil {
			k.t.Fatal(err)
		}
		// kubelet reads whatever is there, also half a file, but nothing with a dot first.
		tmp := k.write(k.home+"/manifests/."+name, strings.ReplaceAll(string(raw), "${NOTES}", k.home+"/notes"))
		if err := os.Rename(tmp, k.home+"/manifests/"+name+".yaml"); err != nil {
			k.t.Fatal(err)
		}
	}
}

func (k *kubeletNode) withdraw(name string) {
	k.t.Helper()
	if err := os.Remove(k.home + "/manifests/" + name + ".yaml"); err != nil {
		k.t.Fatal(err)
	}
}

func (k *kubeletNode) notes(name string) string {
	raw, _ := os.ReadFile(k.home + "/notes/" + name)
	return string(raw)
}

// pids are the processes of the containers that run, by "pod/container".
func (k *kubeletNode) pids() map[string]int {
	k.t.Helper()
	running := &v1.ContainerFilter{State: &v1.ContainerStateValue{State: v1.ContainerState_CONTAINER_RUNNING}}
	list, err := k.c.ListContainers(deadline(k.t), &v1.ListContainersRequest{Filter: running})
	if err != nil {
		k.t.Fatal(err)
	}
	pids := make(map[string]int)
	for _, c := range list.Containers {
		st, err := k.c.ContainerStatus(deadline(k.t), &v1.ContainerStatusRequest{ContainerId: c.Id, Verbose: true})
		if err != nil {
			continue // it has just been removed
		}
		var info struct{ PID int }
		if err := json.Unmarshal([]byte(st.Info["info"]), &info); err != nil {
			k.t.Fatal(err)
		}
		pids[strings.TrimSuffix(c.Labels["io.kubernetes.pod.name"], "-node")+"/"+c.Metadata.Name] = info.PID
	}
	return pids
}

// end ends the kubelet and its pods, however far the test came.
func (k *kubeletNode) end() {
	if k.cmd != nil {
		k.killKubelet()
	}
	if k.c != nil && k.alive() {
		list, err := k.c.ListPodSandbox(deadline(k.t), &v1.ListPodSandboxRequest{})
		for _, s := range list.GetItems() {
			if _, err = k.c.RemovePodSandbox(deadline(k.t), &v1.RemovePodSandboxRequest{PodSandboxId: s.Id}); err != nil {
				break
			}
		}
		if err != nil {
			k.t.Errorf("remove kubelet's pods: %v", err)
		}
	}
	if k.t.Failed() {
		if raw, err := os.ReadFile(k.home + "/log"); err == nil {
			os.WriteFile(filepath.Join(os.TempDir(), "kubelet-"+k.name+".log"), raw, 0o644)
			k.t.Logf("kubelet's log is in %s", filepath.Join(os.TempDir(), "kubelet-"+k.name+".log"))
		}
	}
}

// sweep removes what kubelet leaves: mounts of volumes, groups, links to logs.
func (k *kubeletNode) sweep(t *testing.T) {
	if k.home == "" {
		return
	}
	raw, _ := os.ReadFile("/proc/self/mountinfo")
	lines := strings.Split(string(raw), "\n")
	slices.Reverse(lines)
	for _, line := range lines {
		if f := strings.Fields(line); len(f) > 4 && (f[4] == k.home || strings.HasPrefix(f[4], k.home+"/")) {
			if err := unix.Unmount(f[4], unix.UMOUNT_NOFOLLOW); err != nil {
				t.Errorf("unmount %s: %v", f[4], err)
				return
			}
		}
	}
	for _, p := range append(kubeletPaths, k.home) {
		if err := os.RemoveAll(p); err != nil {
			t.Error(err)
		}
	}
	for _, dir := range k.groups {
		var all []string
		filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				all = append(all, path)
			}
			return nil
		})
		for _, d := range slices.Backward(all) {
			if err := unix.Rmdir(d); err != nil && !errors.Is(err, os.ErrNotExist) {
				t.Errorf("remove %s: %v", d, err)
			}
		}
	}
}

// makeGroups makes the group below which kubelet makes those of its pods: it wants it in
// every hierarchy, and on v1 with CPUs and memory nodes filled in.
func (k *kubeletNode) makeGroups() {
	roots := []string{"/sys/fs/cgroup"}
	if _, err := os.Stat(roots[0] + "/cgroup.controllers"); err != nil {
		if roots, err = filepath.Glob("/sys/fs/cgroup/*"); err != nil {
			k.t.Fatal(err)
		}
	}
	for _, root := range roots {
		if _, err := os.Stat(root + "/cgroup.procs"); err != nil {
			continue
		}
		dir := root + "/kubelet-" + k.name
		err := os.Mkdir(dir, 0o755)
		if errors.Is(err, os.ErrExist) { // two names of one hierarchy
			continue
		}
		if err != nil {
			k.t.Fatal(err)
		}
		k.groups = append(k.groups, dir)
		for _, file := range []string{"/cpuset.cpus", "/cpuset.mems"} {
			if have, err := os.ReadFile(dir + file); err != nil || len(strings.TrimSpace(string(have))) > 0 {
				continue
			}
			if above, err := os.ReadFile(root + file); err == nil { // v1: there is no such file at the root of v2
				k.write(dir+file, string(above))
			}
		}
	}
}
