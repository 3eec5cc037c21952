package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// again repeats a request as kubelet does, over the daemon's death. What was done by the
// request before counts as done.
func (c *client) again(t *testing.T, what string, fn func(context.Context) error) {
	t.Helper()
	for try := 0; ; try++ {
		c.n.revive()
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		err := fn(ctx)
		cancel()
		if err == nil {
			return
		}
		if code := status.Code(err); try == 5 || code != codes.Unavailable && code != codes.DeadlineExceeded && code != codes.Canceled {
			t.Fatalf("%s: %v\n%s", what, err, c.n.tail())
		}
		c.n.waitExit(2 * time.Second)
	}
}

// The daemon dies at every fault point of driven pods, one by one, while a client leads a
// pod through its life. Requests repeated after that go on where the ones before ended.
func TestCRIKilledAtEveryPoint(t *testing.T) {
	var points []string
	for p := range strings.FieldsSeq(run(t, bin+"/orlop", "daemon", "--faults")) {
		if strings.HasPrefix(p, "pod.driven.") {
			points = append(points, p)
		}
	}
	if len(points) < 8 {
		t.Fatalf("only %d fault points: %v", len(points), points)
	}
	n := newNode(t)
	c := n.cri()
	for _, point := range points {
		t.Run(point, func(t *testing.T) {
			n.kill()
			once := filepath.Join(t.TempDir(), "once")
			n.tryStart("ORLOP_FAULT="+point, "ORLOP_FAULT_ONCE="+once)
			conf := c.sandbox()
			var pod, id string
			c.again(t, "run sandbox", func(ctx context.Context) error {
				r, err := c.RunPodSandbox(ctx, &v1.RunPodSandboxRequest{Config: conf})
				pod = r.GetPodSandboxId()
				return err
			})
			c.again(t, "create", func(ctx context.Context) error {
				r, err := c.CreateContainer(ctx, &v1.CreateContainerRequest{PodSandboxId: pod, Config: criContainer("one", "count")})
				id = r.GetContainerId()
				return err
			})
			c.again(t, "start", func(ctx context.Context) error {
				_, err := c.StartContainer(ctx, &v1.StartContainerRequest{ContainerId: id})
				return err
			})
			if st := c.status(t, id); st.State != v1.ContainerState_CONTAINER_RUNNING {
				t.Errorf("the container is %s", st.State)
			}
			l, err := c.ListPodSandbox(deadline(t), &v1.ListPodSandboxRequest{})
			if err != nil || len(l.Items) != 1 {
				t.Errorf("%d sandboxes instead of one: %v", len(l.GetItems()), err)
			}
			c.again(t, "stop", func(ctx context.Context) error {
				_, err := c.StopContainer(ctx, &v1.StopContainerRequest{ContainerId: id, Timeout: 1})
				return err
			})
			if st := c.status(t, id); st.State != v1.ContainerState_CONTAINER_EXITED || st.FinishedAt == 0 {
				t.Errorf("stopped: %v", st)
			}
			c.again(t, "remove", func(ctx context.Context) error {
				_, err := c.RemoveContainer(ctx, &v1.RemoveContainerRequest{ContainerId: id})
				return err
			})
			c.again(t, "stop sandbox", func(ctx context.Context) error {
				_, err := c.StopPodSandbox(ctx, &v1.StopPodSandboxRequest{PodSandboxId: pod})
				return err
			})
			c.again(t, "remove sandbox", func(ctx context.Context) error {
				_, err := c.RemovePodSandbox(ctx, &v1.RemovePodSandboxRequest{PodSandboxId: pod})
				return err
			})
			if _, err := os.Stat(once); err != nil {
				t.Errorf("nothing passed the point\n%s", n.tail())
			}
		})
	}
	c.empty(t)
}

// empty makes sure that nothing of any pod is left.
func (c *client) empty(t *testing.T) {
	t.Helper()
	pods, err := c.ListPodSandbox(deadline(t), &v1.ListPodSandboxRequest{})
	if err != nil || len(pods.Items) != 0 {
		t.Errorf("sandboxes left: %v %v", pods, err)
	}
	containers, err := c.ListContainers(deadline(t), &v1.ListContainersRequest{})
	if err != nil || len(containers.Containers) != 0 {
		t.Errorf("containers left: %v %v", containers, err)
	}
	for _, pattern := range []string{c.n.run + "/pods/*", c.n.root + "/containers/*", c.n.run + "/keeper/containers/*", "/sys/fs/cgroup/*/" + c.n.name + "/*/"} {
		if left, _ := filepath.Glob(pattern); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	}
	out := run(t, "ip", "-n", c.n.name, "-o", "link")
	if strings.Contains(out, "orl") {
		t.Errorf("interfaces left:\n%s", out)
	}
}

