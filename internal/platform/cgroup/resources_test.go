package cgroup

import (
	"errors"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// Every value is set in the kernel and read back from it.
func TestResources(t *testing.T) {
	on(t, func(t *testing.T, h *Host) {
		p := root(t, h)
		type files map[string]string
		for _, tt := range []struct {
			name   string
			res    specs.LinuxResources
			v1, v2 files      // nil: not on this side
			none1  *errs.Kind // the kind of the refusal where nil
			none2  *errs.Kind
		}{
			{name: "shares", res: specs.LinuxResources{CPU: &specs.LinuxCPU{Shares: to(uint64(2048))}},
				v1: files{"cpu.shares": "2048"}, v2: files{"cpu.weight": "174"}},
			{name: "quota", res: specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: to(int64(25000)), Period: to(uint64(50000))}},
				v1: files{"cpu.cfs_quota_us": "25000", "cpu.cfs_period_us": "50000"}, v2: files{"cpu.max": "25000 50000"}},
			{name: "quota over a longer period than the default", res: specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: to(int64(400000)), Period: to(uint64(200000))}},
				v1: files{"cpu.cfs_quota_us": "400000", "cpu.cfs_period_us": "200000"}, v2: files{"cpu.max": "400000 200000"}},
			{name: "quota alone", res: specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: to(int64(30000))}},
				v1: files{"cpu.cfs_quota_us": "30000", "cpu.cfs_period_us": "100000"}, v2: files{"cpu.max": "30000 100000"}},
			{name: "no quota", res: specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: to(int64(-1)), Period: to(uint64(100000))}},
				v1: files{"cpu.cfs_quota_us": "-1"}, v2: files{"cpu.max": "max 100000"}},
			{name: "burst", res: specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: to(int64(30000)), Burst: to(uint64(10000))}},
				v1: files{"cpu.cfs_burst_us": "10000"}, v2: files{"cpu.max.burst": "10000"}},
			{name: "idle", res: specs.LinuxResources{CPU: &specs.LinuxCPU{Idle: to(int64(1)), Shares: to(uint64(512))}},
				v1: files{"cpu.idle": "1"}, v2: files{"cpu.idle": "1"}},
			{name: "cpuset", res: specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "0-1", Mems: "0"}},
				v1: files{"cpuset.cpus": "0-1", "cpuset.mems": "0"}, v2: files{"cpuset.cpus": "0-1", "cpuset.mems": "0"}},
			{name: "memory", res: specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: to(int64(64 << 20)), Swap: to(int64(96 << 20)), Reservation: to(int64(32 << 20))}},
				v1: files{"memory.limit_in_bytes": "67108864", "memory.memsw.limit_in_bytes": "100663296", "memory.soft_limit_in_bytes": "33554432"},
				v2: files{"memory.max": "67108864", "memory.swap.max": "33554432", "memory.low": "33554432"}},
			{name: "memory without limit", res: specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: to(int64(-1))}},
				v1: files{"memory.limit_in_bytes": "9223372036854771712"}, v2: files{"memory.max": "max", "memory.swap.max": "max"}},
			{name: "swap without limit", res: specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: to(int64(64 << 20)), Swap: to(int64(-1))}},
				v1: files{"memory.limit_in_bytes": "67108864"}, v2: files{"memory.max": "67108864", "memory.swap.max": "max"}},
			{name: "swappiness", res: specs.LinuxResources{Memory: &specs.LinuxMemory{Swappiness: to(uint64(10))}},
				v1: files{"memory.swappiness": "10"}, none2: errs.Unsupported},
			{name: "oom", res: specs.LinuxResources{Memory: &specs.LinuxMemory{DisableOOMKiller: to(true)}},
				v1: files{"memory.oom_control": "oom_kill_disable 1"}, none2: errs.Unsupported},
			{name: "pids", res: specs.LinuxResources{Pids: &specs.LinuxPids{Limit: to(int64(77))}},
				v1: files{"pids.max": "77"}, v2: files{"pids.max": "77"}},
			{name: "no pids", res: specs.LinuxResources{Pids: &specs.LinuxPids{Limit: to(int64(-1))}},
				v1: files{"pids.max": "max"}, v2: files{"pids.max": "max"}},
			{name: "real time", res: specs.LinuxResources{CPU: &specs.LinuxCPU{RealtimeRuntime: to(int64(5000))}}, none2: errs.Unsupported},
			{name: "unified", res: specs.LinuxResources{Unified: map[string]string{"memory.high": "50331648", "pids.max": "9"}},
				none1: errs.Unsupported, v2: files{"memory.high": "50331648", "pids.max": "9"}},
			{name: "net_cls", res: specs.LinuxResources{Network: &specs.LinuxNetwork{ClassID: to(uint32(3))}}, none2: errs.Unsupported, none1: errs.Unsupported},
		} {
			t.Run(tt.name, func(t *testing.T) {
				want, refusal := tt.v2, tt.none2
				if h.layout.Mode != V2 {
					want, refusal = tt.v1, tt.none1
				}
				if want == nil && refusal == nil {
					t.Skip("this side is not in the table: it depends on the kernel's configuration")
				}
				name := p + "/" + strings.ReplaceAll(tt.name, " ", "-")
				g, err := h.Create(name, &tt.res)
				if want == nil {
					if !errors.Is(err, refusal) {
						t.Fatalf("%v, want %v", err, refusal)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				check := func() {
					t.Helper()
					for file, v := range want {
						controller, _, _ := strings.Cut(file, ".")
						dir := g.Dirs()[controller]
						if dir == "" {
							dir = g.Dirs()[""]
						}
						b, err := os.ReadFile(dir + "/" + file)
						if got, _, _ := strings.Cut(string(b), "\n"); err != nil || got != v {
							t.Errorf("%s is %q, want %q (%v)", file, got, v, err)
						}
					}
				}
				check()
				if err := g.Update(&tt.res); err != nil {
					t.Errorf("Update to the same: %v", err)
				}
				check()
				c := spawn(t, g, "wait") // nothing of it keeps processes out
				c.line(t)
			})
		}
	})
}

