package e2e

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
)

const namespacePods = `
apiVersion: v1
kind: Pod
metadata: {name: apart}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - {name: a, image: "localhost/tool:1", args: [sleep]}
    - {name: b, image: "localhost/tool:1", args: [sleep]}
---
apiVersion: v1
kind: Pod
metadata: {name: together}
spec:
  terminationGracePeriodSeconds: 1
  shareProcessNamespace: true
  containers:
    - {name: a, image: "localhost/tool:1", args: [sleep, of-a]}
    - {name: b, image: "localhost/tool:1", args: [sleep, of-b]}
---
apiVersion: v1
kind: Pod
metadata: {name: host}
spec:
  terminationGracePeriodSeconds: 1
  hostNetwork: true
  hostPID: true
  hostIPC: true
  containers: [{name: a, image: "localhost/tool:1", args: [sleep]}]
`

func TestNamespaces(t *testing.T) {
	n, _ := podsNode(t, namespacePods)
	for _, p := range []string{"apart", "together", "host"} {
		n.becomes(p, "running", running)
	}
	of := func(pod, container string) map[string]string {
		t.Helper()
		m := map[string]string{}
		for line := range strings.FieldsSeq(n.tool(pod, container, "namespaces")) {
			kind, _, _ := strings.Cut(line, ":")
			m[kind] = line
		}
		return m
	}
	ours := map[string]string{}
	for _, kind := range []string{"net", "pid", "ipc", "uts", "mnt"} {
		// The node's network namespace stands for the host's.
		out, err := exec.Command("nsenter", "--net="+n.netns, "readlink", "/proc/self/ns/"+kind).Output()
		if err != nil {
			t.Fatal(err)
		}
		ours[kind] = strings.TrimSpace(string(out))
	}
	for _, tt := range []struct{ pod, same, differ, host string }{
		{"apart", "net ipc uts", "pid mnt", ""},
		{"together", "net ipc uts pid", "mnt", ""},
		{"host", "", "", "net pid ipc uts"},
	} {
		a := of(tt.pod, "a")
		b := a
		if tt.host == "" {
			b = of(tt.pod, "b")
		}
		for _, kind := range strings.Fields(tt.same) {
			if a[kind] == "" || a[kind] != b[kind] {
				t.Errorf("pod %s: the containers do not share %s: %s, %s", tt.pod, kind, a[kind], b[kind])
			}
		}
		for _, kind := range strings.Fields(tt.differ) {
			if a[kind] == b[kind] {
				t.Errorf("pod %s: the containers share %s", tt.pod, kind)
			}
		}
		for kind, host := range ours {
			if is := a[kind] == host; is != strings.Contains(tt.host, kind) {
				t.Errorf("pod %s: has the host's %s: %v", tt.pod, kind, is)
			}
		}
	}
	n.wants("together", n.tool("together", "a", "processes"), "/bin/tool sleep of-a", "/bin/tool sleep of-b")
	if out := n.tool("together", "a", "processes"); strings.Contains(out, "1 /bin/tool") && strings.HasPrefix(out, "1 /bin/tool") {
		t.Errorf("a container is process 1 of the others:\n%s", out)
	}
	if out := n.tool("apart", "a", "processes"); strings.Count(out, "\n") != 2 { // itself, and who asks
		t.Errorf("it sees others:\n%s", out)
	}
	n.wants("host", n.tool("host", "a", "processes"), strconv.Itoa(os.Getpid())+" ")
	// With the host's network a pod has the host's name, addresses and none of its own.
	if p := n.pod("host"); p.Status.PodIP != "" && p.Status.PodIP != n.uplink {
		t.Errorf("a pod on the host's network has the address %s", p.Status.PodIP)
	}
}
