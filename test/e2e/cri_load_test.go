package e2e

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop-io/orlop/test/programs"
)

// workers runs fn for 0 to n-1, some at a time.
func workers(n, atOnce int, fn func(i int) error) error {
	var next atomic.Int64
	var wg sync.WaitGroup
	var once sync.Once
	var first error
	for range atOnce {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				if err := fn(i); err != nil {
					once.Do(func() { first = fmt.Errorf("%d: %w", i, err) })
					next.Store(int64(n))
					return
				}
			}
		})
	}
	wg.Wait()
	return first
}

// named is a sandbox's configuration that does not need the client's counter.
func (c *client) named(name string) *v1.PodSandboxConfig {
	return &v1.PodSandboxConfig{
		Metadata: &v1.PodSandboxMetadata{Name: name, Namespace: "load", Uid: "uid-" + name}, Hostname: name, LogDirectory: c.logs + "/" + name,
		Labels: map[string]string{"load": "yes"},
		Linux:  &v1.LinuxPodSandboxConfig{SecurityContext: &v1.LinuxSandboxSecurityContext{NamespaceOptions: &v1.NamespaceOption{Pid: v1.NamespaceMode_CONTAINER}}},
	}
}

// up brings a pod with one container up.
func (c *client) up(ctx context.Context, name string, args ...string) (pod, id string, err error) {
	conf := c.named(name)
	p, err := c.RunPodSandbox(ctx, &v1.RunPodSandboxRequest{Config: conf})
	if err != nil {
		return "", "", err
	}
	cc, err := c.CreateContainer(ctx, &v1.CreateContainerRequest{PodSandboxId: p.PodSandboxId, Config: criContainer("one", args...), SandboxConfig: conf})
	if err != nil {
		return "", "", err
	}
	_, err = c.StartContainer(ctx, &v1.StartContainerRequest{ContainerId: cc.ContainerId})
	return p.PodSandboxId, cc.ContainerId, err
}

// down takes a pod away, as kubelet does.
func (c *client) down(ctx context.Context, pod, id string) error {
	if _, err := c.StopContainer(ctx, &v1.StopContainerRequest{ContainerId: id}); err != nil {
		return err
	}
	if _, err := c.StopPodSandbox(ctx, &v1.StopPodSandboxRequest{PodSandboxId: pod}); err != nil {
		return err
	}
	if _, err := c.RemoveContainer(ctx, &v1.RemoveContainerRequest{ContainerId: id}); err != nil {
		return err
	}
	_, err := c.RemovePodSandbox(ctx, &v1.RemovePodSandboxRequest{PodSandboxId: pod})
	return err
}

// Pods come and go by the thousand, and nothing of them stays: 200 by default, as many as
// ORLOP_TEST_CHURN says.
func TestCRILoad(t *testing.T) {
	pods := number(t, "ORLOP_TEST_CHURN", 200)
	n := newNode(t)
	c := n.cri()
	live := func(i int) error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		pod, id, err := c.up(ctx, "load-"+strconv.Itoa(i), "sleep")
		if err != nil {
			return err
		}
		if i%10 == 0 {
			if _, err := c.ExecSync(ctx, &v1.ExecSyncRequest{ContainerId: id, Cmd: []string{"/bin/tool", "echo", "alive"}}); err != nil {
				return err
			}
		}
		if err := c.down(ctx, pod, id); err != nil {
			return err
		}
		return os.RemoveAll(c.logs + "/load-" + strconv.Itoa(i))
	}
	const atOnce = 8
	if err := workers(min(pods, 100), atOnce, func(i int) error { return live(-1 - i) }); err != nil { // warms up
		t.Fatalf("%v\n%s", err, n.tail())
	}
	before := n.settle(t)
	t.Logf("before: %s", before)
	// In parts, so that what grows is seen to grow.
	parts := min(4, max(1, pods/100))
	begin := time.Now()
	for part := range parts {
		size := pods / parts
		if err := workers(size, atOnce, func(i int) error { return live(part*size + i) }); err != nil {
			t.Fatalf("%v\n%s", err, n.tail())
		}
		t.Logf("%d pods, %.1f a second: %s", (part+1)*size, float64((part+1)*size)/time.Since(begin).Seconds(), n.count(t))
	}
	after := n.settle(t)
	t.Logf("after: %s", after)
	for _, l := range after.leaks(before) {
		t.Error(l)
	}
	// What is in the bolt files is free again; they do not shrink.
	if after.StateKiB > before.StateKiB+1024 || after.DurableKiB > before.DurableKiB+1024 {
		t.Errorf("state: %d and %d KiB, before %d and %d", after.StateKiB, after.DurableKiB, before.StateKiB, before.DurableKiB)
	}
	if grown := after.DaemonKiB + after.KeeperKiB - before.DaemonKiB - before.KeeperKiB; grown > 4<<10 && !programs.Race {
		t.Errorf("daemon and keeper have grown by %d KiB over %d pods", grown, pods)
	}
	c.empty(t)
}

