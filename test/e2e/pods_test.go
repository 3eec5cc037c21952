package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// podsNode is a node with the tool's image. The manifests are applied with DIR standing
// for a directory of the host that is returned.
func podsNode(t *testing.T, manifests ...string) (n *node, dir string) {
	t.Helper()
	n = newNode(t)
	n.packTool()
	dir = t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	n.applyText(strings.ReplaceAll(strings.Join(manifests, "\n---\n"), "DIR", dir))
	return n, dir
}

func (n *node) applyText(manifest string) {
	n.t.Helper()
	if _, err := n.feed(manifest, "apply", "-f", "-"); err != nil {
		n.t.Fatal(err)
	}
}

// pod returns a pod as Kubernetes would show it.
func (n *node) pod(name string) (p corev1.Pod) {
	n.t.Helper()
	var msg struct{ Object json.RawMessage }
	n.json(&msg, "inspect", "pod", name)
	if err := json.Unmarshal(msg.Object, &p); err != nil {
		n.t.Fatal(err)
	}
	return p
}

// container returns a container's status.
func container(p corev1.Pod, name string) corev1.ContainerStatus {
	for _, l := range [][]corev1.ContainerStatus{p.Status.InitContainerStatuses, p.Status.ContainerStatuses} {
		for _, c := range l {
			if c.Name == name {
				return c
			}
		}
	}
	return corev1.ContainerStatus{}
}

// becomes waits until the pod is as ok says.
func (n *node) becomes(pod, what string, ok func(corev1.Pod) bool) corev1.Pod {
	n.t.Helper()
	var p corev1.Pod
	n.eventually(30*time.Second, func() error {
		if p = n.pod(pod); !ok(p) {
			raw, _ := json.MarshalIndent(p.Status, "", " ")
			return fmt.Errorf("pod %s: not %s: %s", pod, what, raw)
		}
		return nil
	})
	return p
}

func running(p corev1.Pod) bool {
	for _, c := range p.Status.ContainerStatuses {
		if c.State.Running == nil {
			return false
		}
	}
	return len(p.Status.ContainerStatuses) > 0
}

func readyContainers(p corev1.Pod) (n int) {
	for _, c := range p.Status.ContainerStatuses {
		if c.Ready {
			n++
		}
	}
	return n
}

// tool runs the tool in a container and returns what it says.
func (n *node) tool(pod, container string, args ...string) string {
	n.t.Helper()
	return n.orlop(append([]string{"exec", pod, "-c", container, "--", "/bin/tool"}, args...)...)
}

func (n *node) wants(what, text string, parts ...string) {
	n.t.Helper()
	for _, p := range parts {
		if !strings.Contains(text, p) {
			n.t.Errorf("%s: %q is not in:\n%s", what, p, text)
		}
	}
}

// --------------------------------------------------------------- probes
