package cgroup

import (
	"os/exec"
	"strconv"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// BenchmarkContainer is what a container's start and end cost here: a group with the
// limits and devices that pods have, a process moved into it, and the group removed.
// The process is made once, outside of what is measured.
func BenchmarkContainer(b *testing.B) {
	h, err := Open(Options{Driver: Cgroupfs})
	if err != nil {
		b.Fatal(err)
	}
	hosts := map[string]*Host{string(h.layout.Mode): h}
	if h.layout.Mode == Hybrid {
		hosts["v1"] = &Host{layout: Layout{Mode: V1, Driver: Cgroupfs, Controllers: h.layout.Controllers}, v1: h.v1}
	}
	full := &specs.LinuxResources{
		CPU:     &specs.LinuxCPU{Shares: to(uint64(512)), Quota: to(int64(50000)), Period: to(uint64(100000))},
		Memory:  &specs.LinuxMemory{Limit: to(int64(256 << 20)), Swap: to(int64(256 << 20))},
		Pids:    &specs.LinuxPids{Limit: to(int64(1024))},
		Devices: usual,
	}
	for mode, h := range hosts {
		for _, bb := range []struct {
			name string
			res  *specs.LinuxResources
		}{{"bare", nil}, {"devices", &specs.LinuxResources{Devices: usual}}, {"full", full}} {
			b.Run(mode+"/"+bb.name, func(b *testing.B) {
				top, err := h.Create("/"+instance()+"/bench", nil)
				if err != nil {
					b.Fatal(err)
				}
				out, err := h.Create("/"+instance()+"/out", nil)
				if err != nil {
					b.Fatal(err)
				}
				c := exec.Command("/bin/sleep", "1000")
				if err := c.Start(); err != nil {
					b.Fatal(err)
				}
				defer func() {
					c.Process.Kill()
					c.Wait()
					for _, p := range []string{top.Path(), out.Path(), "/" + instance()} {
						g, _ := h.group(p)
						if err := g.Remove(b.Context()); err != nil {
							b.Error(err)
						}
					}
				}()
				for i := range b.N {
					g, err := h.Create(top.Path()+"/"+strconv.Itoa(i), bb.res)
					if err != nil {
						b.Fatal(err)
					}
					if _, err := g.Spawn(func(int) (int, error) { return c.Process.Pid, nil }); err != nil {
						b.Fatal(err)
					}
					b.StopTimer()
					if err := out.Add(c.Process.Pid); err != nil {
						b.Fatal(err)
					}
					b.StartTimer()
					if err := g.Remove(b.Context()); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

func BenchmarkStats(b *testing.B) {
	h, err := Open(Options{Driver: Cgroupfs})
	if err != nil {
		b.Fatal(err)
	}
	g, err := h.Create("/"+instance(), nil)
	if err != nil {
		b.Fatal(err)
	}
	defer g.Remove(b.Context())
	for b.Loop() {
		if _, err := g.Stats(); err != nil {
			b.Fatal(err)
		}
	}
}
