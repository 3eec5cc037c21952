package e2e

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

const probePods = `
apiVersion: v1
kind: Pod
metadata: {name: ready}
spec:
  terminationGracePeriodSeconds: 1
  volumes: [{name: ctl, emptyDir: {medium: Memory}}]
  containers:
    - name: http
      image: localhost/tool:1
      args: [health, http, "8001", /ctl/up]
      volumeMounts: &ctl [{name: ctl, mountPath: /ctl}]
      ports: [{name: web, containerPort: 8001}]
      readinessProbe: {httpGet: {port: web, path: /, httpHeaders: [{name: X-Probe, value: "yes"}]}, periodSeconds: 1, failureThreshold: 1}
    - name: tcp
      image: localhost/tool:1
      args: [health, tcp, "8002", /ctl/up]
      volumeMounts: *ctl
      readinessProbe: {tcpSocket: {port: 8002}, periodSeconds: 1, failureThreshold: 1}
    - name: grpc
      image: localhost/tool:1
      args: [health, grpc, "8003", /ctl/up]
      volumeMounts: *ctl
      readinessProbe: {grpc: {port: 8003, service: app}, periodSeconds: 1, failureThreshold: 1}
    - name: exec
      image: localhost/tool:1
      args: [sleep]
      volumeMounts: *ctl
      readinessProbe: {exec: {command: [/bin/tool, exists, /ctl/up]}, periodSeconds: 1, failureThreshold: 1}
    - name: late
      image: localhost/tool:1
      args: [sleep]
      volumeMounts: *ctl
      readinessProbe: {exec: {command: [/bin/tool, exists, /ctl/up]}, periodSeconds: 1, initialDelaySeconds: 600}
---
apiVersion: v1
kind: Pod
metadata: {name: lively}
spec:
  terminationGracePeriodSeconds: 60
  volumes: [{name: ctl, emptyDir: {}}]
  containers:
    - name: main
      image: localhost/tool:1
      args: [stubborn]
      volumeMounts: [{name: ctl, mountPath: /ctl}]
      startupProbe: {exec: {command: [/bin/tool, exists, /ctl/started]}, periodSeconds: 1, failureThreshold: 600}
      livenessProbe: {exec: {command: [/bin/tool, exists, /ctl/alive]}, periodSeconds: 1, failureThreshold: 1, terminationGracePeriodSeconds: 1}
---
apiVersion: v1
kind: Pod
metadata: {name: startless}
spec:
  restartPolicy: Never
  containers:
    - name: main
      image: localhost/tool:1
      args: [sleep]
      startupProbe: {exec: {command: [/bin/tool, exists, /nothing]}, periodSeconds: 1, failureThreshold: 2}
`

func TestProbes(t *testing.T) {
	n, _ := podsNode(t, probePods)
	t.Run("readiness", func(t *testing.T) {
		n.becomes("ready", "running", running)
		if p := n.pod("ready"); readyContainers(p) != 0 {
			t.Errorf("%d are ready before they are well", readyContainers(p))
		}
		n.tool("ready", "exec", "touch", "/ctl/up")
		n.becomes("ready", "ready, all but the late one", func(p corev1.Pod) bool { return readyContainers(p) == 4 })
		n.tool("ready", "exec", "rm", "/ctl/up")
		p := n.becomes("ready", "unready", func(p corev1.Pod) bool { return readyContainers(p) == 0 })
		for _, c := range p.Status.ContainerStatuses {
			if c.RestartCount != 0 {
				t.Errorf("%s was started again for not being ready", c.Name)
			}
		}
		n.wants("events", n.orlop("events", "ready"), "readiness probe failed: HTTP status 503", "NOT_SERVING", "connection refused", "the command ended with 1")
	})
	t.Run("startup and liveness", func(t *testing.T) {
		first := n.becomes("lively", "running", running)
		time.Sleep(1500 * time.Millisecond) // a liveness probe that ran before the startup probe has passed would have failed by now
		if c := container(n.pod("lively"), "main"); c.RestartCount != 0 || *c.Started || c.Ready {
			t.Errorf("before its startup probe passed: %+v", c)
		}
		n.tool("lively", "main", "touch", "/ctl/alive")
		n.tool("lively", "main", "touch", "/ctl/started")
		n.becomes("lively", "ready", func(p corev1.Pod) bool { return readyContainers(p) == 1 })
		n.tool("lively", "main", "rm", "/ctl/alive")
		// It ignores SIGTERM: only the probe's own grace, not the pod's minute, ends it so soon.
		begin := time.Now()
		p := n.becomes("lively", "started again", func(p corev1.Pod) bool { return container(p, "main").RestartCount == 1 && running(p) })
		if d := time.Since(begin); d > 15*time.Second {
			t.Errorf("that took %s", d)
		}
		c := container(p, "main")
		if l := c.LastTerminationState.Terminated; l == nil || l.ExitCode != 137 || c.ContainerID == container(first, "main").ContainerID {
			t.Errorf("%+v", c)
		}
		// Dead again at once: now it has to wait.
		c = container(n.becomes("lively", "backing off", func(p corev1.Pod) bool {
			w := container(p, "main").State.Waiting
			return w != nil && w.Reason == "CrashLoopBackOff"
		}), "main")
		if c.RestartCount != 1 || !strings.Contains(c.State.Waiting.Message, "back-off ") {
			t.Errorf("%+v", c)
		}
		n.wants("events", n.orlop("events", "lively"), "liveness probe failed", "back-off restarting")
	})
	t.Run("startup never", func(t *testing.T) {
		p := n.becomes("startless", "failed", func(p corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
		if s := container(p, "main").State.Terminated; s == nil || s.ExitCode != 143 && s.ExitCode != 2 {
			t.Errorf("%+v", p.Status)
		}
		n.wants("events", n.orlop("events", "startless"), "startup probe failed")
	})
}

// ------------------------------------------------------ beginning and end
