package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

const ownUsersPod = `apiVersion: v1
kind: ConfigMap
metadata: {name: conf}
data: {colour: blue}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: data}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 64Mi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: own}
spec:
  hostUsers: false
  terminationGracePeriodSeconds: 1
  securityContext: {fsGroup: 2000, sysctls: [{name: net.ipv4.ip_unprivileged_port_start, value: "77"}]}
  initContainers:
  - {name: first, image: "localhost/tool:1", args: [append, /host/notes, first], volumeMounts: [{name: host, mountPath: /host}]}
  containers:
  - name: root
    image: localhost/tool:1
    args: [sleep]
    readinessProbe: {exec: {command: [/bin/tool, exists, /conf/colour]}, periodSeconds: 1}
    volumeMounts: &mounts
    - {name: host, mountPath: /host}
    - {name: data, mountPath: /data}
    - {name: memory, mountPath: /memory}
    - {name: disk, mountPath: /disk}
    - {name: small, mountPath: /small}
    - {name: conf, mountPath: /conf}
    - {name: disk, mountPath: /sub, subPath: below}
  - name: user
    image: localhost/tool:1
    args: [sleep]
    securityContext: {runAsUser: 1000, runAsGroup: 1000}
    volumeMounts: *mounts
  volumes:
  - {name: host, hostPath: {path: DIR}}
  - {name: data, persistentVolumeClaim: {claimName: data}}
  - {name: memory, emptyDir: {medium: Memory}}
  - {name: disk, emptyDir: {}}
  - {name: small, emptyDir: {sizeLimit: 16Mi}}
  - {name: conf, configMap: {name: conf}}
`

const otherUsersPod = `apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  hostUsers: false
  shareProcessNamespace: true
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: "localhost/tool:1", args: [sleep]}]
`

// firstOfPods is where the ids of applied pods' user namespaces begin unless the configuration says otherwise.
const firstOfPods = 0x7000_0000

// hostIDs are the user and the group that a container's process has on the host.
func (n *node) hostIDs(pod, container string) (uid, gid uint32, pid int) {
	n.t.Helper()
	var full struct {
		Containers []struct {
			Name string
			PID  int `json:"pid"`
		}
	}
	n.json(&full, "inspect", "pod", pod)
	for _, c := range full.Containers {
		if c.Name == container {
			fi, err := os.Stat(fmt.Sprintf("/proc/%d", c.PID))
			if err != nil {
				n.t.Fatal(err)
			}
			st := fi.Sys().(*syscall.Stat_t)
			return st.Uid, st.Gid, c.PID
		}
	}
	n.t.Fatalf("pod %s has no container %s: %+v", pod, container, full)
	return 0, 0, 0
}

// insideOwnUsers looks into ownUsersPod, whose host's directory is dir, and returns who its root is on the
// host, and a process of it.
func insideOwnUsers(n *node, dir string) (own uint32, pid int) {
	n.t.Helper()
	own, _, pid = n.hostIDs("own", "root")
	if own < firstOfPods || own%65536 != 0 {
		n.t.Errorf("root of the pod is %d on the host", own)
	}
	if uid, gid, _ := n.hostIDs("own", "user"); uid != own+1000 || gid != own+1000 {
		n.t.Errorf("user 1000 is %d:%d on the host", uid, gid)
	}

	// Inside: every volume is its own, and what it writes to the host's is the host's root's.
	paths := []string{"/data", "/memory", "/disk", "/small", "/sub"}
	var writes []string
	for _, p := range append(paths, "/host", "/dev/shm", "/etc") {
		writes = append(writes, "write:"+p+"/made")
	}
	got := n.tool("own", "root", append([]string{"look", "/conf/colour", "/proc/self/uid_map", "/proc/sys/net/ipv4/ip_unprivileged_port_start", "write:/etc/hosts", "write:/dev/termination-log"}, writes...)...)
	n.wants("inside, root", got, "blue", fmt.Sprint(own), "77", "wrote /etc/hosts", "wrote /dev/termination-log", "wrote /host/made", "wrote /dev/shm/made", "wrote /etc/made")
	byUser := []string{"look"}
	for _, p := range paths {
		n.wants("inside, root", got, "wrote "+p+"/made")
		byUser = append(byUser, "write:"+p+"/by-user") // by fsGroup
	}
	got = n.tool("own", "user", byUser...)
	for _, p := range paths {
		n.wants("inside, user", got, "wrote "+p+"/by-user")
	}
	for name, want := range map[string]uint32{"notes": 0, "made": 0} {
		fi, err := os.Stat(filepath.Join(dir, name))
		if err != nil || fi.Sys().(*syscall.Stat_t).Uid != want {
			n.t.Errorf("owner of the host's %s: %+v %v, want %d", name, fi, err, want)
		}
	}
	return own, pid
}

