package cgroup

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/namespace"
)

func TestSpawnOnThread(t *testing.T) {
	on(t, func(t *testing.T, h *Host) {
		for name, limit := range map[string]int64{"room": 10, "room for one": 1} {
			g, err := h.Create(root(t, h)+"/thread", &specs.LinuxResources{
				Pids: &specs.LinuxPids{Limit: &limit}, Memory: &specs.LinuxMemory{Limit: to(int64(64 << 20))}})
			if err != nil {
				t.Fatal(err)
			}
			dirs := g.Dirs()
			// What the program itself sees first. With room for one the shell must not fork.
			r, w, err := os.Pipe()
			if err != nil {
				t.Fatal(err)
			}
			c := exec.Command("/bin/sh", "-c", "while read l; do echo $l; done </proc/self/cgroup")
			c.Stdout = w
			var pid int
			err = namespace.OnThread(func() (err error) {
				pid, err = g.SpawnOnThread(func(fd int) (int, error) {
					fresh := *c
					fresh.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: fd >= 0, CgroupFD: fd}
					if err := fresh.Start(); err != nil {
						return 0, err
					}
					*c = fresh
					return c.Process.Pid, nil
				})
				return err
			})
			w.Close()
			if err != nil || pid != c.Process.Pid {
				t.Fatalf("%s: %d, %v", name, pid, err)
			}
			out := new(strings.Builder)
			if _, err := r.WriteTo(out); err != nil {
				t.Fatal(err)
			}
			r.Close()
			if err := c.Wait(); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if name == "room" && g.TakesThreads() { // otherwise it may be read before the move
				for line := range strings.Lines(out.String()) {
					part := strings.SplitN(strings.TrimSpace(line), ":", 3)
					if dirs[strings.Split(part[1], ",")[0]] != "" && part[2] != g.rel {
						t.Errorf("%s: begins in %q, not in %s", name, line, g.rel)
					}
				}
			}
			// No thread of ours is left inside.
			if err := g.Remove(t.Context()); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		gone, err := h.group(root(t, h) + "/gone")
		if err != nil {
			t.Fatal(err)
		}
		if !gone.TakesThreads() {
			return
		}
		err = namespace.OnThread(func() error {
			_, err := gone.SpawnOnThread(func(int) (int, error) { return 0, errors.New("cloned in no group") })
			return err
		})
		if !errors.Is(err, errs.NotFound) {
			t.Errorf("no group: %v", err)
		}
	})
}

// Where somebody could stop the thread, it does not enter.
func TestThreadsStayOut(t *testing.T) {
	on(t, func(t *testing.T, h *Host) {
		if h.layout.Mode != Hybrid {
			if g, err := h.group("/any"); err != nil || g.TakesThreads() {
				t.Errorf("%s: threads enter; %v", h.layout.Mode, err)
			}
			return
		}
		quota := &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: to(int64(50_000)), Period: to(uint64(100_000))}}
		p := root(t, h)
		pod, err := h.Create(p+"/pod", nil)
		if err != nil {
			t.Fatal(err)
		}
		own, err := h.Create(p+"/pod/own", quota)
		if err != nil {
			t.Fatal(err)
		}
		if !pod.TakesThreads() || !own.TakesThreads() {
			t.Errorf("no quota: %v; one that nobody has used: %v", pod.TakesThreads(), own.TakesThreads())
		}
		spawn(t, own, "wait").line(t)
		if own.TakesThreads() {
			t.Error("a thread would enter a group whose quota others use")
		}
		limited, err := h.Create(p+"/limited", quota)
		if err != nil {
			t.Fatal(err)
		}
		below, err := h.Create(p+"/limited/below", nil)
		if err != nil {
			t.Fatal(err)
		}
		if limited.Empty() && below.TakesThreads() {
			t.Error("a thread would enter below a quota")
		}
	})
}