// The keeper dies at every point of a start. The client learns nothing of it: its one request
// ends with a container that runs.
func TestCRIKeeperKilledInStart(t *testing.T) {
	var points []string
	for p := range strings.FieldsSeq(run(t, bin+"/orlop-keeper", "-faults")) {
		if strings.HasPrefix(p, "keeper.create.") && p != "keeper.create.recorded" || strings.HasPrefix(p, "keeper.start.") {
			points = append(points, p)
		}
	}
	if len(points) < 8 {
		t.Fatalf("only %d fault points: %v", len(points), points)
	}
	n := newNode(t)
	c := n.cri()
	pod := c.run(t, c.sandbox())
	for _, point := range points {
		t.Run(point, func(t *testing.T) {
			id := c.create(t, pod, criContainer(strings.ReplaceAll(point, ".", "-"), "sleep"))
			n.kill()
			if err := syscall.Kill(n.keeperPID(), syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			once := filepath.Join(t.TempDir(), "once")
			n.start("ORLOP_FAULT="+point, "ORLOP_FAULT_ONCE="+once)
			if _, err := c.StartContainer(deadline(t), &v1.StartContainerRequest{ContainerId: id}); err != nil {
				t.Errorf("start: %v\n%s", err, n.tail())
			}
			if st := c.status(t, id); st.State != v1.ContainerState_CONTAINER_RUNNING {
				t.Errorf("a started container is %s: %s %s", st.State, st.Reason, st.Message)
			}
			if _, err := c.StartContainer(deadline(t), &v1.StartContainerRequest{ContainerId: id}); status.Code(err) != codes.FailedPrecondition {
				t.Errorf("the start of one that was started: %v", err)
			}
			if _, err := os.Stat(once); err != nil {
				t.Errorf("nothing passed the point: %v", err)
			}
		})
	}
	c.remove(t, pod)
	c.empty(t)
}

// Pods come and go by many clients while daemon and keeper are killed again and again: 12
// at a time and 9 kills by default, as many as ORLOP_TEST_PODS and ORLOP_TEST_KILLS say. The
// clients see errors of the moment; afterwards no pod is lost, none is left over, no name
// is taken by nobody, and nothing has leaked.
func TestCRIChurn(t *testing.T) {
	clients, kills := number(t, "ORLOP_TEST_PODS", 12), number(t, "ORLOP_TEST_KILLS", 9)
	n := newNode(t)
	c := n.cri()
	const standing = 5 // pods that nobody touches
	ids := make([]string, standing)
	pids := make([]int, standing)
	for i := range ids {
		pod := c.run(t, c.sandbox())
		ids[i] = c.start(t, pod, criContainer("standing", "count"))
		pids[i] = c.pid(t, ids[i])
	}
	if err := life(c, c.sandbox(), 0); err != nil { // warms up
		t.Fatal(err)
	}
	before := n.count(t)
	// As many threads as clients may be in a system call at a time, and Go keeps them.
	before.DaemonThreads, before.KeeperThreads = before.DaemonThreads+clients/2, before.KeeperThreads+clients/2
	stop := make(chan struct{})
	var done atomic.Int64
	var wg sync.WaitGroup
	var mu sync.Mutex // of n.start
	next := func() *v1.PodSandboxConfig {
		mu.Lock()
		defer mu.Unlock()
		return c.sandbox()
	}
	for worker := range clients {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				conf := next()
				if err := life(c, conf, worker); err != nil {
					t.Errorf("%s: %v", conf.Metadata.Name, err)
					return
				}
				done.Add(1)
			}
		})
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for i := range kills {
		before := done.Load()
		n.eventually(60*time.Second, func() error {
			if done.Load() < before+2 {
				return fmt.Errorf("%d lives so far", done.Load())
			}
			return nil
		})
		time.Sleep(time.Duration(rnd.IntN(50)) * time.Millisecond) // anywhere in a life
		mu.Lock()
		if i%3 != 0 {
			if p, err := os.FindProcess(n.keeperPID()); err == nil {
				p.Kill()
			}
		}
		if i%3 != 1 {
			n.kill()
			n.start()
		}
		mu.Unlock()
	}
	close(stop)
	wg.Wait()
	t.Logf("%d pods lived, %d kills", done.Load(), kills)
	for i, id := range ids {
		if st := c.status(t, id); st.State != v1.ContainerState_CONTAINER_RUNNING || c.pid(t, id) != pids[i] {
			t.Errorf("a container that nobody touched is %s, process %d, was %d: %s %s", st.State, c.pid(t, id), pids[i], st.Reason, st.Message)
		}
	}
	after := n.count(t)
	for _, l := range after.leaks(before) {
		// A client's life may have just ended, and its last goroutines with it.
		n.eventually(20*time.Second, func() error {
			if len(n.count(t).leaks(before)) > 0 {
				return fmt.Errorf("%s: %v", l, n.count(t).leaks(before))
			}
			return nil
		})
	}
	pods, err := c.ListPodSandbox(deadline(t), &v1.ListPodSandboxRequest{})
	if err != nil || len(pods.Items) != standing {
		t.Errorf("%d sandboxes, %d are to be there: %v", len(pods.GetItems()), standing, err)
	}
	for _, p := range pods.GetItems() {
		c.remove(t, p.Id)
	}
	c.empty(t)
}

