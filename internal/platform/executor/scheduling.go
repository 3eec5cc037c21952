package executor

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/platform/executor/plan"
)

var policies = map[specs.LinuxSchedulerPolicy]uint64{
	specs.SchedOther: unix.SCHED_NORMAL, specs.SchedFIFO: unix.SCHED_FIFO, specs.SchedRR: unix.SCHED_RR,
	specs.SchedBatch: unix.SCHED_BATCH, specs.SchedIdle: unix.SCHED_IDLE, specs.SchedDeadline: unix.SCHED_DEADLINE,
}

var schedFlags = map[specs.LinuxSchedulerFlag]uint64{
	specs.SchedFlagResetOnFork: unix.SCHED_FLAG_RESET_ON_FORK, specs.SchedFlagReclaim: unix.SCHED_FLAG_RECLAIM,
	specs.SchedFlagDLOverrun: unix.SCHED_FLAG_DL_OVERRUN, specs.SchedFlagKeepPolicy: unix.SCHED_FLAG_KEEP_POLICY,
	specs.SchedFlagKeepParams: unix.SCHED_FLAG_KEEP_PARAMS, specs.SchedFlagUtilClampMin: unix.SCHED_FLAG_UTIL_CLAMP_MIN,
	specs.SchedFlagUtilClampMax: unix.SCHED_FLAG_UTIL_CLAMP_MAX,
}

// ioClasses are those of ioprio_set(2).
var ioClasses = map[specs.IOPriorityClass]uint64{specs.IOPRIO_CLASS_RT: 1, specs.IOPRIO_CLASS_BE: 2, specs.IOPRIO_CLASS_IDLE: 3}

var personalities = map[specs.LinuxPersonalityDomain]uint64{specs.PerLinux: 0, specs.PerLinux32: 8}

// scheduling says when and where the process runs, in a specification that has been
// checked.
func (b *builder) scheduling(p *specs.Process, exec bool) {
	if s := p.Scheduler; s != nil {
		var flags uint64
		for _, f := range s.Flags {
			flags |= schedFlags[f]
		}
		b.plan.Add(plan.Scheduler, plan.N(policies[s.Policy], flags, uint64(int64(s.Nice)), uint64(s.Priority), s.Runtime, s.Deadline, s.Period), string(s.Policy))
	}
	if io := p.IOPriority; io != nil {
		b.plan.Add(plan.IOPriority, plan.N(ioClasses[io.Class]<<13|uint64(io.Priority)), fmt.Sprintf("%s %d", io.Class, io.Priority))
	}
	if a := p.ExecCPUAffinity; a != nil && exec {
		b.cpus, _ = numbers(a.Initial, maxCPUs)
		if final, _ := numbers(a.Final, maxCPUs); len(final) > 0 {
			b.plan.Add(plan.Affinity, words(final), a.Final)
		}
	}
}

// memory sets the memory policy and the personality, which survive execve.
func (b *builder) memory(m *specs.LinuxMemoryPolicy, p *specs.LinuxPersonality) error {
	if p != nil {
		if err := checkPersonality(p); err != nil {
			return err
		}
		b.plan.Add(plan.Personality, plan.N(personalities[p.Domain]), string(p.Domain))
	}
	if m == nil {
		return nil
	}
	if err := checkMemoryPolicy(m); err != nil {
		return err
	}
	mode := memoryModes[m.Mode].number
	for _, f := range m.Flags {
		mode |= memoryFlags[f]
	}
	nodes, _ := numbers(m.Nodes, maxNodes)
	what := strings.TrimSpace(string(m.Mode) + " " + m.Nodes)
	b.plan.Add(plan.MemoryPolicy, append(plan.N(mode), words(nodes)...), what)
	return nil
}

// How many nodes a mode takes.
const (
	never = iota
	maybe
	always
)

// memoryModes and memoryFlags are those of set_mempolicy(2), linux/mempolicy.h.
var memoryModes = map[specs.MemoryPolicyModeType]struct {
	number uint64
	nodes  int
}{
	specs.MpolDefault: {0, never}, specs.MpolPreferred: {1, maybe}, specs.MpolBind: {2, always}, specs.MpolInterleave: {3, always},
	specs.MpolLocal: {4, never}, specs.MpolPreferredMany: {5, always}, specs.MpolWeightedInterleave: {6, always},
}

const (
	mpolStatic    = 1 << 15
	mpolRelative  = 1 << 14
	mpolBalancing = 1 << 13
)

var memoryFlags = map[specs.MemoryPolicyFlagType]uint64{
	specs.MpolFStaticNodes: mpolStatic, specs.MpolFRelativeNodes: mpolRelative, specs.MpolFNumaBalancing: mpolBalancing,
}

// More than these no kernel has (CONFIG_NR_CPUS, MAX_NUMNODES).
const (
	maxCPUs  = 8192
	maxNodes = 1024
)

// numbers reads a list like 0-3,7 of numbers below limit.
func numbers(list string, limit int) ([]int, error) {
	if strings.TrimSpace(list) == "" {
		return nil, nil
	}
	var all []int
	for part := range strings.SplitSeq(list, ",") {
		part = strings.TrimSpace(part)
		from, to, isRange := strings.Cut(part, "-")
		if !isRange {
			to = from
		}
		a, err := strconv.ParseUint(from, 10, 32)
		if err != nil {
			return nil, fmt.Errorf("%q in %q is neither a number nor a range", part, list)
		}
		z, err := strconv.ParseUint(to, 10, 32)
		if err != nil || z < a {
			return nil, fmt.Errorf("%q in %q is neither a number nor a range", part, list)
		}
		if z >= uint64(limit) {
			return nil, fmt.Errorf("%d in %q is more than %d", z, list, limit-1)
		}
		for n := int(a); n <= int(z); n++ {
			all = append(all, n)
		}
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

// words makes the kernel's bit mask of numbers.
func words(list []int) []uint64 {
	var w []uint64
	for _, n := range list {
		for len(w) <= n/64 {
			w = append(w, 0)
		}
		w[n/64] |= 1 << (n % 64)
	}
	return w
}

// bindThread makes the calling thread, which is nobody else's and ends, run on these
// CPUs, and what it starts.
func bindThread(list []int) error {
	if len(list) == 0 {
		return nil
	}
	mask := words(list)
	if _, _, e := unix.RawSyscall(unix.SYS_SCHED_SETAFFINITY, 0, uintptr(8*len(mask)), uintptr(unsafe.Pointer(&mask[0]))); e != 0 {
		return fmt.Errorf("process.execCPUAffinity.initial: CPUs %v: %w", list, e)
	}
	return nil
}