func TestUpdateGrowsAndShrinks(t *testing.T) {
	on(t, func(t *testing.T, h *Host) {
		g, err := h.Create(root(t, h), nil)
		if err != nil {
			t.Fatal(err)
		}
		for _, mib := range []int64{256, 64, 512, 128} {
			b := mib << 20
			err := g.Update(&specs.LinuxResources{
				Memory: &specs.LinuxMemory{Limit: &b, Swap: to(b * 2)},
				CPU:    &specs.LinuxCPU{Quota: to(mib * 250), Burst: to(uint64(mib * 125)), Period: to(uint64(100000))},
			})
			if err != nil {
				t.Fatalf("%d MiB: %v", mib, err)
			}
			if s, err := g.Stats(); err != nil || s.Memory.LimitBytes != uint64(b) {
				t.Errorf("%d MiB: limit %d, %v", mib, s.Memory.LimitBytes, err)
			}
		}
		c := spawn(t, g, "hog 20")
		c.line(t)
		c.line(t)
		err = g.Update(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: to(int64(4 << 20)), CheckBeforeUpdate: to(true)}})
		if !errors.Is(err, errs.FailedPrecondition) {
			t.Errorf("limit below use, checked: %v", err)
		}
		// A controller that the group has been made without.
		if err := g.Update(&specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "0", Mems: "0"}}); err != nil {
			t.Error(err)
		}
		b, err := os.ReadFile("/proc/" + itoa(c.Process.Pid) + "/status")
		if err != nil || !strings.Contains(string(b), "Cpus_allowed_list:\t0\n") {
			t.Errorf("the process is not held to CPU 0 (%v)", err)
		}
		gone, _ := h.group(g.Path() + "/gone")
		if err := gone.Update(&specs.LinuxResources{Pids: &specs.LinuxPids{Limit: to(int64(1))}}); !errors.Is(err, errs.NotFound) {
			t.Errorf("Update of nothing: %v", err)
		}
		if len(gone.Dirs()) > 0 {
			t.Error("Update made a group")
		}
	})
}