// pid is a container's process.
func (c *client) pid(t *testing.T, id string) int {
	t.Helper()
	r, err := c.ContainerStatus(deadline(t), &v1.ContainerStatusRequest{ContainerId: id, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	var info struct{ PID int }
	if err := json.Unmarshal([]byte(r.Info["info"]), &info); err != nil || info.PID == 0 {
		t.Errorf("process of container %s: %v in %s", id, err, r.Info["info"])
	}
	return info.PID
}

// life leads one pod from its sandbox to its removal, repeating what fails for the moment.
func life(c *client, conf *v1.PodSandboxConfig, worker int) error {
	var pod, id string
	do := func(what string, fn func(context.Context) error) error {
		end := time.Now().Add(time.Minute)
		for {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			err := fn(ctx)
			cancel()
			switch code := status.Code(err); {
			case err == nil:
				return nil
			case time.Now().After(end), code != codes.Unavailable && code != codes.DeadlineExceeded && code != codes.Canceled:
				return fmt.Errorf("%s: %w", what, err)
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	steps := []struct {
		what string
		fn   func(context.Context) error
	}{
		{"run sandbox", func(ctx context.Context) error {
			r, err := c.RunPodSandbox(ctx, &v1.RunPodSandboxRequest{Config: conf})
			pod = r.GetPodSandboxId()
			return err
		}},
		{"create", func(ctx context.Context) error {
			r, err := c.CreateContainer(ctx, &v1.CreateContainerRequest{PodSandboxId: pod, Config: criContainer("one", "sleep")})
			id = r.GetContainerId()
			return err
		}},
		{"start", func(ctx context.Context) error {
			_, err := c.StartContainer(ctx, &v1.StartContainerRequest{ContainerId: id})
			if st, serr := c.ContainerStatus(ctx, &v1.ContainerStatusRequest{ContainerId: id}); err != nil && serr == nil && st.Status.State == v1.ContainerState_CONTAINER_EXITED {
				return fmt.Errorf("%w: it is exited: %s: %s", err, st.Status.Reason, st.Status.Message)
			}
			return err
		}},
		{"status", func(ctx context.Context) error {
			r, err := c.ContainerStatus(ctx, &v1.ContainerStatusRequest{ContainerId: id})
			if err == nil && r.Status.State != v1.ContainerState_CONTAINER_RUNNING {
				err = fmt.Errorf("a started container is %s: %s", r.Status.State, r.Status.Reason)
			}
			return err
		}},
		{"stop", func(ctx context.Context) error {
			_, err := c.StopContainer(ctx, &v1.StopContainerRequest{ContainerId: id, Timeout: int64(worker % 2)})
			return err
		}},
		{"stop sandbox", func(ctx context.Context) error {
			_, err := c.StopPodSandbox(ctx, &v1.StopPodSandboxRequest{PodSandboxId: pod})
			return err
		}},
		{"remove sandbox", func(ctx context.Context) error {
			_, err := c.RemovePodSandbox(ctx, &v1.RemovePodSandboxRequest{PodSandboxId: pod})
			return err
		}},
	}
	for _, s := range steps {
		if err := do(s.what, s.fn); err != nil {
			return err
		}
	}
	return nil
}
