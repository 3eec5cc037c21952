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
