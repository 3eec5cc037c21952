package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/orlop-io/orlop/internal/platform/ext4"
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

const lifePods = `
apiVersion: v1
kind: Pod
metadata: {name: order}
spec:
  os: {name: linux}
  terminationGracePeriodSeconds: 20
  volumes: [{name: dir, hostPath: {path: DIR}}]
  initContainers:
    - {name: init1, image: "localhost/tool:1", args: [append, /dir/order, init1], volumeMounts: &dir [{name: dir, mountPath: /dir}]}
    - {name: side1, image: "localhost/tool:1", restartPolicy: Always, args: [trap, /dir/order, side1, "0"], volumeMounts: *dir,
       startupProbe: {exec: {command: [/bin/tool, exists, /dir/order]}, periodSeconds: 1}}
    - {name: init2, image: "localhost/tool:1", args: [append, /dir/order, init2], volumeMounts: *dir}
    - {name: side2, image: "localhost/tool:1", restartPolicy: Always, args: [trap, /dir/order, side2, "0"], volumeMounts: *dir,
       lifecycle: {postStart: {exec: {command: [/bin/tool, append, /dir/order, side2 hook]}}}}
  containers:
    - name: main
      image: localhost/tool:1
      args: [trap, /dir/order, main, "7"]
      volumeMounts: *dir
      lifecycle:
        stopSignal: SIGUSR1
        preStop: {exec: {command: [/bin/tool, append, /dir/order, main preStop]}}
---
apiVersion: v1
kind: Pod
metadata: {name: stubborn}
spec:
  terminationGracePeriodSeconds: 120
  containers: [{name: main, image: "localhost/tool:1", args: [stubborn]}]
---
apiVersion: v1
kind: Pod
metadata: {name: hooked}
spec:
  restartPolicy: Never
  volumes: [{name: dir, hostPath: {path: DIR}}]
  containers:
    - name: main
      image: localhost/tool:1
      args: [trap, /dir/hooked, main, "0"]
      volumeMounts: [{name: dir, mountPath: /dir}]
      lifecycle: {postStart: {exec: {command: [/bin/tool, exists, /nothing]}}}
---
apiVersion: v1
kind: Pod
metadata: {name: done}
spec:
  restartPolicy: OnFailure
  initContainers: [{name: side, image: "localhost/tool:1", restartPolicy: Always, args: [sleep]}]
  containers: [{name: main, image: "localhost/tool:1", args: [exit, "0"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: again}
spec:
  restartPolicy: OnFailure
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: "localhost/tool:1", args: [exit, "9"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: always}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: "localhost/tool:1", args: [exit, "0"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: sided}
spec:
  terminationGracePeriodSeconds: 1
  volumes: [{name: dir, hostPath: {path: DIR}}]
  initContainers: [{name: side, image: "localhost/tool:1", restartPolicy: Always, args: [exit, "1"]}]
  containers: [{name: main, image: "localhost/tool:1", args: [trap, /dir/sided, main, "0"], volumeMounts: [{name: dir, mountPath: /dir}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: noinit}
spec:
  restartPolicy: Never
  initContainers: [{name: init, image: "localhost/tool:1", args: [exit, "4"], terminationMessagePolicy: FallbackToLogsOnError}]
  containers: [{name: main, image: "localhost/tool:1", args: [sleep]}]
---
apiVersion: v1
kind: Pod
metadata: {name: initagain}
spec:
  terminationGracePeriodSeconds: 1
  initContainers: [{name: init, image: "localhost/tool:1", args: [exit, "4"]}]
  containers: [{name: main, image: "localhost/tool:1", args: [sleep]}]
---
apiVersion: v1
kind: Pod
metadata: {name: deadline}
spec:
  activeDeadlineSeconds: 1
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: "localhost/tool:1", args: [sleep]}]
---
apiVersion: v1
kind: Pod
metadata: {name: hungry}
spec:
  restartPolicy: Never
  containers: [{name: main, image: "localhost/tool:1", args: [eat], resources: {limits: {memory: 32Mi}}}]
---
apiVersion: v1
kind: Pod
metadata: {name: lastwords}
spec:
  restartPolicy: Never
  containers: [{name: main, image: "localhost/tool:1", args: [append, /dev/termination-log, these are my last words]}]
`

