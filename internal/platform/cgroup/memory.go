package cgroup

import (
	"errors"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/orlop-io/orlop/internal/base/errs"
)

func wantsMemory(r *specs.LinuxMemory) bool {
	return r.Limit != nil || r.Swap != nil || r.Reservation != nil || r.KernelTCP != nil ||
		r.Swappiness != nil || r.DisableOOMKiller != nil
}

// leastMemory is what a process needs to be executed, in bytes, most of it the kernel's for
// it. Below, the kernel ends whoever joins the group at any system call, without a word.
const leastMemory = 256 << 10

// planMemory follows the runtime specification: 0 means not given, -1 no limit, swap
// counts memory and swap together. The kernel memory limit (deprecated there, gone from
// the kernel since 5.16) and useHierarchy (always so) are left alone.
func planMemory(p planner, r *specs.LinuxMemory) error {
	limit, swap := value(r.Limit), value(r.Swap)
	switch {
	case limit > 0 && limit < leastMemory:
		return errs.New(errs.Invalid, "memory.limit %d is in bytes, and no process can begin in less than %d of them", limit, leastMemory)
	case limit > 0 && swap > 0 && swap < limit:
		return errs.New(errs.Invalid, "memory.swap %d is memory and swap together and must not be below memory.limit %d", swap, limit)
	case limit < -1 || swap < -1:
		return errs.New(errs.Invalid, "memory.limit %d, memory.swap %d: use bytes, or -1 for no limit", limit, swap)
	case limit < 0 && swap == 0:
		swap = -1 // without a limit of memory, one of both would be one after all
	}
	m := memoryLimit{limit: limit, swap: swap, check: r.CheckBeforeUpdate != nil && *r.CheckBeforeUpdate}
	if !p.v2 {
		if m.limit != 0 || m.swap != 0 {
			p.do(m.setV1)
		}
		if v := value(r.Reservation); v != 0 {
			p.set("memory.soft_limit_in_bytes", strconv.FormatInt(v, 10))
		}
		if v := value(r.KernelTCP); v != 0 {
			p.set("memory.kmem.tcp.limit_in_bytes", strconv.FormatInt(v, 10))
		}
		if r.Swappiness != nil {
			if *r.Swappiness > 100 {
				return errs.New(errs.Invalid, "memory.swappiness %d: use 0 to 100", *r.Swappiness)
			}
			p.set("memory.swappiness", strconv.FormatUint(*r.Swappiness, 10))
		}
		if r.DisableOOMKiller != nil {
			p.do(func(dir string) error { return setOOMDisable(dir, *r.DisableOOMKiller) })
		}
		return nil
	}
	switch {
	case value(r.KernelTCP) > 0:
		return errs.New(errs.Unsupported, "memory.kernelTCP: cgroup v2 counts it as memory and has no limit of its own; leave it out")
	case r.Swappiness != nil:
		return errs.New(errs.Unsupported, "memory.swappiness: cgroup v2 has no such value; limit memory.swap instead")
	case r.DisableOOMKiller != nil && *r.DisableOOMKiller:
		return errs.New(errs.Unsupported, "memory.disableOOMKiller: cgroup v2 cannot disable the OOM killer; leave it out")
	}
	if m.limit != 0 || m.swap != 0 {
		p.do(m.setV2)
	}
	if v := value(r.Reservation); v != 0 {
		p.set("memory.low", v2Bytes(v))
	}
	return nil
}

func value(v *int64) int64 {
	if v == nil {
		return 0
	}
	return *v
}

func v2Bytes(v int64) string {
	if v < 0 {
		return "max"
	}
	return strconv.FormatInt(v, 10)
}

// memoryLimit is bytes; 0 leaves as it is, -1 is no limit. swap includes memory.
type memoryLimit struct {
	limit, swap int64
	check       bool // refuse a limit below the present use
}

func (m memoryLimit) fits(dir, file string) error {
	if !m.check || m.limit <= 0 {
		return nil
	}
	use, _, err := readUint(dir, file)
	if err != nil {
		return err
	}
	if use > uint64(m.limit) {
		return errs.New(errs.FailedPrecondition, "memory.limit %d is below the %d bytes in use (%s/%s)", m.limit, use, dir, file)
	}
	return nil
}

// setV1 keeps to the kernel's rule that memory.memsw is never below memory: when both
// grow, memsw goes first.
func (m memoryLimit) setV1(dir string) error {
	const file, both = "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"
	if err := m.fits(dir, "memory.usage_in_bytes"); err != nil {
		return err
	}
	setLimit := func() error {
		if m.limit == 0 {
			return nil
		}
		return write(dir, file, strconv.FormatInt(m.limit, 10))
	}
	setSwap := func() error {
		if m.swap == 0 || m.swap < 0 && !exists(dir, both) { // no swap accounting: no limit anyway
			return nil
		}
		return write(dir, both, strconv.FormatInt(m.swap, 10))
	}
	grows := m.swap < 0
	if m.swap > 0 {
		if now, none, err := readUint(dir, both); err == nil {
			grows = !none && uint64(m.swap) > now
		}
	}
	if grows {
		if err := setSwap(); err != nil {
			return err
		}
		return setLimit()
	}
	if err := setLimit(); err != nil {
		return err
	}
	return setSwap()
}

func (m memoryLimit) setV2(dir string) error {
	if err := m.fits(dir, "memory.current"); err != nil {
		return err
	}
	if m.swap != 0 {
		v := "max"
		if m.swap > 0 {
			limit := m.limit
			if limit == 0 { // only swap is changed: the limit is the one that the group has
				now, none, err := readUint(dir, "memory.max")
				if err != nil {
					return err
				}
				if none {
					limit = -1
				} else {
					limit = int64(now)
				}
			}
			if limit < 0 {
				return errs.New(errs.Invalid, "memory.swap %d limits memory and swap together, which cgroup v2 can only do under a memory.limit; set one", m.swap)
			}
			if m.swap < limit {
				return errs.New(errs.Invalid, "memory.swap %d is memory and swap together and must not be below memory.limit %d", m.swap, limit)
			}
			v = strconv.FormatInt(m.swap-limit, 10)
		}
		// A kernel without swap has no file and no swap to limit.
		if exists(dir, "memory.swap.max") {
			if err := write(dir, "memory.swap.max", v); err != nil {
				return err
			}
		}
	}
	if m.limit != 0 {
		return write(dir, "memory.max", v2Bytes(m.limit))
	}
	return nil
}

// MemoryAndSwap is the limit in bytes of both together as v1 has it, of a group on cgroup v2
// that has one. There the kernel has a limit for each, so whoever changes that of memory alone
// has to say what the sum is to be.
func (g *Group) MemoryAndSwap() (total int64, limited bool) {
	if _, v1 := g.host.hierarchyOf("memory"); v1 || !g.host.unified.has("memory") {
		return 0, false
	}
	memory, none1, err1 := readUint(g.unifiedDir(), "memory.max")
	swap, none2, err2 := readUint(g.unifiedDir(), "memory.swap.max")
	return int64(memory + swap), err1 == nil && err2 == nil && !none1 && !none2
}

func setOOMDisable(dir string, disable bool) error {
	v := "0"
	if disable {
		v = "1"
	}
	return write(dir, "memory.oom_control", v)
}

// refusedMissing turns a file that is missing when it is read before being set into
// what writing it would have said.
func refusedMissing(dir, file string, err error) error {
	if errors.Is(err, errs.NotFound) && isDir(dir) {
		return errs.New(errs.Unsupported, "cgroup: this kernel, or what it enables here, has no %s (%s/%s)", file, dir, file)
	}
	return err
}
