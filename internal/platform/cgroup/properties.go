package cgroup

import (
	"math"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// prop is a property of a systemd unit (systemd.resource-control(5), with the names and
// types of org.freedesktop.systemd1(5)).
type prop struct {
	name  string
	value any
}

const infinity = uint64(math.MaxUint64)

// planProperties says in systemd's words what it has words for. What it has none for
// (burst, huge pages, RDMA, throttling by device number) it leaves alone in the files.
func planProperties(p *plan, res *specs.LinuxResources) error {
	add := func(name string, v any) { p.props = append(p.props, prop{name, v}) }
	if c := res.CPU; c != nil {
		switch {
		case c.Idle != nil && *c.Idle != 0:
			add("CPUWeight", uint64(0)) // "idle", systemd 252
		case nonzero(c.Shares):
			add("CPUWeight", Weight(*c.Shares))
		case c.Idle != nil:
			add("CPUWeight", uint64(100))
		}
		period := uint64(100000)
		if nonzero(c.Period) {
			period = *c.Period
			add("CPUQuotaPeriodUSec", period)
		}
		if c.Quota != nil && *c.Quota != 0 {
			perSec := infinity
			if *c.Quota > 0 {
				perSec = (uint64(*c.Quota)*1e6 + period - 1) / period
			}
			add("CPUQuotaPerSecUSec", perSec)
		}
		for _, set := range []struct{ name, list string }{{"AllowedCPUs", c.Cpus}, {"AllowedMemoryNodes", c.Mems}} {
			if set.list == "" {
				continue
			}
			mask, err := bitmask(set.list)
			if err != nil {
				return err
			}
			add(set.name, mask)
		}
	}
	if m := res.Memory; m != nil {
		limit, swap := value(m.Limit), value(m.Swap)
		bytes := func(v int64) uint64 {
			if v < 0 {
				return infinity
			}
			return uint64(v)
		}
		if limit != 0 {
			add("MemoryMax", bytes(limit))
		}
		switch {
		case swap < 0 || limit < 0 && swap == 0:
			add("MemorySwapMax", infinity)
		case swap > 0 && limit > 0:
			add("MemorySwapMax", uint64(swap-limit))
		}
		if r := value(m.Reservation); r != 0 {
			add("MemoryLow", bytes(r))
		}
	}
	if l := res.Pids; l != nil && l.Limit != nil {
		if *l.Limit < 0 {
			add("TasksMax", infinity)
		} else {
			add("TasksMax", uint64(max(*l.Limit, 1)))
		}
	}
	if b := res.BlockIO; b != nil && nonzero16(b.Weight) {
		add("IOWeight", uint64(IOWeight(*b.Weight)))
	}
	return nil
}

// bitmask turns a list like "0-3,8" into bytes, of which bit n of byte m is 8·m+n.
func bitmask(list string) ([]byte, error) {
	var mask []byte
	for part := range strings.SplitSeq(list, ",") {
		from, to, ok := strings.Cut(strings.TrimSpace(part), "-")
		if !ok {
			to = from
		}
		a, err1 := strconv.ParseUint(from, 10, 16)
		b, err2 := strconv.ParseUint(to, 10, 16)
		if err1 != nil || err2 != nil || a > b {
			return nil, errs.New(errs.Invalid, "%q is not a list of CPUs or memory nodes like 0-3,8", list)
		}
		for n := a; n <= b; n++ {
			for uint64(len(mask)) <= n/8 {
				mask = append(mask, 0)
			}
			mask[n/8] |= 1 << (n % 8)
		}
	}
	return mask, nil
}