func TestLife(t *testing.T) {
	n, dir := podsNode(t, lifePods)
	t.Run("order", func(t *testing.T) {
		n.becomes("order", "ready", func(p corev1.Pod) bool { return readyContainers(p) == 1 })
		n.orlop("delete", "pod", "order")
		raw, err := os.ReadFile(filepath.Join(dir, "order"))
		if err != nil {
			t.Fatal(err)
		}
		const want = "init1\nside1 started\ninit2\nside2 started\nside2 hook\nmain started\n" +
			"main preStop\nmain got user defined signal 1\nside2 got terminated\nside1 got terminated\n"
		got := strings.Replace(string(raw), "side2 hook\nside2 started\n", "side2 started\nside2 hook\n", 1) // side by side
		if got != want {
			t.Errorf("the order was:\n%s\nwant:\n%s", raw, want)
		}
	})
	t.Run("grace", func(t *testing.T) {
		p := n.becomes("stubborn", "running", running)
		n.eventually(10*time.Second, func() error { // it ignores signals only once it has said so
			if !strings.Contains(n.orlop("logs", "stubborn"), "stubborn") {
				return errors.New("not yet")
			}
			return nil
		})
		pid := n.containerPID("stubborn", "main")
		n.orlop("delete", "pod", "stubborn", "--no-wait")
		if code, _, errOut := n.code(nil, "apply", "-f", n.write(filepath.Join(dir, "stubborn.yaml"), "apiVersion: v1\nkind: Pod\nmetadata: {name: stubborn}\nspec: {containers: [{name: main, image: \"localhost/tool:1\"}]}\n")); code != 4 || !strings.Contains(errOut, "being deleted") {
			t.Errorf("apply while it is being deleted: %d %s", code, errOut)
		}
		// A daemon that stops must not cut the grace short; the next one goes on with it.
		n.daemon.Process.Signal(syscall.SIGTERM)
		if !n.waitExit(20 * time.Second) {
			t.Fatal("the daemon waits for the pod's grace")
		}
		if syscall.Kill(pid, 0) != nil {
			t.Error("the container was killed with its daemon")
		}
		n.start()
		if again := n.pod("stubborn"); again.UID != p.UID || again.DeletionTimestamp == nil || syscall.Kill(pid, 0) != nil {
			t.Errorf("after a restart: %+v", again.ObjectMeta)
		}
		// Who asks again may be quicker.
		begin := time.Now()
		n.orlop("delete", "pod", "stubborn", "--grace", "0")
		if d := time.Since(begin); d > 15*time.Second || syscall.Kill(pid, 0) == nil {
			t.Errorf("deleting at once took %s", d)
		}
	})
	t.Run("postStart fails", func(t *testing.T) {
		p := n.becomes("hooked", "failed or done", func(p corev1.Pod) bool {
			return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
		})
		raw, _ := os.ReadFile(filepath.Join(dir, "hooked"))
		if c := container(p, "main"); c.RestartCount != 0 || c.State.Terminated == nil {
			t.Errorf("%+v, %q", c, raw)
		}
		n.wants("events", n.orlop("events", "hooked"), "FailedPostStartHook")
	})
	t.Run("policies", func(t *testing.T) {
		p := n.becomes("done", "succeeded", func(p corev1.Pod) bool { return p.Status.Phase == corev1.PodSucceeded })
		if c := container(p, "side"); c.State.Terminated == nil {
			t.Errorf("the sidecar goes on: %+v", c)
		}
		n.becomes("again", "failing again and again", func(p corev1.Pod) bool {
			c := container(p, "main")
			return c.RestartCount >= 1 && c.State.Waiting != nil && c.State.Waiting.Reason == "CrashLoopBackOff" && c.LastTerminationState.Terminated.ExitCode == 9
		})
		n.becomes("always", "started again", func(p corev1.Pod) bool {
			c := container(p, "main")
			return c.RestartCount >= 1 && c.State.Waiting != nil && c.LastTerminationState.Terminated.Reason == "Completed"
		})
	})
	t.Run("init", func(t *testing.T) {
		p := n.becomes("noinit", "failed", func(p corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
		c := container(p, "init")
		if c.State.Terminated == nil || c.State.Terminated.ExitCode != 4 || !strings.Contains(c.State.Terminated.Message, "to stderr") || container(p, "main").ContainerID != "" {
			t.Errorf("%+v", p.Status)
		}
		p = n.becomes("initagain", "trying again", func(p corev1.Pod) bool { return container(p, "init").RestartCount >= 1 })
		if container(p, "main").ContainerID != "" || p.Status.Phase != corev1.PodPending {
			t.Errorf("%+v", p.Status)
		}
	})
	t.Run("sidecar that fails", func(t *testing.T) {
		// It holds up neither the others' restarts nor, but for being unready, anything else.
		p := n.becomes("sided", "waiting for its sidecar", func(p corev1.Pod) bool {
			w := container(p, "side").State.Waiting
			return w != nil && w.Reason == "CrashLoopBackOff" && running(p)
		})
		before, begin := container(p, "side").RestartCount, time.Now()
		// Process 1 takes everything in its namespace with it, the command that ends it too.
		n.try("exec", "sided", "-c", "main", "--", "/bin/tool", "term", "1")
		p = n.becomes("sided", "running again", func(p corev1.Pod) bool { return container(p, "main").RestartCount == 1 && running(p) })
		if c := container(p, "side"); c.RestartCount != before && time.Since(begin) > 3*time.Second {
			t.Errorf("the main container waited for it: %+v", c)
		}
		for _, c := range p.Status.Conditions {
			if c.Type == corev1.PodReady && c.Status != corev1.ConditionFalse {
				t.Error("the pod is ready without its sidecar")
			}
		}
	})
	t.Run("deadline", func(t *testing.T) {
		p := n.becomes("deadline", "failed", func(p corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
		if p.Status.Reason != "DeadlineExceeded" {
			t.Errorf("%+v", p.Status)
		}
	})
	t.Run("out of memory", func(t *testing.T) {
		p := n.becomes("hungry", "failed", func(p corev1.Pod) bool { return p.Status.Phase == corev1.PodFailed })
		if s := container(p, "main").State.Terminated; s == nil || s.Reason != "OOMKilled" || s.ExitCode != 137 {
			t.Errorf("%+v", s)
		}
	})
	t.Run("last words", func(t *testing.T) {
		p := n.becomes("lastwords", "done", func(p corev1.Pod) bool { return p.Status.Phase == corev1.PodSucceeded })
		if s := container(p, "main").State.Terminated; s == nil || s.Message != "these are my last words\n" || s.Reason != "Completed" {
			t.Errorf("%+v", s)
		}
	})
}

func (n *node) containerPID(pod, container string) int {
	n.t.Helper()
	var c struct{ Pid int }
	n.json(&c, "inspect", "container", pod+"/"+container)
	return c.Pid
}

// ------------------------------------------------- what a container sees

const viewPods = `
apiVersion: v1
kind: ConfigMap
metadata: {name: conf}
data: {color: red, shape: round}
---
apiVersion: v1
kind: Secret
metadata: {name: key}
stringData: {token: hush}
---
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: store}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 32Mi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: view, labels: {tier: front}, annotations: {note: "first"}}
spec:
  terminationGracePeriodSeconds: 1
  hostname: lookout
  subdomain: deck
  hostAliases: [{ip: 192.0.2.7, hostnames: [buoy, mark]}]
  dnsPolicy: None
  dnsConfig: {nameservers: [192.0.2.53], searches: [deck.example], options: [{name: ndots, value: "3"}]}
  securityContext: {runAsUser: 1000, runAsGroup: 1000, fsGroup: 2000}
  volumes:
    - {name: conf, configMap: {name: conf, items: [{key: color, path: sub/color}]}}
    - {name: secret, secret: {secretName: key, defaultMode: 0400}}
    - name: all
      projected:
        sources:
          - configMap: {name: conf}
          - secret: {name: key, items: [{key: token, path: secrets/token}]}
          - downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}, {path: cpu, resourceFieldRef: {containerName: main, resource: limits.cpu, divisor: 1m}}]}
    - {name: disk, emptyDir: {sizeLimit: 20Mi}}
    - {name: memory, emptyDir: {medium: Memory, sizeLimit: 8Mi}}
    - {name: free, emptyDir: {}}
    - {name: store, persistentVolumeClaim: {claimName: store}}
  containers:
    - name: main
      image: localhost/tool:1
      command: [/bin/tool]
      args: [sleep, "$(NAME)", "$(PATH)", "$$(NAME)"]
      resources: {limits: {cpu: 250m, memory: 64Mi}}
      env:
        - {name: NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
        - {name: TIER, valueFrom: {fieldRef: {fieldPath: "metadata.labels['tier']"}}}
        - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
        - {name: LIMIT, valueFrom: {resourceFieldRef: {resource: limits.memory, divisor: 1Mi}}}
        - {name: SHAPE, valueFrom: {configMapKeyRef: {name: conf, key: shape}}}
        - {name: TOKEN, valueFrom: {secretKeyRef: {name: key, key: token}}}
      envFrom: [{configMapRef: {name: conf}, prefix: C_}]
      volumeMounts:
        - {name: conf, mountPath: /conf}
        - {name: secret, mountPath: /secret}
        - {name: all, mountPath: /all}
        - {name: disk, mountPath: /disk}
        - {name: memory, mountPath: /memory}
        - {name: store, mountPath: /store}
        - {name: free, mountPath: /free}
        - {name: free, mountPath: /one, subPath: one}
        - {name: free, mountPath: /mine, subPathExpr: of-$(NAME)}
        - {name: conf, mountPath: /fixed, subPath: sub/color}
        - {name: free, mountPath: /readonly, readOnly: true}
---
apiVersion: v1
kind: Pod
metadata: {name: small}
spec:
  terminationGracePeriodSeconds: 1
  volumes: [{name: notes, emptyDir: {}}]
  containers:
    - name: main
      image: localhost/tool:1
      args: [trap, /notes/x, main, "0"]
      volumeMounts: [{name: notes, mountPath: /notes}]
      resources: {limits: {ephemeral-storage: 24Mi}}
`

// full checks what the tool says of a filesystem into which that many KiB should fit.
func full(t *testing.T, said string, want int) {
	t.Helper()
	size, _, _ := strings.Cut(said, " ")
	if got, err := strconv.Atoi(size); err != nil || got < want-64 || got > want+want/8+2048 || !strings.Contains(said, "no space left") {
		t.Errorf("it takes %q, want %d KiB", said, want)
	}
}

func TestView(t *testing.T) {
	n, _ := podsNode(t, viewPods)
	p := n.becomes("view", "ready", func(p corev1.Pod) bool { return readyContainers(p) == 1 })
	show := func(files ...string) string {
		t.Helper()
		return n.tool("view", "main", append([]string{"show"}, files...)...)
	}
	t.Run("environment", func(t *testing.T) {
		out := n.tool("view", "main", "env", "NAME", "TIER", "IP", "LIMIT", "SHAPE", "TOKEN", "C_color", "HOSTNAME")
		want := "NAME=view\nTIER=front\nIP=" + p.Status.PodIP + "\nLIMIT=64\nSHAPE=round\nTOKEN=hush\nC_color=red\nHOSTNAME=lookout\n"
		if out != want {
			t.Errorf("%q, want %q", out, want)
		}
		// PATH is the image's, or ours: what the manifest does not say stays as it is.
		n.wants("arguments", n.tool("view", "main", "processes"), "1 /bin/tool sleep view $(PATH) $(NAME)")
	})
	t.Run("files", func(t *testing.T) {
		n.wants("files", show("/conf/sub/color", "/secret/token", "/all/color", "/all/secrets/token", "/all/labels", "/all/cpu", "/etc/hostname", "/etc/resolv.conf", "/etc/hosts"),
			"/conf/sub/color: red", "/secret/token: hush", "/all/color: red", "/all/secrets/token: hush", `/all/labels: tier="front"`, "/all/cpu: 250", "/etc/hostname: lookout",
			"nameserver 192.0.2.53", "search deck.example", "options ndots:3", "192.0.2.7\tbuoy", p.Status.PodIP+"\tlookout")
		for _, path := range []string{"/conf/x", "/all/x", "/readonly/x"} {
			if _, err := n.try("exec", "view", "--", "/bin/tool", "touch", path); err == nil || !strings.Contains(err.Error(), "read-only") {
				t.Errorf("%s can be written to: %v", path, err)
			}
		}
	})
	t.Run("subPath", func(t *testing.T) {
		for _, f := range []string{"/one/x", "/mine/y", "/disk/z", "/memory/w"} {
			n.tool("view", "main", "touch", f)
		}
		n.tool("view", "main", "exists", "/free/one/x")
		n.tool("view", "main", "exists", "/free/of-view/y")
		n.wants("fixed", show("/fixed"), "/fixed: red")
	})
	t.Run("limits", func(t *testing.T) {
		for dir, want := range map[string]int{"/disk": 20 << 10, "/memory": 8 << 10} {
			full(t, n.tool("view", "main", "fill", dir), want)
		}
		// The writable layer, that of the next incarnation too, which begins empty.
		n.becomes("small", "running", running)
		full(t, n.tool("small", "main", "fill", "/"), 24<<10)
		n.tool("small", "main", "touch", "/kept")
		n.try("exec", "small", "-c", "main", "--", "/bin/tool", "term", "1")
		n.becomes("small", "running again", func(p corev1.Pod) bool { return container(p, "main").RestartCount == 1 && running(p) })
		full(t, n.tool("small", "main", "fill", "/"), 24<<10)
		if _, err := n.try("exec", "small", "--", "/bin/tool", "exists", "/kept"); err == nil {
			t.Error("the writable layer outlives its container")
		}
		n.orlop("delete", "pod", "small")
		var df []struct{ What string }
		n.json(&df, "system", "df")
		if out := n.orlop("system", "df"); !strings.Contains(out, "scratch space") {
			t.Errorf("%s", out)
		}
		if out := n.orlop("volume", "ls", "-A"); strings.Count(out, "\n") != 2 || !strings.Contains(out, "store") {
			t.Errorf("scratch space is listed as a claim: %s", out)
		}
	})
	t.Run("claim grows", func(t *testing.T) {
		fits := func() int {
			t.Helper()
			size, _, _ := strings.Cut(n.tool("view", "main", "fill", "/store"), " ")
			kib, err := strconv.Atoi(size)
			if err != nil {
				t.Error(err)
			}
			return kib
		}
		before := fits()
		code, _, note := n.code(strings.NewReader(strings.Replace(viewPods, "storage: 32Mi", "storage: 64Mi", 1)), "apply", "-f", "-")
		if code != 0 {
			t.Fatalf("%d %s", code, note)
		}
		after := fits()
		switch mounted := ext4.CanGrowMounted(); {
		case mounted && (note != "" || after < before+28<<10):
			t.Errorf("%d KiB before, %d after; %s", before, after, note)
		case !mounted && (!strings.Contains(note, "CAP_SYS_RESOURCE") || after > before+1<<10):
			t.Errorf("%d KiB before, %d after; %s", before, after, note)
		}
	})
	t.Run("changed while it runs", func(t *testing.T) {
		id := container(p, "main").ContainerID
		changed := strings.NewReplacer("storage: 32Mi", "storage: 64Mi", "color: red", "color: blue", "tier: front", "tier: back", "token: hush", "token: loud").Replace(viewPods)
		n.applyText(changed)
		n.eventually(10*time.Second, func() error {
			out := show("/conf/sub/color", "/all/color", "/all/labels", "/secret/token", "/all/secrets/token")
			for _, part := range []string{"/conf/sub/color: blue", "/all/color: blue", `/all/labels: tier="back"`, "/secret/token: loud", "/all/secrets/token: loud"} {
				if !strings.Contains(out, part) {
					return fmt.Errorf("%q is not in %s", part, out)
				}
			}
			return nil
		})
		// A subPath is what it was when it was mounted, as in Kubernetes.
		n.wants("fixed", show("/fixed"), "/fixed: red")
		// Applied while no daemon looks, and shown by the next: what a kill in between leaves.
		n.applyText(strings.Replace(changed, "color: blue", "color: green", 1))
		n.kill()
		n.start()
		n.eventually(10*time.Second, func() error {
			if out := show("/conf/sub/color"); !strings.Contains(out, "green") {
				return errors.New(out)
			}
			return nil
		})
		if c := container(n.pod("view"), "main"); c.ContainerID != id || c.RestartCount != 0 {
			t.Errorf("it was started again: %+v", c)
		}
		n.tool("view", "main", "exists", "/disk/z") // the daemon's restart does not touch it
	})
	t.Run("gone", func(t *testing.T) {
		n.orlop("delete", "pod", "view", "small") // the second was applied again with the first
		if out := n.orlop("system", "df"); strings.Contains(out, "scratch space") {
			t.Errorf("scratch space outlives its pod: %s", out)
		}
	})
}

// ------------------------------------------------------------- namespaces

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
