package cgroup

import "time"

// Stats is what a group, with all below it, has used. What the host does not count
// is zero.
type Stats struct {
	At       time.Time // when it was read
	CPU      CPUStats
	Memory   MemoryStats
	PIDs     PIDStats
	IO       []DeviceIO // one for each block device that was used
	Pressure *Pressure  // nil where the kernel has no pressure stall information
	HugeTLB  map[string]HugeTLBStats
}

// CPUStats is CPU time since the group was made.
type CPUStats struct {
	Usage, User, System time.Duration
	// Periods of the quota that have passed, those in which the group was held back,
	// and for how long.
	Periods, ThrottledPeriods uint64
	Throttled                 time.Duration
}

// MemoryStats are bytes, and faults since the group was made.
type MemoryStats struct {
	UsageBytes      uint64
	PeakBytes       uint64
	WorkingSetBytes uint64 // usage without the file pages that would be given back first
	RSSBytes        uint64 // anonymous memory
	CacheBytes      uint64 // file pages, tmpfs included
	SwapBytes       uint64
	LimitBytes      uint64 // 0: no limit
	PageFaults      uint64
	MajorPageFaults uint64
	MappedBytes     uint64 // of files that are mapped
	KernelBytes     uint64 // of the kernel for the group; v2: Linux 5.18
	LimitHits       uint64 // how often usage was at the limit
}

// PIDStats counts tasks: processes and threads.
type PIDStats struct {
	Current, Limit uint64 // Limit 0: no limit
}

// DeviceIO is what went to and from one block device since the group was made.
type DeviceIO struct {
	Major, Minor          uint32
	ReadBytes, WriteBytes uint64
	ReadOps, WriteOps     uint64
}

// HugeTLBStats are bytes of huge pages of one size.
type HugeTLBStats struct {
	UsageBytes uint64
	PeakBytes  uint64 // v1 alone counts it
	LimitBytes uint64 // math.MaxUint64: no limit; 0 is one here
}

// Pressure is the kernel's pressure stall information (Documentation/accounting/psi.rst).
type Pressure struct{ CPU, Memory, IO PSI }

// PSI tells for how long some, or all, tasks waited for a resource.
type PSI struct{ Some, Full PSILine }

// PSILine is the share of time in percent over 10, 60 and 300 seconds, and the total.
type PSILine struct {
	Avg10, Avg60, Avg300 float64
	Total                time.Duration
}
