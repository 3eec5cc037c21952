package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/orlop-io/orlop/internal/platform/container"
)

func updateCommand(f *flags) func(*app, []string) error {
	var file string
	var o container.UpdateOptions
	res := &o.Resources
	cpu, memory, block := &specs.LinuxCPU{}, &specs.LinuxMemory{}, &specs.LinuxBlockIO{}
	f.str(&file, "resources", "", "FILE", "read the limits from this JSON file (linux.resources), or with - from standard input; the other flags then say nothing")
	f.short("r")
	f.add("blkio-weight", "N", "weight of block I/O, 10 to 1000", func(s string) error {
		n, err := strconv.ParseUint(s, 10, 16)
		w := uint16(n)
		block.Weight, res.BlockIO = &w, block
		return err
	})
	unsigned := func(name, value, about string, to **uint64, also func()) {
		f.add(name, value, about, func(s string) error {
			n, err := strconv.ParseUint(s, 10, 64)
			*to = &n
			also()
			return err
		})
	}
	signed := func(name, about string, to **int64, also func(), parse func(string) (int64, error)) {
		f.add(name, "N", about, func(s string) error {
			n, err := parse(s)
			*to = &n
			also()
			return err
		})
	}
	number := func(s string) (int64, error) { return strconv.ParseInt(s, 10, 64) }
	hasCPU, hasMemory := func() { res.CPU = cpu }, func() { res.Memory = memory }
	unsigned("cpu-period", "USEC", "period of the CPU quota", &cpu.Period, hasCPU)
	signed("cpu-quota", "CPU time in a period, in microseconds; -1 is no limit", &cpu.Quota, hasCPU, number)
	unsigned("cpu-burst", "USEC", "quota that may be saved up", &cpu.Burst, hasCPU)
	unsigned("cpu-share", "N", "weight of the CPU", &cpu.Shares, hasCPU)
	unsigned("cpu-rt-period", "USEC", "period of the real-time quota", &cpu.RealtimePeriod, hasCPU)
	signed("cpu-rt-runtime", "real-time CPU time in a period, in microseconds", &cpu.RealtimeRuntime, hasCPU, number)
	f.add("cpuset-cpus", "LIST", "CPUs to use", func(s string) error { cpu.Cpus = s; hasCPU(); return nil })
	f.add("cpuset-mems", "LIST", "memory nodes to use", func(s string) error { cpu.Mems = s; hasCPU(); return nil })
	signed("cpu-idle", "1: run only when nothing else does", &cpu.Idle, hasCPU, number)
	signed("memory", "limit of memory, in bytes (512m is 512 MiB); -1 is no limit", &memory.Limit, hasMemory, size)
	signed("memory-reservation", "memory that is kept from reclaim, in bytes", &memory.Reservation, hasMemory, size)
	signed("memory-swap", "limit of memory and swap together, in bytes; -1 is no limit", &memory.Swap, hasMemory, size)
	f.add("pids-limit", "N", "number of processes and threads; -1 is no limit", func(s string) error {
		n, err := strconv.ParseInt(s, 10, 64)
		res.Pids = &specs.LinuxPids{Limit: &n}
		return err
	})
	f.str(&o.L3CacheSchema, "l3-cache-schema", "", "SCHEMA", "what of the L3 caches to use (Intel RDT), like L3:0=ff;1=c0")
	f.str(&o.MemBwSchema, "mem-bw-schema", "", "SCHEMA", "how much memory bandwidth to use (Intel RDT), like MB:0=20;1=70")
	for _, name := range []string{"kernel-memory", "kernel-memory-tcp"} {
		f.add(name, "N", "has no effect: the kernel counts it as memory", func(s string) error { _, err := size(s); return err })
	}
	return func(a *app, args []string) error {
		if file != "" {
			data, err := orDash(file)
			if err != nil {
				return fmt.Errorf("read the limits: %w", err)
			}
			*res = specs.LinuxResources{}
			if err := json.Unmarshal(data, res); err != nil {
				return fmt.Errorf("read the limits from %s: %w", file, err)
			}
		}
		unset(res)
		ctx, stop := interruptible()
		defer stop()
		c, err := a.load(args[0])
		if err != nil {
			return err
		}
		return c.Update(ctx, o)
	}
}

// size reads bytes, with the units that people write.
func size(s string) (int64, error) {
	digits := strings.TrimRight(strings.ToLower(s), "kmgtib")
	shift, ok := map[string]uint{"": 0, "b": 0, "k": 10, "kb": 10, "kib": 10, "m": 20, "mb": 20, "mib": 20, "g": 30, "gb": 30, "gib": 30, "t": 40, "tb": 40, "tib": 40}[strings.ToLower(s[len(digits):])]
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || !ok || n > 1<<62>>shift || n < -1 {
		return 0, errors.New("write bytes, or a number with k, m, g or t")
	}
	if n < 0 {
		return -1, nil
	}
	return n << shift, nil
}

// unset takes out what is zero: callers write all fields, and a zero means that nothing is asked.
func unset(r *specs.LinuxResources) {
	clear := func(list ...**int64) {
		for _, p := range list {
			if *p != nil && **p == 0 {
				*p = nil
			}
		}
	}
	clearU := func(list ...**uint64) {
		for _, p := range list {
			if *p != nil && **p == 0 {
				*p = nil
			}
		}
	}
	if m := r.Memory; m != nil {
		clear(&m.Limit, &m.Reservation, &m.Swap)
	}
	if c := r.CPU; c != nil {
		clear(&c.Quota, &c.RealtimeRuntime)
		clearU(&c.Shares, &c.Period, &c.RealtimePeriod)
	}
	if b := r.BlockIO; b != nil && b.Weight != nil && *b.Weight == 0 {
		b.Weight = nil
	}
}