func TestBlockIO(t *testing.T) {
	on(t, func(t *testing.T, h *Host) {
		dev := blockDevice(t)
		if dev == [2]int64{} {
			t.Skip("no block device to limit")
		}
		d := specs.LinuxBlockIODevice{Major: dev[0], Minor: dev[1]}
		throttle := func(rate uint64) []specs.LinuxThrottleDevice {
			return []specs.LinuxThrottleDevice{{LinuxBlockIODevice: d, Rate: rate}}
		}
		g, err := h.Create(root(t, h), &specs.LinuxResources{BlockIO: &specs.LinuxBlockIO{
			ThrottleReadBpsDevice: throttle(1 << 20), ThrottleWriteIOPSDevice: throttle(100),
		}})
		if err != nil {
			t.Fatal(err)
		}
		file, want := g.Dirs()["blkio"]+"/blkio.throttle.read_bps_device", "1048576"
		if h.layout.Mode == V2 {
			file, want = g.Dirs()[""]+"/io.max", "rbps=1048576 wbps=max riops=max wiops=100"
		}
		if b, err := os.ReadFile(file); err != nil || !strings.Contains(string(b), want) {
			t.Errorf("%s: %q, %v", file, b, err)
		}
	})
}

// blockDevice is a disk of the machine.
func blockDevice(t *testing.T) (dev [2]int64) {
	list, err := os.ReadDir("/sys/block")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list {
		b, err := os.ReadFile("/sys/block/" + e.Name() + "/dev")
		if id, ok := parseDevice(strings.TrimSpace(string(b))); err == nil && ok {
			return [2]int64{int64(id[0]), int64(id[1])}
		}
	}
	return dev
}

func TestHugepages(t *testing.T) {
	on(t, func(t *testing.T, h *Host) {
		sizes := hugepageSizes()
		if len(sizes) == 0 {
			t.Skip("this machine has no huge pages")
		}
		res := &specs.LinuxResources{HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: sizes[0], Limit: 4 << 30}}}
		if _, ok := h.hierarchyOf("hugetlb"); !ok && !h.unified.has("hugetlb") {
			if _, err := h.Create(root(t, h), res); !errors.Is(err, errs.Unsupported) {
				t.Errorf("without the controller: %v", err)
			}
			return
		}
		if h.layout.Mode == Hybrid {
			// To have it in the group, the root group must hand it down, which would
			// stay so after this test.
			now, err := read(h.unified.mount, "cgroup.subtree_control")
			if err != nil || !slices.Contains(strings.Fields(now), "hugetlb") {
				t.Skip("the root of cgroup2 does not hand down hugetlb, and tests do not change that")
			}
		}
		g, err := h.Create(root(t, h), res)
		if err != nil {
			t.Fatal(err)
		}
		s, err := g.Stats()
		if err != nil || s.HugeTLB[sizes[0]].LimitBytes != 4<<30 {
			t.Errorf("%+v, %v", s.HugeTLB, err)
		}
		res.HugepageLimits[0].Pagesize = "4GB" // of no processor
		if err := g.Update(res); !errors.Is(err, errs.Unsupported) || !strings.Contains(err.Error(), "this host has") {
			t.Errorf("a size that there is not: %v", err)
		}
	})
}

func TestWeights(t *testing.T) {
	for shares, want := range map[uint64]uint64{0: 1, 1: 1, 2: 1, 100: 17, 1024: 100, 2048: 174, 10000: 627, 262144: 10000, 1 << 40: 10000} {
		if got := Weight(shares); got != want {
			t.Errorf("Weight(%d) = %d, want %d", shares, got, want)
		}
	}
	for last, s := uint64(0), uint64(2); s <= 1<<18; s++ {
		w := Weight(s)
		if w < last || w < 1 || w > 10000 {
			t.Fatalf("Weight(%d) = %d after %d", s, w, last)
		}
		last = w
	}
	for w, want := range map[uint16]uint16{10: 1, 100: 909 + 1, 500: 4950, 1000: 10000} {
		if got := IOWeight(w); got != want {
			t.Errorf("IOWeight(%d) = %d, want %d", w, got, want)
		}
	}
}

