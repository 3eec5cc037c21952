package cgroup

import (
	"errors"
	"math"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/orlop-io/orlop/internal/base/errs"
)

func wantsCPU(r *specs.LinuxCPU) bool {
	return r.Shares != nil || r.Quota != nil || r.Period != nil || r.Burst != nil || r.Idle != nil ||
		r.RealtimePeriod != nil || r.RealtimeRuntime != nil
}

func planCPU(p planner, r *specs.LinuxCPU) error {
	if p.v2 && (nonzero(r.RealtimePeriod) || r.RealtimeRuntime != nil && *r.RealtimeRuntime != 0) {
		return errs.New(errs.Unsupported, "cpu.realtimePeriod and cpu.realtimeRuntime: cgroup v2 has no real-time limits; leave them out")
	}
	idle, shares, weight := "cpu.idle", "cpu.shares", func(v uint64) uint64 { return v }
	if p.v2 {
		shares, weight = "cpu.weight", Weight
	}
	// The kernel refuses a weight on an idle group, so idleness goes first where it
	// ends, and stands for the weight where it begins.
	if r.Idle != nil {
		p.set(idle, strconv.FormatInt(*r.Idle, 10))
	}
	if nonzero(r.Shares) && (r.Idle == nil || *r.Idle == 0) { // 0 has always meant: not given
		p.set(shares, strconv.FormatUint(weight(*r.Shares), 10))
	}
	if r.Quota != nil || nonzero(r.Period) || r.Burst != nil {
		b := bandwidth{burst: r.Burst}
		if r.Quota != nil && *r.Quota != 0 {
			b.quota = strconv.FormatInt(*r.Quota, 10)
			if *r.Quota < 0 {
				b.quota = "max"
			}
		}
		if nonzero(r.Period) {
			b.period = strconv.FormatUint(*r.Period, 10)
		}
		if p.v2 {
			p.do(b.setV2)
		} else {
			p.do(b.setV1)
		}
	}
	if nonzero(r.RealtimePeriod) {
		p.set("cpu.rt_period_us", strconv.FormatUint(*r.RealtimePeriod, 10))
	}
	if r.RealtimeRuntime != nil && *r.RealtimeRuntime != 0 {
		p.set("cpu.rt_runtime_us", strconv.FormatInt(*r.RealtimeRuntime, 10))
	}
	return nil
}

func nonzero(v *uint64) bool { return v != nil && *v != 0 }

// Weight converts v1's cpu.shares (2…262144, 1024 by default) to v2's cpu.weight
// (1…10000, 100 by default) so that the ends and the defaults meet, by the curve that
// runc 1.3.2 and crun 1.23 took up together: the earlier straight line made the
// default of 1024 shares a weight of 39 and a pod that asked for one CPU lose against
// everything outside of Kubernetes.
//
//	weight = ⌈10^((l² + 125·l)/612 − 7/34)⌉ with l = log₂ shares
func Weight(shares uint64) uint64 {
	switch {
	case shares <= 2:
		return 1
	case shares >= 1<<18:
		return 10000
	}
	l := math.Log2(float64(shares))
	return uint64(math.Ceil(math.Pow(10, (l*l+125*l)/612-7.0/34)))
}

// bandwidth is a quota per period with a burst, all in microseconds. "" leaves a value
// as it is.
type bandwidth struct {
	quota  string // or "max"
	period string
	burst  *uint64
}

func (b bandwidth) setV2(dir string) error {
	if b.quota != "" || b.period != "" {
		now, err := read(dir, "cpu.max")
		if err != nil {
			return refusedMissing(dir, "cpu.max", err)
		}
		quota, period, _ := strings.Cut(now, " ")
		if b.quota != "" {
			quota = b.quota
		}
		if b.period != "" {
			period = b.period
		}
		if err := b.withBurst(dir, "cpu.max.burst", func() error { return write(dir, "cpu.max", quota+" "+period) }); err != nil {
			return err
		}
		return nil
	}
	return b.withBurst(dir, "cpu.max.burst", func() error { return nil })
}

func (b bandwidth) setV1(dir string) error {
	quota := b.quota
	if quota == "max" {
		quota = "-1"
	}
	setPeriod := func() error {
		if b.period == "" {
			return nil
		}
		return write(dir, "cpu.cfs_period_us", b.period)
	}
	setQuota := func() error {
		if quota == "" {
			return nil
		}
		return write(dir, "cpu.cfs_quota_us", quota)
	}
	return b.withBurst(dir, "cpu.cfs_burst_us", func() error {
		// Each write must leave a ratio that fits under the parent's and over the
		// children's, so one order works where the other does not.
		err := setPeriod()
		if errors.Is(err, errs.Invalid) {
			if err := setQuota(); err != nil {
				return err
			}
			return setPeriod()
		}
		if err != nil {
			return err
		}
		return setQuota()
	})
}

// withBurst sets the burst around the quota. A burst must not be above the quota at any
// moment: a smaller one goes first, a greater one last.
func (b bandwidth) withBurst(dir, file string, quota func() error) error {
	if b.burst == nil {
		return quota()
	}
	v := strconv.FormatUint(*b.burst, 10)
	if now, _, err := readUint(dir, file); err == nil && *b.burst <= now {
		if err := write(dir, file, v); err != nil {
			return err
		}
		return quota()
	} else if err != nil && errors.Is(err, errs.NotFound) && *b.burst == 0 {
		return quota() // no such thing before Linux 5.14, and none wanted
	}
	if err := quota(); err != nil {
		return err
	}
	return write(dir, file, v)
}

func planCPUSet(p planner, r *specs.LinuxCPU) error {
	if r.Cpus != "" {
		p.set("cpuset.cpus", r.Cpus)
	}
	if r.Mems != "" {
		p.set("cpuset.mems", r.Mems)
	}
	return nil
}
