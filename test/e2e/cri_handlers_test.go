package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	corev1 "k8s.io/api/core/v1"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop-io/orlop/test/programs"
)

// handlers configures runtime handlers: a runtime of the distribution's, one that can do more, our own as
// one, and some that are of no use.
func (n *node) handlers() {
	n.t.Helper()
	runc, err := exec.LookPath("runc")
	if err != nil {
		n.t.Fatalf("runc is needed: %v", err)
	}
	newest, err := programs.BuildRunc(bin)
	if err != nil {
		n.t.Fatal(err)
	}
	script := func(name, text string) string {
		path := filepath.Join(n.t.TempDir(), name)
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
			n.t.Fatal(err)
		}
		return path
	}
	n.configure(fmt.Sprintf(`cri:
  runtimes:
    runc: {path: %s}
    newest: {path: %s}
    own: {path: %s/orlop-oci, args: [--debug]}
    missing: {path: /no/such/runtime}
    fails: {path: %s}
    hangs: {path: %s, timeout: 1s}
    old: {path: %s, root: %s/old-runtime}
`, runc, newest, bin, script("fails", "echo it cannot >&2; exit 1"), script("hangs", "exec sleep 1000"),
		script("old", `case "$*" in *features*) echo no such command >&2; exit 1;; esac; exec `+runc+` "$@"`), n.run))
}

// leftOf tells what runtimes and the keeper still have of containers.
func (n *node) leftOf() (left []string) {
	for _, pattern := range []string{"/runtimes/*/*", "/old-runtime/*", "/keeper/containers/*", "/keeper/rootfs/*", "/keeper/console-*", "-roots"} {
		found, _ := filepath.Glob(n.run + pattern)
		left = append(left, found...)
	}
	raw, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(raw)) {
		if strings.Contains(line, n.run+"/keeper/") || strings.Contains(line, n.run+"-roots/") {
			left = append(left, line)
		}
	}
	return left
}

