package main

import (
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/orlop-io/orlop/internal/platform/cgroup"
	"github.com/orlop-io/orlop/internal/platform/container"
)

// event is a line of the events command. The names are runc's, which its callers decode.
type event struct {
	Type string `json:"type"`
	ID   string `json:"id"`
	Data any    `json:"data,omitempty"`
}

type stats struct {
	CPU     statCPU                `json:"cpu"`
	CPUSet  struct{}               `json:"cpuset"`
	Memory  statMemory             `json:"memory"`
	Pids    statPids               `json:"pids"`
	Blkio   statBlkio              `json:"blkio"`
	Hugetlb map[string]statHugetlb `json:"hugetlb"`
}

type statCPU struct {
	Usage struct {
		Total  uint64 `json:"total"` // nanoseconds
		Kernel uint64 `json:"kernel"`
		User   uint64 `json:"user"`
	} `json:"usage"`
	Throttling struct {
		Periods          uint64 `json:"periods"`
		ThrottledPeriods uint64 `json:"throttledPeriods"`
		ThrottledTime    uint64 `json:"throttledTime"`
	} `json:"throttling"`
	PSI *statPSI `json:"psi,omitempty"`
}

type statMemoryEntry struct {
	Limit   uint64 `json:"limit"`
	Usage   uint64 `json:"usage,omitempty"`
	Max     uint64 `json:"max,omitempty"`
	Failcnt uint64 `json:"failcnt"`
}

type statMemory struct {
	Cache uint64            `json:"cache,omitempty"`
	Usage statMemoryEntry   `json:"usage"`
	Swap  statMemoryEntry   `json:"swap"`
	Raw   map[string]uint64 `json:"raw,omitempty"`
	PSI   *statPSI          `json:"psi,omitempty"`
}

type statPids struct {
	Current uint64 `json:"current,omitempty"`
	Limit   uint64 `json:"limit,omitempty"`
}

type statBlkioEntry struct {
	Major uint64 `json:"major"`
	Minor uint64 `json:"minor"`
	Op    string `json:"op"`
	Value uint64 `json:"value"`
}

type statBlkio struct {
	Bytes []statBlkioEntry `json:"ioServiceBytesRecursive,omitempty"`
	Ops   []statBlkioEntry `json:"ioServicedRecursive,omitempty"`
	PSI   *statPSI         `json:"psi,omitempty"`
}

type statHugetlb struct {
	Usage   uint64 `json:"usage,omitempty"`
	Max     uint64 `json:"max,omitempty"`
	Failcnt uint64 `json:"failcnt"`
}

type statPSI struct {
	Some statPSILine `json:"some"`
	Full statPSILine `json:"full"`
}

type statPSILine struct {
	Avg10  float64 `json:"avg10"`
	Avg60  float64 `json:"avg60"`
	Avg300 float64 `json:"avg300"`
	Total  uint64  `json:"total"` // microseconds
}

func psi(p cgroup.PSI) *statPSI {
	line := func(l cgroup.PSILine) statPSILine {
		return statPSILine{l.Avg10, l.Avg60, l.Avg300, uint64(l.Total.Microseconds())}
	}
	return &statPSI{line(p.Some), line(p.Full)}
}

func statsOf(s cgroup.Stats) stats {
	var o stats
	o.CPU.Usage.Total, o.CPU.Usage.Kernel, o.CPU.Usage.User = uint64(s.CPU.Usage), uint64(s.CPU.System), uint64(s.CPU.User)
	o.CPU.Throttling.Periods, o.CPU.Throttling.ThrottledPeriods = s.CPU.Periods, s.CPU.ThrottledPeriods
	o.CPU.Throttling.ThrottledTime = uint64(s.CPU.Throttled)
	m := s.Memory
	o.Memory.Cache = m.CacheBytes
	o.Memory.Usage = statMemoryEntry{Limit: m.LimitBytes, Usage: m.UsageBytes, Max: m.PeakBytes}
	o.Memory.Swap.Usage = m.SwapBytes
	o.Memory.Raw = map[string]uint64{"rss": m.RSSBytes, "pgfault": m.PageFaults, "pgmajfault": m.MajorPageFaults, "working_set": m.WorkingSetBytes}
	o.Pids = statPids{s.PIDs.Current, s.PIDs.Limit}
	for _, d := range s.IO {
		entry := func(op string, v uint64) statBlkioEntry {
			return statBlkioEntry{uint64(d.Major), uint64(d.Minor), op, v}
		}
		o.Blkio.Bytes = append(o.Blkio.Bytes, entry("Read", d.ReadBytes), entry("Write", d.WriteBytes))
		o.Blkio.Ops = append(o.Blkio.Ops, entry("Read", d.ReadOps), entry("Write", d.WriteOps))
	}
	o.Hugetlb = map[string]statHugetlb{}
	for size, h := range s.HugeTLB {
		o.Hugetlb[size] = statHugetlb{Usage: h.UsageBytes}
	}
	if p := s.Pressure; p != nil {
		o.CPU.PSI, o.Memory.PSI, o.Blkio.PSI = psi(p.CPU), psi(p.Memory), psi(p.IO)
	}
	return o
}

func eventsCommand(f *flags) func(*app, []string) error {
	interval := 5 * time.Second
	var once bool
	f.add("interval", "DURATION", "time between two reports of use (default: 5s)", func(s string) (err error) {
		interval, err = time.ParseDuration(s)
		return err
	})
	f.bool(&once, "stats", "", "report the use once, and end")
	return func(a *app, args []string) error {
		if interval <= 0 {
			return fmt.Errorf("--interval %s: it must be above zero", interval)
		}
		c, err := a.load(args[0])
		if err != nil {
			return err
		}
		st, err := c.Status()
		if err != nil {
			return err
		}
		if st == container.Stopped {
			return fmt.Errorf("container not running: %s is stopped", args[0])
		}
		out := json.NewEncoder(os.Stdout)
		report := func() (uint64, error) {
			s, kills, err := c.Stats()
			if err != nil {
				return 0, err
			}
			return kills, out.Encode(event{"stats", args[0], statsOf(s)})
		}
		before, err := report()
		if err != nil || once {
			return err
		}
		ctx, stop := interruptible()
		defer stop()
		return c.Watch(ctx, interval, before, func(oom bool) error {
			if oom {
				return out.Encode(event{Type: "oom", ID: args[0]})
			}
			_, err := report()
			return err
		})
	}
}
