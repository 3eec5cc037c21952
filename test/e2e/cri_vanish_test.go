package e2e

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/orlop-io/orlop/test/proc"
)

// processes are those in a container's control group.
func (c *client) processes(t *testing.T, pod, id string) int {
	t.Helper()
	files, _ := filepath.Glob("/sys/fs/cgroup/*/" + c.n.name + "/pod" + pod + "/" + id + "/cgroup.procs")
	for _, f := range files {
		if raw, err := os.ReadFile(f); err == nil {
			return len(strings.Fields(string(raw)))
		}
	}
	t.Fatalf("container %s has no control group: %v", id, files)
	return 0
}

// Many clients have sessions at a time: as many as are allowed are served, the others are
// told, the daemon's memory stays within what the setting says, and nothing is left once
// they have vanished. ORLOP_TEST_SESSIONS says how many, 120 by default.
func TestCRIManySessions(t *testing.T) {
	many := number(t, "ORLOP_TEST_SESSIONS", 120)
	allowed := many * 5 / 6
	n := newNode(t)
	n.allowSessions(allowed)
	c := n.cri()
	pod := c.run(t, c.sandbox())
	id := c.start(t, pod, criContainer("one", "count"))
	if s, err := c.execStreams(id, false, "/bin/tool", "echo", "warm"); err != nil {
		t.Fatal(err)
	} else {
		io.ReadAll(s.by["stdout"])
		s.vanish()
	}
	before := n.count(t)
	top := proc.Peak(n.daemonPID())
	var mu sync.Mutex
	var open []*streams
	refused := 0
	err := workers(many, 16, func(i int) error {
		var s *streams
		var err error
		if i%3 == 0 {
			s, err = c.attachStreams(id)
		} else {
			s, err = c.execStreams(id, i%3 == 1, "/bin/tool", "sleep")
		}
		mu.Lock()
		defer mu.Unlock()
		switch {
		case err == nil:
			open = append(open, s)
		case strings.Contains(err.Error(), "cri.maxSessions"):
			refused++
		default:
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatalf("%v\n%s", err, n.tail())
	}
	if len(open) != allowed || refused != many-allowed {
		t.Errorf("%d sessions are open, %d are refused, with %d allowed", len(open), refused, allowed)
	}
	during := n.count(t)
	most := top()
	t.Logf("%d sessions: the daemon takes %d KiB at most, %d before, %.0f a session; %d goroutines, %d+%d descriptors", len(open), most, before.DaemonKiB,
		float64(most-before.DaemonKiB)/float64(len(open)), during.Goroutines, during.DaemonFDs, during.KeeperFDs)
	// The pod goes on meanwhile.
	if x, err := c.ExecSync(deadline(t), &v1.ExecSyncRequest{ContainerId: id, Cmd: []string{"/bin/tool", "echo", "still"}}); err != nil || string(x.Stdout) != "still\n" {
		t.Errorf("a command beside them: %v %v", x, err)
	}
	for _, s := range open {
		s.vanish()
	}
	c.sessionsGone(t, pod, id, before)
	if s, err := c.execStreams(id, false, "/bin/tool", "echo", "again"); err != nil {
		t.Errorf("a session after all have gone: %v", err)
	} else {
		s.vanish()
	}
	c.remove(t, pod)
	c.empty(t)
}

// Clients vanish in the middle of whatever they have asked for. What they began ends,
// and nothing of it stays.
func TestCRIClientVanishes(t *testing.T) {
	n := newNode(t)
	c := n.cri()
	pod := c.run(t, c.sandbox())
	id := c.start(t, pod, criContainer("one", "listen", "7000"))
	quiet := c.start(t, pod, criContainer("quiet", "sleep"))
	// A server that lets clients connect, and never says anything.
	silent := c.start(t, pod, criContainer("silent", "hold", "7001"))
	n.eventually(10*time.Second, func() error {
		s, err := c.forwardStreams(pod, 7000)
		if err != nil {
			return err
		}
		defer s.vanish()
		s.by["error"].Close()
		fmt.Fprintln(s.by["data"], "hello")
		line, err := bufio.NewReader(s.by["data"]).ReadString('\n')
		if err != nil || line != "echo hello\n" {
			return fmt.Errorf("%q %v", line, err)
		}
		return nil
	})
	before := n.count(t)
	const times = 5
	for _, tt := range []struct {
		name string
		open func() (*streams, error)
	}{
		{"exec", func() (*streams, error) { return c.execStreams(quiet, false, "/bin/tool", "sleep") }},
		{"exec with a terminal", func() (*streams, error) { return c.execStreams(quiet, true, "/bin/tool", "sleep") }},
		{"exec that writes without end", func() (*streams, error) { return c.execStreams(quiet, false, "/bin/tool", "write", "1000000000000") }},
		{"attach", func() (*streams, error) { return c.attachStreams(quiet) }},
		{"port-forward", func() (*streams, error) { return c.forwardStreams(pod, 7001) }},
		{"streams that are never asked for", func() (*streams, error) {
			r, err := c.Exec(context.Background(), &v1.ExecRequest{ContainerId: quiet, Cmd: []string{"/bin/tool", "sleep"}, Stdout: true, Stderr: true})
			if err != nil {
				return nil, err
			}
			return n.open(r.Url, "v4.channel.k8s.io", nil, streamType, "error")
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for range times {
				s, err := tt.open()
				if err != nil {
					t.Fatalf("%v\n%s", err, n.tail())
				}
				if d := s.by["data"]; d != nil {
					fmt.Fprintln(d, "here I am")
				}
				time.Sleep(20 * time.Millisecond) // in the middle of it
				s.vanish()
			}
		})
	}
	t.Run("ExecSync", func(t *testing.T) {
		for range times {
			ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
			_, err := c.ExecSync(ctx, &v1.ExecSyncRequest{ContainerId: quiet, Cmd: []string{"/bin/tool", "family"}})
			cancel()
			if err == nil {
				t.Error("a command without end has ended")
			}
		}
	})
	t.Run("pull", func(t *testing.T) {
		// A registry that takes connections and says nothing.
		l, err := listenIn(n.netns, "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		go func() {
			for {
				if _, err := l.Accept(); err != nil {
					return
				}
			}
		}()
		for range times {
			ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
			_, err := c.images.PullImage(ctx, &v1.PullImageRequest{Image: &v1.ImageSpec{Image: l.Addr().String() + "/never:1"}})
			cancel()
			if err == nil {
				t.Error("an image was pulled from nowhere")
			}
		}
	})
	n.eventually(30*time.Second, func() error {
		for _, id := range []string{id, quiet, silent} {
			if p := c.processes(t, pod, id); p != 1 {
				return fmt.Errorf("%d processes are left in container %s", p, id)
			}
		}
		if l := n.count(t).leaks(before); len(l) > 0 {
			return errors.New(strings.Join(l, "; "))
		}
		return nil
	})
	t.Run("RunPodSandbox", func(t *testing.T) {
		for i := range 20 {
			conf := c.sandbox()
			ctx, cancel := context.WithTimeout(context.Background(), time.Duration(i)*time.Millisecond)
			c.RunPodSandbox(ctx, &v1.RunPodSandboxRequest{Config: conf})
			cancel()
			if i%2 == 0 { // some ask again
				c.again(t, "run again", func(ctx context.Context) error {
					_, err := c.RunPodSandbox(ctx, &v1.RunPodSandboxRequest{Config: conf})
					if err != nil && strings.Contains(err.Error(), "has a sandbox of attempt") {
						return nil // the answer was lost on its way: the list has it
					}
					return err
				})
			}
		}
		var pods *v1.ListPodSandboxResponse
		n.eventually(10*time.Second, func() (err error) { // what is still being made is in no list
			pods, err = c.ListPodSandbox(deadline(t), &v1.ListPodSandboxRequest{})
			if err == nil && len(pods.Items) < 11 {
				err = fmt.Errorf("%d sandboxes", len(pods.Items))
			}
			return err
		})
		for _, p := range pods.Items {
			c.remove(t, p.Id)
		}
	})
	c.empty(t)
}

// allowSessions has the daemon start again with that cri.maxSessions.
func (n *node) allowSessions(most int) {
	n.t.Helper()
	n.kill()
	config, err := os.ReadFile(n.config)
	if err != nil {
		n.t.Fatal(err)
	}
	n.write(n.config, string(config)+fmt.Sprintf("cri: {maxSessions: %d}\n", most))
	n.start()
}

// sessionsGone waits until nothing is left of sessions: of the container's processes there is the first
// alone, and the node has what it had before.
func (c *client) sessionsGone(t *testing.T, pod, id string, before census) {
	t.Helper()
	c.n.eventually(30*time.Second, func() error {
		if p := c.processes(t, pod, id); p != 1 {
			return fmt.Errorf("%d processes are left in the container", p)
		}
		if l := c.n.count(t).leaks(before); len(l) > 0 {
			return errors.New(strings.Join(l, "; "))
		}
		return nil
	})
}
