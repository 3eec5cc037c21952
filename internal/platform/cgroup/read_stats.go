package cgroup

import (
	"errors"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// Stats reads what the group has used. A group that does not exist is errs.NotFound.
func (g *Group) Stats() (Stats, error) {
	s := Stats{At: time.Now()}
	if !g.exists() {
		return s, errs.New(errs.NotFound, "read cgroup %s: it does not exist", g.path)
	}
	for _, read := range []func(*Stats) error{g.cpuStats, g.memoryStats, g.pidStats, g.ioStats, g.hugeTLBStats, g.pressure} {
		if err := read(&s); err != nil {
			return s, err
		}
	}
	return s, nil
}

// side returns where the controller's files are and whether they are cgroup2's; "" if
// the group has none.
func (g *Group) side(v1, v2 string) (dir string, unified bool) {
	if t, ok := g.host.hierarchyOf(v1); ok {
		if d := t.mount + g.in(t); isDir(d) {
			return d, false
		}
		return "", false
	}
	if g.host.unified.has(v2) {
		return g.unifiedDir(), true
	}
	return "", false
}

func (g *Group) cpuStats(s *Stats) error {
	// cgroup2 counts time in every group, with or without the controller.
	if u := g.unifiedDir(); u != "" {
		m, err := flat(u, "cpu.stat")
		if err != nil {
			return err
		}
		us := func(key string) time.Duration { return time.Duration(m[key]) * time.Microsecond }
		s.CPU = CPUStats{
			Usage: us("usage_usec"), User: us("user_usec"), System: us("system_usec"),
			Periods: m["nr_periods"], ThrottledPeriods: m["nr_throttled"], Throttled: us("throttled_usec"),
		}
	} else if dir, _ := g.side("cpuacct", ""); dir != "" {
		for _, f := range []struct {
			name string
			to   *time.Duration
		}{{"cpuacct.usage", &s.CPU.Usage}, {"cpuacct.usage_user", &s.CPU.User}, {"cpuacct.usage_sys", &s.CPU.System}} {
			v, _, err := readUint(dir, f.name) // nanoseconds
			if err != nil && !errors.Is(err, errs.NotFound) {
				return err
			}
			*f.to = time.Duration(v)
		}
	}
	if dir, unified := g.side("cpu", "cpu"); dir != "" && !unified {
		m, err := flat(dir, "cpu.stat")
		if err != nil {
			return err
		}
		s.CPU.Periods, s.CPU.ThrottledPeriods, s.CPU.Throttled = m["nr_periods"], m["nr_throttled"], time.Duration(m["throttled_time"])
	}
	return nil
}

func (g *Group) memoryStats(s *Stats) error {
	dir, unified := g.side("memory", "memory")
	if dir == "" {
		return nil
	}
	m, err := flat(dir, "memory.stat")
	if err != nil {
		return err
	}
	usage, peak, limit, swap := "memory.usage_in_bytes", "memory.max_usage_in_bytes", "memory.limit_in_bytes", ""
	key := func(k string) string { return "total_" + k } // v1: with the groups below
	rss, cache, mapped := "total_rss", "total_cache", "total_mapped_file"
	kernel, hits := "memory.kmem.usage_in_bytes", "memory.failcnt"
	if unified {
		usage, peak, limit, swap = "memory.current", "memory.peak", "memory.max", "memory.swap.current"
		key = func(k string) string { return k }
		rss, cache, mapped = "anon", "file", "file_mapped"
		kernel, hits = "", ""
	}
	for _, f := range []struct {
		name string
		to   *uint64
	}{{usage, &s.Memory.UsageBytes}, {peak, &s.Memory.PeakBytes}, {limit, &s.Memory.LimitBytes}, {swap, &s.Memory.SwapBytes}, {kernel, &s.Memory.KernelBytes}, {hits, &s.Memory.LimitHits}} {
		if f.name == "" {
			continue
		}
		v, _, err := readUint(dir, f.name)
		if err != nil && !errors.Is(err, errs.NotFound) { // peak: Linux 5.19; swap: where there is swap
			return err
		}
		*f.to = v
	}
	if !unified {
		s.Memory.SwapBytes = m["total_swap"]
	}
	if unified {
		events, err := flat(dir, "memory.events")
		if err != nil && !errors.Is(err, errs.NotFound) { // the root has none
			return err
		}
		s.Memory.KernelBytes, s.Memory.LimitHits = m["kernel"], events["max"]
	}
	s.Memory.MappedBytes = m[mapped]
	s.Memory.RSSBytes, s.Memory.CacheBytes = m[rss], m[cache]
	s.Memory.PageFaults, s.Memory.MajorPageFaults = m[key("pgfault")], m[key("pgmajfault")]
	if inactive := m[key("inactive_file")]; inactive < s.Memory.UsageBytes {
		s.Memory.WorkingSetBytes = s.Memory.UsageBytes - inactive
	}
	return nil
}

func (g *Group) pidStats(s *Stats) error {
	dir, _ := g.side("pids", "pids")
	if dir == "" {
		return nil
	}
	for _, f := range []struct {
		name string
		to   *uint64
	}{{"pids.current", &s.PIDs.Current}, {"pids.max", &s.PIDs.Limit}} {
		v, _, err := readUint(dir, f.name)
		if err != nil && !errors.Is(err, errs.NotFound) {
			return err
		}
		*f.to = v
	}
	return nil
}

func (g *Group) ioStats(s *Stats) error {
	dir, unified := g.side("blkio", "io")
	if dir == "" {
		return nil
	}
	if unified {
		text, err := read(dir, "io.stat")
		if errors.Is(err, errs.NotFound) {
			return nil
		}
		s.IO = parseIOStat(text)
		return err
	}
	devices := map[[2]uint32]*DeviceIO{}
	for _, f := range []struct {
		file string
		to   func(*DeviceIO) (read, write *uint64)
	}{
		{"blkio.throttle.io_service_bytes_recursive", func(d *DeviceIO) (_, _ *uint64) { return &d.ReadBytes, &d.WriteBytes }},
		{"blkio.throttle.io_serviced_recursive", func(d *DeviceIO) (_, _ *uint64) { return &d.ReadOps, &d.WriteOps }},
	} {
		text, err := read(dir, f.file)
		if err != nil && !errors.Is(err, errs.NotFound) {
			return err
		}
		for line := range strings.SplitSeq(text, "\n") { // "8:0 Read 4096"
			w := strings.Fields(line)
			if len(w) != 3 {
				continue
			}
			id, ok := parseDevice(w[0])
			v, err := strconv.ParseUint(w[2], 10, 64)
			if !ok || err != nil {
				continue
			}
			d := devices[id]
			if d == nil {
				d = &DeviceIO{Major: id[0], Minor: id[1]}
				devices[id] = d
			}
			switch r, wr := f.to(d); w[1] {
			case "Read":
				*r = v
			case "Write":
				*wr = v
			}
		}
	}
	for _, d := range devices {
		s.IO = append(s.IO, *d)
	}
	sortIO(s.IO)
	return nil
}

// parseIOStat reads "8:0 rbytes=1 wbytes=2 rios=3 wios=4 …" lines.
func parseIOStat(text string) (list []DeviceIO) {
	for line := range strings.SplitSeq(text, "\n") {
		w := strings.Fields(line)
		if len(w) < 2 {
			continue
		}
		id, ok := parseDevice(w[0])
		if !ok {
			continue
		}
		d := DeviceIO{Major: id[0], Minor: id[1]}
		for _, kv := range w[1:] {
			k, text, _ := strings.Cut(kv, "=")
			v, err := strconv.ParseUint(text, 10, 64)
			if err != nil {
				continue
			}
			switch k {
			case "rbytes":
				d.ReadBytes = v
			case "wbytes":
				d.WriteBytes = v
			case "rios":
				d.ReadOps = v
			case "wios":
				d.WriteOps = v
			}
		}
		list = append(list, d)
	}
	sortIO(list)
	return list
}

func sortIO(list []DeviceIO) {
	slices.SortFunc(list, func(a, b DeviceIO) int {
		if a.Major != b.Major {
			return int(a.Major) - int(b.Major)
		}
		return int(a.Minor) - int(b.Minor)
	})
}

func parseDevice(s string) (id [2]uint32, ok bool) {
	a, b, ok := strings.Cut(s, ":")
	x, err1 := strconv.ParseUint(a, 10, 32)
	y, err2 := strconv.ParseUint(b, 10, 32)
	return [2]uint32{uint32(x), uint32(y)}, ok && err1 == nil && err2 == nil
}

func (g *Group) hugeTLBStats(s *Stats) error {
	dir, unified := g.side("hugetlb", "hugetlb")
	if dir == "" || !isDir(dir) {
		return nil
	}
	for _, size := range hugepageSizes() {
		use, limit := ".usage_in_bytes", ".limit_in_bytes"
		if unified {
			use, limit = ".current", ".max"
		}
		u, _, err := readUint(dir, "hugetlb."+size+use)
		if errors.Is(err, errs.NotFound) {
			continue
		}
		if err != nil {
			return err
		}
		var peak uint64
		if !unified {
			if peak, _, err = readUint(dir, "hugetlb."+size+".max_usage_in_bytes"); err != nil {
				return err
			}
		}
		l, none, err := readUint(dir, "hugetlb."+size+limit)
		if err != nil {
			return err
		}
		if none {
			l = math.MaxUint64
		}
		if s.HugeTLB == nil {
			s.HugeTLB = map[string]HugeTLBStats{}
		}
		s.HugeTLB[size] = HugeTLBStats{UsageBytes: u, PeakBytes: peak, LimitBytes: l}
	}
	return nil
}

// hugepageSizes lists the sizes that the machine has, by the names of control files.
func hugepageSizes() (names []string) {
	list, _ := subdirs("/sys/kernel/mm/hugepages") // "hugepages-2048kB"
	for _, n := range list {
		if n, ok := strings.CutPrefix(n, "hugepages-"); ok {
			if name, err := hugepageName(strings.TrimSuffix(n, "kB") + "KB"); err == nil {
				names = append(names, name)
			}
		}
	}
	return names
}

func (g *Group) pressure(s *Stats) error {
	dir := g.unifiedDir()
	if dir == "" {
		return nil
	}
	var p Pressure
	for _, f := range []struct {
		name string
		to   *PSI
	}{{"cpu.pressure", &p.CPU}, {"memory.pressure", &p.Memory}, {"io.pressure", &p.IO}} {
		text, err := read(dir, f.name)
		if err != nil { // not built in, or turned off: EOPNOTSUPP
			return nil
		}
		*f.to = parsePSI(text)
	}
	s.Pressure = &p
	return nil
}

// parsePSI reads "some avg10=0.00 avg60=0.00 avg300=0.00 total=0" and the like.
func parsePSI(text string) (p PSI) {
	for line := range strings.SplitSeq(text, "\n") {
		w := strings.Fields(line)
		if len(w) != 5 {
			continue
		}
		var l PSILine
		for _, kv := range w[1:] {
			k, v, _ := strings.Cut(kv, "=")
			f, _ := strconv.ParseFloat(v, 64)
			switch k {
			case "avg10":
				l.Avg10 = f
			case "avg60":
				l.Avg60 = f
			case "avg300":
				l.Avg300 = f
			case "total":
				us, _ := strconv.ParseInt(v, 10, 64)
				l.Total = time.Duration(us) * time.Microsecond
			}
		}
		switch w[0] {
		case "some":
			p.Some = l
		case "full":
			p.Full = l
		}
	}
	return p
}

// OOMKills returns how many processes of the group and below the kernel's
// out-of-memory killer has killed since it was made.
func (g *Group) OOMKills() (uint64, error) {
	dir, unified := g.side("memory", "memory")
	if dir == "" || !isDir(dir) {
		return 0, errs.New(errs.NotFound, "count OOM kills of cgroup %s: it does not exist", g.path)
	}
	if unified {
		m, err := flat(dir, "memory.events") // with the groups below
		return m["oom_kill"], err
	}
	return oomKillsV1(dir)
}

// oomKillsV1 adds up, as v1 counts each group by itself.
func oomKillsV1(dir string) (uint64, error) {
	m, err := flat(dir, "memory.oom_control")
	if err != nil {
		return 0, err
	}
	n := m["oom_kill"] // Linux 4.13
	sub, err := subdirs(dir)
	if err != nil {
		return 0, err
	}
	for _, s := range sub {
		k, err := oomKillsV1(dir + "/" + s)
		if err != nil {
			return 0, err
		}
		n += k
	}
	return n, nil
}
