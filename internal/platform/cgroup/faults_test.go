//go:build faults

package cgroup

import (
	"context"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/orlop-io/orlop/internal/base/fault"
)

// TestFaults kills a process at every point of making, joining and removing a group,
// and shows that doing it again, or removing it, works from there. With the systemd
// driver too where that can be had, which is in test/vm.
func TestFaults(t *testing.T) {
	drivers := []Driver{Cgroupfs, Systemd}
	if _, err := Open(Options{Driver: Systemd}); err != nil {
		if os.Getenv("ORLOP_TEST_SYSTEMD") != "" {
			t.Fatal(err)
		}
		drivers = drivers[:1]
	}
	for _, d := range drivers {
		h, err := Open(Options{Driver: d})
		if err != nil {
			t.Fatal(err)
		}
		t.Run(string(d), func(t *testing.T) { testFaults(t, h) })
	}
}

func testFaults(t *testing.T, h *Host) {
	points := slices.DeleteFunc(fault.List(), func(p string) bool {
		// Points of the other driver: systemd moves the first process and removes the
		// directory itself.
		systemds := p == afterUnitName
		cgroupfs := p == afterJoinName || p == afterSomeName
		return !strings.HasPrefix(p, "cgroup.") || h.systemd == nil && systemds || h.systemd != nil && cgroupfs
	})
	if len(points) < 3 {
		t.Fatalf("points: %v", points)
	}
	for _, point := range points {
		t.Run(point, func(t *testing.T) {
			p := root(t, h) + "/app"
			cmd := exec.Command("/proc/self/exe")
			cmd.Env = append(os.Environ(), "CGROUP_TEST_FAULTS="+p, "CGROUP_TEST_DRIVER="+string(h.layout.Driver), "ORLOP_FAULT="+point)
			out, err := cmd.CombinedOutput()
			if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !ws.Signaled() {
				t.Fatalf("not killed: %v %s", err, out)
			}
			g, err := h.Create(p, faultResources)
			if err != nil {
				t.Fatalf("again: %v", err)
			}
			c := spawn(t, g, "wait")
			c.line(t)
			if err := g.Kill(syscall.SIGKILL); err != nil {
				t.Error(err)
			}
			if err := g.Remove(t.Context()); err != nil || len(g.Dirs()) > 0 {
				t.Errorf("left %v: %v", g.Dirs(), err)
			}
		})
	}
}

const (
	afterUnitName = "cgroup.create.unit-started"
	afterSomeName = "cgroup.remove.first-hierarchy-removed"
	afterJoinName = "cgroup.add.first-hierarchy-joined"
)

var faultResources = &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: to(int64(10))}, Devices: usual}

func init() {
	p := os.Getenv("CGROUP_TEST_FAULTS")
	if p == "" {
		return
	}
	h, err := Open(Options{Driver: Driver(os.Getenv("CGROUP_TEST_DRIVER"))})
	if err != nil {
		panic(err)
	}
	g, err := h.Create(p, faultResources)
	if err != nil {
		panic(err)
	}
	c := exec.Command("/bin/sleep", "1000")
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := c.Start(); err != nil {
		panic(err)
	}
	if err := g.Add(c.Process.Pid); err != nil {
		panic(err)
	}
	c.Process.Kill()
	c.Wait()
	if err := g.Remove(context.Background()); err != nil {
		panic(err)
	}
	os.Exit(0)
}