// A pod with hostUsers: false is root, and who it likes, over what is its own, and nobody on the host.
func TestPodUserNamespace(t *testing.T) {
	n, dir := podsNode(t, ownUsersPod, fmt.Sprintf(otherUsersPod, "other"))
	n.becomes("own", "ready", func(p corev1.Pod) bool { return readyContainers(p) == 2 })
	n.becomes("other", "running", running)
	if u := n.pod("own").Spec.HostUsers; u == nil || *u {
		t.Errorf("hostUsers as it is shown: %v", u)
	}

	own, pid := insideOwnUsers(n, dir)
	other, _, _ := n.hostIDs("other", "main")
	if other < firstOfPods || own == other || other%65536 != 0 {
		t.Errorf("root of the pods is %d and %d on the host", own, other)
	}
	// What is copied in is its root's.
	file := n.write(filepath.Join(t.TempDir(), "file"), "copied\n")
	n.orlop("cp", file, "own:/tmp-file", "-c", "root")
	inside := fmt.Sprintf("/proc/%d/root/tmp-file", pid)
	fi, err := os.Stat(inside)
	if err != nil {
		t.Fatal(err)
	}
	copied := fi.Sys().(*syscall.Stat_t)
	n.wants("the copy, inside", n.tool("own", "root", "look", "/tmp-file"), "copied")
	back := filepath.Join(t.TempDir(), "back")
	n.orlop("cp", "own:/tmp-file", back, "-c", "root")
	if b, err := os.ReadFile(back); err != nil || string(b) != "copied\n" || copied.Uid != own || copied.Gid != own {
		t.Errorf("copied back: %q %v; its owner was %d on the host", b, err, copied.Uid)
	}

	// The ids stay a pod's while it is there, also for a daemon that starts anew, and are free afterwards.
	n.kill()
	n.start()
	n.applyText(fmt.Sprintf(otherUsersPod, "third"))
	n.becomes("third", "running", running)
	third, _, _ := n.hostIDs("third", "main")
	if again, _, _ := n.hostIDs("own", "root"); again != own || third == own || third == other {
		t.Errorf("after a restart root of the pods is %d, %d and %d; before %d", again, other, third, own)
	}
	n.orlop("delete", "pod", "own", "other", "third")
	n.applyText(fmt.Sprintf(otherUsersPod, "fourth"))
	n.becomes("fourth", "running", running)
	if fourth, _, _ := n.hostIDs("fourth", "main"); fourth != firstOfPods {
		t.Errorf("the first range is free, and the pod has %d", fourth)
	}
}

// What a user namespace cannot have is told.
func TestPodUserNamespaceErrors(t *testing.T) {
	n, _ := podsNode(t, strings.Replace(fmt.Sprintf(otherUsersPod, "far"), "shareProcessNamespace: true", "securityContext: {runAsUser: 70000}", 1))
	n.becomes("far", "refused with the user's id", func(p corev1.Pod) bool {
		w := container(p, "main").State.Waiting
		return w != nil && w.Reason == "CreateContainerConfigError" && strings.Contains(w.Message, "user 70000 is not among the ids")
	})
	for _, more := range []string{"hostNetwork: true", "hostPID: true", "hostIPC: true"} {
		_, err := n.feed(strings.Replace(fmt.Sprintf(otherUsersPod, "host"), "shareProcessNamespace: true", more, 1), "apply", "-f", "-")
		if err == nil || !strings.Contains(err.Error(), "spec.hostUsers: cannot be false together with hostNetwork") {
			t.Errorf("hostUsers: false with %s: %v", more, err)
		}
	}
}