// Pods whose containers another runtime makes are as those of our own.
func TestCRIHandlers(t *testing.T) {
	n := newNode(t)
	n.handlers()
	c := n.cri()
	st, err := c.Status(deadline(t), &v1.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	features := map[string]string{}
	for _, h := range st.RuntimeHandlers {
		features[h.Name] = fmt.Sprintf("%t %t", h.Features.RecursiveReadOnlyMounts, h.Features.UserNamespaces)
	}
	want := map[string]string{"": "true true", "default": "true true", "runc": "true false", "newest": "true true", "own": "true true", "missing": "false false", "fails": "false false", "hangs": "false false", "old": "false false"}
	if fmt.Sprint(features) != fmt.Sprint(want) {
		t.Errorf("features of the handlers (recursive read-only, user namespaces): %v, want %v", features, want)
	}
	for _, name := range []string{"runc", "own"} {
		t.Run(name+"/life", func(t *testing.T) { c := n.cri(); c.handler = name; wholeLife(t, c) })
		t.Run(name+"/inside", func(t *testing.T) { c := n.cri(); c.handler = name; inside(t, c) })
		t.Run(name+"/deaths", func(t *testing.T) { c := n.cri(); c.handler = name; deaths(t, c) })
		if left := n.leftOf(); len(left) > 0 {
			t.Errorf("left by %s: %s", name, strings.Join(left, "\n"))
		}
	}
	for _, name := range []string{"newest", "own"} {
		t.Run(name+"/users", func(t *testing.T) { c := n.cri(); c.handler = name; ownUsers(t, c) })
		t.Run(name+"/applied users", func(t *testing.T) { appliedUsers(t, n, name) })
		if left := n.leftOf(); len(left) > 0 {
			t.Errorf("left by %s: %s", name, strings.Join(left, "\n"))
		}
	}
	t.Run("bad", func(t *testing.T) { badHandlers(t, n.cri()) })
	t.Run("applied", func(t *testing.T) { appliedHandler(t, n) })
	if left := n.leftOf(); len(left) > 0 {
		t.Errorf("left: %s", strings.Join(left, "\n"))
	}
}

// deaths: daemon and keeper are killed while a container of the handler runs.
func deaths(t *testing.T, c *client) {
	n := c.n
	pod := c.run(t, c.sandbox())
	box, err := c.PodSandboxStatus(deadline(t), &v1.PodSandboxStatusRequest{PodSandboxId: pod})
	if err != nil || box.Status.RuntimeHandler != c.handler {
		t.Errorf("the pod's handler: %v %v", box, err)
	}
	counts := c.start(t, pod, criContainer("counts", "count"))
	for _, dies := range []func(){
		func() { n.kill(); n.start() },
		func() { syscall.Kill(n.keeperPID(), syscall.SIGKILL) },
		func() { n.kill(); syscall.Kill(n.keeperPID(), syscall.SIGKILL); n.start() },
	} {
		dies()
		n.eventually(20*time.Second, func() error {
			x, err := c.ExecSync(deadline(t), &v1.ExecSyncRequest{ContainerId: counts, Cmd: []string{"/bin/tool", "exit", "7"}, Timeout: 10})
			if err == nil && (x.ExitCode != 7 || string(x.Stdout) != "to stdout\n") {
				err = fmt.Errorf("%v", x)
			}
			return err
		})
		if s := c.status(t, counts); s.State != v1.ContainerState_CONTAINER_RUNNING {
			t.Errorf("the container is %s", s.State)
		}
	}
	conf := criContainer("listens", "cat") // an input that ends does so with daemon and keeper
	conf.Stdin, conf.StdinOnce = true, true
	reads := c.start(t, pod, conf)
	if out, err := n.feed("the input\n", "attach", "-n", "cri", "-i", box.Status.Metadata.Name, "-c", "listens"); err != nil || !strings.Contains(out, "the input") {
		t.Errorf("attach: %q %v", out, err)
	}
	if s := c.ended(t, reads); s.ExitCode != 0 {
		t.Errorf("after the end of its input: %v", s)
	}
	// Every line once, in order, over all deaths, and on after them.
	n.eventually(10*time.Second, func() error {
		raw, err := os.ReadFile(c.status(t, counts).LogPath)
		if lines := bytes.Count(raw, []byte("\n")); err == nil && lines < 10 {
			return fmt.Errorf("%d lines", lines)
		}
		return err
	})
	if _, err := c.StopContainer(deadline(t), &v1.StopContainerRequest{ContainerId: counts, Timeout: 10}); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(c.status(t, counts).LogPath)
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.Split(bytes.TrimSpace(raw), []byte("\n"))
	for i, l := range lines {
		if want := fmt.Sprintf(" count %d", i); !bytes.HasSuffix(l, []byte(want)) {
			t.Fatalf("line %d of the log is %q", i, l)
		}
	}
	c.remove(t, pod)
}

// badHandlers: what a handler cannot do is a clear error, and leaves nothing.
func badHandlers(t *testing.T, c *client) {
	_, err := c.RunPodSandbox(deadline(t), &v1.RunPodSandboxRequest{Config: c.sandbox(), RuntimeHandler: "nothing"})
	wantCode(t, err, codes.InvalidArgument, `no runtime handler "nothing"; this host has default, fails, hangs, missing, newest, old, own, runc`)
	conf := c.sandbox()
	conf.Linux.SecurityContext.NamespaceOptions.UsernsOptions = users(firstID, 65536)
	_, err = c.RunPodSandbox(deadline(t), &v1.RunPodSandboxRequest{Config: conf, RuntimeHandler: "runc"})
	wantCode(t, err, codes.Unimplemented, "runtime handler runc has no id-mapped mounts")
	for name, text := range map[string]string{"missing": "no such program", "fails": "it cannot", "hangs": "did not end within 1s"} {
		c.handler = name
		pod := c.run(t, c.sandbox())
		id := c.create(t, pod, criContainer("one", "count"))
		_, err := c.StartContainer(deadline(t), &v1.StartContainerRequest{ContainerId: id})
		if err == nil || !strings.Contains(err.Error(), text) || !strings.Contains(err.Error(), "runtime handler "+name) {
			t.Errorf("%s: %v", name, err)
		}
		if left := c.n.leftOf(); len(left) > 0 {
			t.Errorf("%s has left: %s", name, strings.Join(left, "\n"))
		}
		c.remove(t, pod)
	}
	c.handler = "old"
	pod := c.run(t, c.sandbox())
	conf2 := criContainer("one", "count")
	conf2.Mounts = []*v1.Mount{{HostPath: t.TempDir(), ContainerPath: "/x", Readonly: true, RecursiveReadOnly: true}}
	_, err = c.CreateContainer(deadline(t), &v1.CreateContainerRequest{PodSandboxId: pod, Config: conf2})
	wantCode(t, err, codes.Unimplemented, "recursive read-only")
	if s := c.ended(t, c.start(t, pod, criContainer("two", "exit", "3"))); s.ExitCode != 3 {
		t.Errorf("a runtime that does not know its features: %v", s)
	}
	c.remove(t, pod)
}

// appliedHandler: a manifest may name a handler.
func appliedHandler(t *testing.T, n *node) {
	pod := func(class string) string {
		return fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: by-handler}
spec:
  runtimeClassName: %s
  shareProcessNamespace: true
  containers:
  - {name: one, image: "localhost/tool:1", args: [count]}
  - {name: two, image: "localhost/tool:1", args: [count]}
`, class)
	}
	if out, err := n.feed(pod("nothing"), "apply", "-f", "-"); err == nil || !strings.Contains(err.Error(), "this host has default") {
		t.Errorf("a handler that is not there: %s %v", out, err)
	}
	if out, err := n.feed(pod("runc\n  hostUsers: false"), "apply", "-f", "-"); err == nil || !strings.Contains(err.Error(), "runtimeClassName: runtime handler runc has no id-mapped mounts") {
		t.Errorf("a user namespace with a handler that has none: %s %v", out, err)
	}
	if out, err := n.feed(pod("runc"), "apply", "-f", "-", "--wait", "--timeout", "30s"); err != nil {
		t.Fatalf("%s %v\n%s", out, err, n.tail())
	}
	if found, _ := filepath.Glob(n.run + "/runtimes/runc/*/state.json"); len(found) != 2 {
		t.Errorf("runc has %v", found)
	}
	if out := n.orlop("exec", "by-handler", "-c", "two", "--", "/bin/tool", "processes"); strings.Count(out, "count") < 2 {
		t.Errorf("processes of the pod: %s", out)
	}
	if out := n.orlop("inspect", "pod", "by-handler", "-o", "yaml"); !strings.Contains(out, "runtimeClassName: runc") {
		t.Errorf("inspect: %s", out)
	}
	n.orlop("delete", "pod", "by-handler", "--grace", "1")
}

// appliedUsers: an applied pod in a user namespace of its own, whose containers another runtime makes.
func appliedUsers(t *testing.T, n *node, class string) {
	dir := t.TempDir()
	n.applyText(strings.ReplaceAll(strings.Replace(ownUsersPod, "hostUsers: false", "hostUsers: false\n  runtimeClassName: "+class, 1), "DIR", dir))
	n.becomes("own", "ready", func(p corev1.Pod) bool { return readyContainers(p) == 2 })
	insideOwnUsers(n, dir)
	n.orlop("delete", "pod", "own")
	n.orlop("delete", "pvc", "data")
}