// What daemon and keeper take for pods that idle, led by CRI and applied:
// ORLOP_TEST_IDLE has the numbers of pods to look at.
func TestIdleMemory(t *testing.T) {
	steps := []int{20}
	if text := os.Getenv("ORLOP_TEST_IDLE"); text != "" {
		steps = nil
		for f := range strings.SplitSeq(text, ",") {
			v, err := strconv.Atoi(f)
			if err != nil {
				t.Fatal(err)
			}
			steps = append(steps, v)
		}
	}
	for _, how := range []string{"cri", "apply"} {
		t.Run(how, func(t *testing.T) {
			n := newNode(t)
			c := n.cri()
			start := func(i int) error {
				if how == "cri" {
					ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
					defer cancel()
					_, _, err := c.up(ctx, "idle-"+strconv.Itoa(i), "sleep")
					return err
				}
				_, err := n.feed(fmt.Sprintf(idlePod, i), "apply", "-f", "-", "--wait")
				return err
			}
			// The first pods make the daemon whole: what all share is not theirs.
			have := 0
			fill := func(to int) {
				from := have
				if err := workers(to-from, 8, func(i int) error { return start(from + i) }); err != nil {
					t.Fatalf("%v\n%s", err, n.tail())
				}
				have = to
			}
			empty := n.settle(t)
			t.Logf("%4d pods: daemon %d KiB (%d anonymous), keeper %d KiB, %d goroutines, %d+%d descriptors, %d+%d threads", 0, empty.DaemonKiB, empty.DaemonHeapKiB, empty.KeeperKiB,
				empty.Goroutines, empty.DaemonFDs, empty.KeeperFDs, empty.DaemonThreads, empty.KeeperThreads)
			last, lastPods := empty, 0
			for _, pods := range steps {
				fill(pods)
				s := n.settle(t)
				t.Logf("%4d pods: daemon %d KiB (%d anonymous), keeper %d KiB, %.0f KiB a pod, %.0f of those since the last; %d goroutines, %d+%d descriptors, %d+%d threads", pods,
					s.DaemonKiB, s.DaemonHeapKiB, s.KeeperKiB, float64(s.DaemonKiB+s.KeeperKiB-empty.DaemonKiB-empty.KeeperKiB)/float64(pods),
					float64(s.DaemonKiB+s.KeeperKiB-last.DaemonKiB-last.KeeperKiB)/float64(pods-lastPods),
					s.Goroutines, s.DaemonFDs, s.KeeperFDs, s.DaemonThreads, s.KeeperThreads)
				last, lastPods = s, pods
			}
			if programs.Race {
				return // it takes several times as much
			}
			if each := float64(last.DaemonKiB+last.KeeperKiB-empty.DaemonKiB-empty.KeeperKiB) / float64(lastPods); lastPods >= 100 && each > 128 {
				t.Errorf("an idle pod costs %.0f KiB of daemon and keeper", each)
			}
			if all := last.DaemonKiB + last.KeeperKiB; all > 150<<10 {
				t.Errorf("daemon and keeper take %d KiB with %d pods", all, lastPods)
			}
		})
	}
}

const idlePod = `apiVersion: v1
kind: Pod
metadata: {name: idle-%d, namespace: load}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - {name: one, image: "localhost/tool:1", imagePullPolicy: Never, args: [sleep]}
`
