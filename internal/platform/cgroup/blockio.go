package cgroup

import (
	"fmt"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/orlop-io/orlop/internal/base/errs"
)

func wantsBlockIO(r *specs.LinuxBlockIO) bool {
	return r.Weight != nil || r.LeafWeight != nil || len(r.WeightDevice)+len(r.ThrottleReadBpsDevice)+
		len(r.ThrottleWriteBpsDevice)+len(r.ThrottleReadIOPSDevice)+len(r.ThrottleWriteIOPSDevice) > 0
}

func planBlockIO(p planner, r *specs.LinuxBlockIO) error {
	if nonzero16(r.LeafWeight) {
		return errs.New(errs.Unsupported, "blockIO.leafWeight: the scheduler that had it (CFQ) left the kernel in 5.0; leave it out")
	}
	if nonzero16(r.Weight) {
		if err := checkWeight("blockIO.weight", *r.Weight); err != nil {
			return err
		}
		p.do(func(dir string) error { return p.setWeight(dir, *r.Weight) })
	}
	for _, d := range r.WeightDevice {
		if nonzero16(d.LeafWeight) {
			return errs.New(errs.Unsupported, "blockIO.weightDevice %d:%d leafWeight: the scheduler that had it (CFQ) left the kernel in 5.0; leave it out", d.Major, d.Minor)
		}
		if !nonzero16(d.Weight) {
			continue
		}
		if err := checkWeight(fmt.Sprintf("blockIO.weightDevice %d:%d", d.Major, d.Minor), *d.Weight); err != nil {
			return err
		}
		p.do(func(dir string) error {
			file, value := "blkio.bfq.weight_device", *d.Weight
			if p.v2 {
				file = "io.bfq.weight"
				if !exists(dir, file) {
					file, value = "io.weight", IOWeight(*d.Weight)
				}
			}
			return write(dir, file, fmt.Sprintf("%d:%d %d", d.Major, d.Minor, value))
		})
	}
	for _, t := range []struct {
		list   []specs.LinuxThrottleDevice
		v1, v2 string
	}{
		{r.ThrottleReadBpsDevice, "blkio.throttle.read_bps_device", "rbps"},
		{r.ThrottleWriteBpsDevice, "blkio.throttle.write_bps_device", "wbps"},
		{r.ThrottleReadIOPSDevice, "blkio.throttle.read_iops_device", "riops"},
		{r.ThrottleWriteIOPSDevice, "blkio.throttle.write_iops_device", "wiops"},
	} {
		for _, d := range t.list {
			if !p.v2 {
				p.set(t.v1, fmt.Sprintf("%d:%d %d", d.Major, d.Minor, d.Rate))
				continue
			}
			rate := "max" // v1 takes 0 for no limit, io.max does not
			if d.Rate > 0 {
				rate = strconv.FormatUint(d.Rate, 10)
			}
			p.set("io.max", fmt.Sprintf("%d:%d %s=%s", d.Major, d.Minor, t.v2, rate))
		}
	}
	return nil
}

func nonzero16(v *uint16) bool { return v != nil && *v != 0 }

func checkWeight(what string, w uint16) error {
	if w < 10 || w > 1000 {
		return errs.New(errs.Invalid, "%s %d: use 10 to 1000", what, w)
	}
	return nil
}

// setWeight prefers BFQ's file, which has the same scale as the specification, where
// the scheduler is there.
func (p planner) setWeight(dir string, w uint16) error {
	if !p.v2 {
		if exists(dir, "blkio.bfq.weight") {
			return write(dir, "blkio.bfq.weight", strconv.Itoa(int(w)))
		}
		return write(dir, "blkio.weight", strconv.Itoa(int(w)))
	}
	if exists(dir, "io.bfq.weight") {
		return write(dir, "io.bfq.weight", strconv.Itoa(int(w)))
	}
	return write(dir, "io.weight", "default "+strconv.Itoa(int(IOWeight(w))))
}

// IOWeight converts a blockIO weight (10…1000) to v2's io.weight (1…10000), linearly
// from end to end, as runc and crun do.
func IOWeight(w uint16) uint16 {
	return uint16(1 + (uint32(w)-10)*9999/990)
}
