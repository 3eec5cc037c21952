package executor

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	moby "github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/platform/cgroup"
	"github.com/orlop-io/orlop/internal/platform/namespace"
	"github.com/orlop-io/orlop/internal/platform/seccomp"
)

func defaultSeccomp(t testing.TB) *specs.LinuxSeccomp {
	t.Helper()
	p, err := moby.GetDefaultProfile(&specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: defaultCaps}}})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// pinned are namespaces of a pod.
func pinned(t testing.TB) []specs.LinuxNamespace {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "orlop-exec-test-ns")
	if err := namespace.Pin(dir, []namespace.Kind{namespace.Net, namespace.IPC, namespace.UTS}, namespace.Options{Hostname: "pod"}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := namespace.Unpin(dir); err != nil {
			t.Error(err)
		}
	})
	return []specs.LinuxNamespace{
		{Type: specs.MountNamespace}, {Type: specs.PIDNamespace}, {Type: specs.CgroupNamespace},
		{Type: specs.NetworkNamespace, Path: dir + "/net"}, {Type: specs.IPCNamespace, Path: dir + "/ipc"}, {Type: specs.UTSNamespace, Path: dir + "/uts"},
	}
}

// group makes a control group that the test removes.
func group(t testing.TB) *cgroup.Group {
	t.Helper()
	h, err := cgroup.Open(cgroup.Options{})
	if err != nil {
		t.Fatal(err)
	}
	limit, pids := int64(64<<20), int64(100)
	parent := fmt.Sprintf("/orlop-exec-test-%d", os.Getpid())
	path := fmt.Sprintf("%s/c%d", parent, time.Now().UnixNano())
	g, err := h.Create(path, &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}, Pids: &specs.LinuxPids{Limit: &pids}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Remove(contextT(t)); err != nil {
			t.Error(err)
		}
		if p, err := h.Load(parent); err == nil {
			p.Remove(contextT(t)) // fails while others use it
		}
	})
	return g
}

// BenchmarkStart is Create, Start and the end of /bin/true as pods run it: pinned
// namespaces, the default seccomp profile, masked paths, an overlay, a cgroup.
func BenchmarkStart(b *testing.B) {
	for _, with := range []string{"all", "by init", "no cgroup", "no seccomp", "new net", "new user", "joined user"} {
		b.Run(with, func(b *testing.B) {
			if with == "by init" {
				defer byInit()()
			}
			lower := image(b)
			s := spec("/bin/true")
			s.Hostname = ""
			s.Linux.Namespaces = pinned(b)
			if with == "new net" {
				s.Linux.Namespaces = spec().Linux.Namespaces
			}
			var idmap bool
			switch with {
			case "new user", "joined user":
				var c Config
				s.Linux.Namespaces = spec().Linux.Namespaces
				mapped(s, &c)
				idmap = true
			}
			if with == "joined user" {
				holder := spec("sleep", "1000")
				c := Config{ID: "holder", Spec: holder, Rootfs: layers(b, lower)}
				mapped(holder, &c)
				p, end := start(b, c)
				defer end()
				s.Linux.Namespaces[len(s.Linux.Namespaces)-1].Path = fmt.Sprintf("/proc/%d/ns/user", p.PID())
			}
			if with != "no seccomp" {
				s.Linux.Seccomp = defaultSeccomp(b)
			}
			var g *cgroup.Group
			if with != "no cgroup" {
				g = group(b)
			}
			var create, begin, end time.Duration
			var before, after unix.Rusage
			unix.Getrusage(unix.RUSAGE_CHILDREN, &before)
			for b.Loop() {
				b.StopTimer()
				root := layers(b, lower)
				root.IDMap = idmap
				b.StartTimer()
				t0 := time.Now()
				p, err := shared.Create(contextT(b), Config{ID: "bench", Spec: s, Rootfs: root, Cgroup: g})
				if err != nil {
					b.Fatal(err)
				}
				t1 := time.Now()
				if err := p.Start(contextT(b)); err != nil {
					b.Fatal(err)
				}
				t2 := time.Now()
				if code, _ := wait(b, p); code != 0 {
					b.Fatal("it failed")
				}
				create, begin, end = create+t1.Sub(t0), begin+t2.Sub(t1), end+time.Since(t2)
			}
			unix.Getrusage(unix.RUSAGE_CHILDREN, &after)
			n := float64(b.N)
			cpu := time.Duration(after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano())
			b.ReportMetric(create.Seconds()*1e3/n, "ms/create")
			b.ReportMetric(begin.Seconds()*1e3/n, "ms/start")
			b.ReportMetric(end.Seconds()*1e3/n, "ms/end")
			b.ReportMetric(cpu.Seconds()*1e3/n, "cpu-ms/op")
		})
	}
}

// BenchmarkExec is a process that joins a container, to its end, as it begins by itself and
// with orlop-init, in turns: the time of each, and the CPU time of what was started.
func BenchmarkExec(b *testing.B) {
	s := spec("sleep", "1000")
	s.Linux.Seccomp = defaultSeccomp(b)
	g := group(b)
	p, end := start(b, Config{ID: "target", Spec: s, Rootfs: layers(b, image(b)), Cgroup: g})
	defer end()
	filter, err := seccomp.Compile(s.Linux.Seccomp)
	if err != nil {
		b.Fatal(err)
	}
	process := spec("/bin/true").Process
	var wall, cpu [2]time.Duration
	for b.Loop() {
		for way := range 2 {
			restore := func() {}
			if way == 1 {
				restore = byInit()
			}
			var before, after unix.Rusage
			unix.Getrusage(unix.RUSAGE_CHILDREN, &before)
			began := time.Now()
			q, err := shared.Exec(contextT(b), ExecConfig{PID: p.PID(), PIDFD: p.PIDFD(), Cgroup: g, Filter: filter, Process: process})
			if err == nil {
				err = q.Start(contextT(b))
			}
			if err != nil {
				b.Fatal(err)
			}
			wait(b, q)
			wall[way] += time.Since(began)
			unix.Getrusage(unix.RUSAGE_CHILDREN, &after)
			cpu[way] += time.Duration(after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano())
			restore()
		}
	}
	for way, name := range []string{"straight", "init"} {
		b.ReportMetric(wall[way].Seconds()*1e3/float64(b.N), name+"-ms/op")
		b.ReportMetric(cpu[way].Seconds()*1e3/float64(b.N), name+"-cpu-ms/op")
	}
}
