package e2e

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

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