func TestHugepageName(t *testing.T) {
	for in, want := range map[string]string{"2MB": "2MB", "2Mi": "2MB", "2048KB": "2MB", "1GB": "1GB", "1Gi": "1GB", "64KB": "64KB", "1024MB": "1GB"} {
		if got, err := hugepageName(in); got != want || err != nil {
			t.Errorf("%q: %q, %v; want %q", in, got, err, want)
		}
	}
	for _, in := range []string{"", "MB", "2", "-2MB", "2mb", "0MB", "2MBMB", "../2MB"} {
		if got, err := hugepageName(in); !errors.Is(err, errs.Invalid) {
			t.Errorf("%q: %q, %v", in, got, err)
		}
	}
}

func TestStats(t *testing.T) {
	on(t, func(t *testing.T, h *Host) {
		p := root(t, h)
		g, err := h.Create(p+"/app", &specs.LinuxResources{
			CPU:    &specs.LinuxCPU{Quota: to(int64(5000)), Period: to(uint64(10000))},
			Memory: &specs.LinuxMemory{Limit: to(int64(256 << 20))},
		})
		if err != nil {
			t.Fatal(err)
		}
		hog, spin := spawn(t, g, "hog 32"), spawn(t, g, "spin")
		hog.line(t)
		hog.line(t)
		spin.line(t)
		var s Stats
		until(t, "the quota holds it back", func() bool {
			if s, err = g.Stats(); err != nil {
				t.Fatal(err)
			}
			return s.CPU.ThrottledPeriods > 0 && s.CPU.Throttled > 0 && s.CPU.Usage > 0
		})
		if s.CPU.User+s.CPU.System == 0 || s.CPU.Periods < s.CPU.ThrottledPeriods {
			t.Errorf("CPU: %+v", s.CPU)
		}
		m := s.Memory
		if m.RSSBytes < 32<<20 || m.UsageBytes < m.RSSBytes || m.WorkingSetBytes < 32<<20 || m.WorkingSetBytes > m.UsageBytes ||
			m.LimitBytes != 256<<20 || m.PageFaults == 0 {
			t.Errorf("memory: %+v", m)
		}
		if s.PIDs.Current < 2 || s.PIDs.Limit != 0 {
			t.Errorf("pids: %+v", s.PIDs)
		}
		if h.layout.Mode != V1 && s.Pressure == nil && slices.Contains(slices.Collect(maps.Keys(exposed(h.unified.mount))), "cpu.pressure") {
			t.Error("no pressure")
		}
		pod, err := h.Load(p)
		if err != nil {
			t.Fatal(err)
		}
		if ps, err := pod.Stats(); err != nil || ps.Memory.RSSBytes < 32<<20 || ps.CPU.Usage == 0 {
			t.Errorf("the parent: %+v, %v", ps, err)
		}
		gone, _ := h.group(p + "/gone")
		if _, err := gone.Stats(); !errors.Is(err, errs.NotFound) {
			t.Errorf("Stats of nothing: %v", err)
		}
	})
}

func exposed(dir string) map[string]bool {
	m := map[string]bool{}
	list, _ := os.ReadDir(dir)
	for _, e := range list {
		m[e.Name()] = true
	}
	return m
}

func TestParsers(t *testing.T) {
	p := parsePSI("some avg10=1.50 avg60=0.25 avg300=0.00 total=2500\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=7")
	if p.Some.Avg10 != 1.5 || p.Some.Avg60 != 0.25 || p.Some.Total.Microseconds() != 2500 || p.Full.Total.Microseconds() != 7 {
		t.Errorf("%+v", p)
	}
	io := parseIOStat("254:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0\n8:16 rbytes=5\n7:0\nrubbish")
	if !slices.Equal(io, []DeviceIO{{8, 16, 5, 0, 0, 0}, {254, 0, 1, 2, 3, 4}}) {
		t.Errorf("%+v", io)
	}
}
