package e2e

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/orlop-io/orlop/internal/platform/ext4"
)

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
