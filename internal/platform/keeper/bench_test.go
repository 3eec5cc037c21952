package keeper_test

import (
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	moby "github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/orlop-io/orlop/internal/base/trace"
	"github.com/orlop-io/orlop/internal/platform/cgroup"
	"github.com/orlop-io/orlop/internal/platform/executor"
	"github.com/orlop-io/orlop/internal/platform/keeper"
	"github.com/orlop-io/orlop/internal/platform/pidfd"
)

// BenchmarkRun is what a pod pays for a container: Run, its end, Delete; with the default
// seccomp profile, limits, masked paths. Beside it, in the same round, a Run that is traced,
// and the executor alone.
func BenchmarkRun(b *testing.B) {
	r := newRig(b)
	caps := []string{"CAP_CHOWN", "CAP_KILL", "CAP_NET_BIND_SERVICE", "CAP_SETGID", "CAP_SETUID"}
	profile, err := moby.GetDefaultProfile(&specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: caps}}})
	if err != nil {
		b.Fatal(err)
	}
	limit, pids := int64(64<<20), int64(100)
	spec := func(id string) keeper.Spec {
		s := r.sh(id, "")
		s.OCI.Process.Args = []string{"/bin/true"}
		s.OCI.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
		s.OCI.Linux.Seccomp = profile
		s.OCI.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}, Pids: &specs.LinuxPids{Limit: &pids}}
		s.OCI.Linux.MaskedPaths = []string{"/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/scsi"}
		s.OCI.Linux.ReadonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
		return s
	}
	e, err := executor.New(executor.Options{InitPath: bin + "/orlop-init", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	defer e.Close()
	h, err := cgroup.Open(cgroup.Options{})
	if err != nil {
		b.Fatal(err)
	}
	cpu := func() time.Duration {
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", r.c.PID()))
		if err != nil {
			b.Fatal(err)
		}
		f := strings.Fields(string(raw[strings.LastIndexByte(string(raw), ')')+1:]))
		var ticks int
		for _, n := range []int{11, 12} {
			v, _ := strconv.Atoi(f[n])
			ticks += v
		}
		return time.Duration(ticks) * 10 * time.Millisecond
	}
	var run, end, del, traced, alone []time.Duration
	before := cpu()
	n := 0
	for b.Loop() {
		n++
		id := fmt.Sprintf("c%d", n)
		t0 := time.Now()
		if _, err := r.c.Run(r.ctx, spec(id)); err != nil {
			b.Fatal(err)
		}
		t1 := time.Now()
		if x, err := r.c.Wait(r.ctx, id); err != nil || x.Code != 0 {
			b.Fatal(x, err)
		}
		t2 := time.Now()
		if err := r.c.Delete(r.ctx, id); err != nil {
			b.Fatal(err)
		}
		run, end, del = append(run, t1.Sub(t0)), append(end, t2.Sub(t1)), append(del, time.Since(t2))

		ctx, _ := trace.Record(r.ctx, "benchmark", trace.Parent{Traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"})
		t0 = time.Now()
		if _, err := r.c.Run(ctx, spec(id)); err != nil {
			b.Fatal(err)
		}
		traced = append(traced, time.Since(t0))
		r.c.Wait(r.ctx, id)
		if err := r.c.Delete(r.ctx, id); err != nil {
			b.Fatal(err)
		}

		s := spec(id)
		t0 = time.Now()
		g, err := h.Create(s.Cgroup, s.OCI.Linux.Resources)
		if err != nil {
			b.Fatal(err)
		}
		p, err := e.Create(r.ctx, executor.Config{ID: id, Spec: s.OCI, Rootfs: s.Rootfs, Cgroup: g})
		if err != nil {
			b.Fatal(err)
		}
		if err := p.Start(r.ctx); err != nil {
			b.Fatal(err)
		}
		alone = append(alone, time.Since(t0))
		pidfd.Reap(p.PIDFD(), true)
		p.Close()
		if err := g.Remove(r.ctx); err != nil {
			b.Fatal(err)
		}
	}
	for name, l := range map[string][]time.Duration{"run": run, "end": end, "delete": del, "traced": traced, "executor": alone} {
		slices.Sort(l)
		b.ReportMetric(l[len(l)/2].Seconds()*1e3, "p50-ms/"+name)
	}
	b.ReportMetric((cpu()-before).Seconds()*1e3/float64(2*n), "keeper-cpu-ms/op")
	b.ReportMetric(0, "ns/op")
}
