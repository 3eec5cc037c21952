package executor

import (
	"fmt"
	"path"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// What a specification asks for and cannot be had is an error before anything is made.
// Its text begins with the field's path in the JSON document. What only the kernel of
// this machine can refuse, it refuses in the child, before the gate.

// checkProcess tells what is wrong with a process.
func checkProcess(p *specs.Process) error {
	if len(p.Args) == 0 {
		return errs.New(errs.Invalid, "process.args: there is no command to run")
	}
	if !path.IsAbs(p.Cwd) {
		return errs.New(errs.Invalid, "process.cwd: %q is not an absolute path", p.Cwd)
	}
	for _, l := range []struct {
		field string
		list  []string
	}{{"args", p.Args}, {"env", p.Env}, {"cwd", []string{p.Cwd}}, {"apparmorProfile", []string{p.ApparmorProfile}}, {"selinuxLabel", []string{p.SelinuxLabel}}} {
		for _, s := range l.list {
			if strings.IndexByte(s, 0) >= 0 {
				return errs.New(errs.Invalid, "process.%s: %q has a null byte in it", l.field, s)
			}
		}
	}
	for _, e := range p.Env {
		if strings.IndexByte(e, '=') <= 0 {
			return errs.New(errs.Invalid, "process.env: %q is not name=value", e)
		}
	}
	if a := p.OOMScoreAdj; a != nil && (*a < -1000 || *a > 1000) {
		return errs.New(errs.Invalid, "process.oomScoreAdj: %d is not in -1000–1000", *a)
	}
	if u := p.User.Umask; u != nil && *u > 0o777 {
		return errs.New(errs.Invalid, "process.user.umask: %#o has more than permission bits", *u)
	}
	// The number that stands for none (setresuid(2)).
	for i, id := range append([]uint32{p.User.UID, p.User.GID}, p.User.AdditionalGids...) {
		if id == 1<<32-1 {
			return errs.New(errs.Invalid, "process.user.%s: %d is no id", [...]string{"uid", "gid", "additionalGids"}[min(i, 2)], id)
		}
	}
	if len(p.User.AdditionalGids) > 1<<16 {
		return errs.New(errs.Invalid, "process.user.additionalGids: there are %d, the kernel takes 65536", len(p.User.AdditionalGids))
	}
	if c := p.ConsoleSize; c != nil && p.Terminal && (c.Height > 1<<16-1 || c.Width > 1<<16-1) {
		return errs.New(errs.Invalid, "process.consoleSize: %d×%d is more than a terminal has", c.Width, c.Height)
	}
	for _, check := range []func(*specs.Process) error{checkRlimits, checkScheduler, checkIOPriority, checkAffinity} {
		if err := check(p); err != nil {
			return err
		}
	}
	return nil
}

func checkRlimits(p *specs.Process) error {
	seen := map[string]bool{}
	for i, l := range p.Rlimits {
		field := fmt.Sprintf("process.rlimits[%d]", i)
		if _, ok := rlimits[l.Type]; !ok {
			return errs.New(errs.Invalid, "%s.type: %q is not known", field, l.Type)
		}
		if seen[l.Type] {
			return errs.New(errs.Invalid, "%s.type: %s is given twice", field, l.Type)
		}
		if l.Soft > l.Hard {
			return errs.New(errs.Invalid, "%s: %s: the soft limit %d is above the hard limit %d", field, l.Type, l.Soft, l.Hard)
		}
		seen[l.Type] = true
	}
	return nil
}

// checkScheduler says what sched_setattr(2) would say with EINVAL.
func checkScheduler(p *specs.Process) error {
	s := p.Scheduler
	if s == nil {
		return nil
	}
	invalid := func(format string, args ...any) error {
		return errs.New(errs.Invalid, "process.scheduler."+format, args...)
	}
	if s.Policy == specs.SchedISO {
		return errs.New(errs.Unsupported, "process.scheduler.policy: no kernel has SCHED_ISO")
	}
	if _, ok := policies[s.Policy]; !ok {
		return invalid("policy: %q is not known", s.Policy)
	}
	for i, f := range s.Flags {
		if _, ok := schedFlags[f]; !ok {
			return invalid("flags[%d]: %q is not known", i, f)
		}
	}
	if s.Nice < -20 || s.Nice > 19 {
		return invalid("nice: %d is not in -20–19", s.Nice)
	}
	switch s.Policy {
	case specs.SchedFIFO, specs.SchedRR:
		if s.Priority < 1 || s.Priority > 99 {
			return invalid("priority: %d is not in 1–99, as %s wants it", s.Priority, s.Policy)
		}
	default:
		if s.Priority != 0 {
			return invalid("priority: %s has none", s.Policy)
		}
	}
	if s.Policy != specs.SchedDeadline {
		if s.Runtime|s.Deadline|s.Period != 0 {
			return invalid("runtime, deadline and period are of SCHED_DEADLINE, the policy is %s", s.Policy)
		}
		return nil
	}
	period := s.Period
	if period == 0 {
		period = s.Deadline
	}
	if s.Runtime < 1024 || s.Runtime > s.Deadline || s.Deadline > period || period >= 1<<63 {
		return invalid("runtime %d, deadline %d, period %d: each must not be more than the next, and runtime at least 1024 ns", s.Runtime, s.Deadline, s.Period)
	}
	return nil
}

func checkIOPriority(p *specs.Process) error {
	io := p.IOPriority
	if io == nil {
		return nil
	}
	if _, ok := ioClasses[io.Class]; !ok {
		return errs.New(errs.Invalid, "process.ioPriority.class: %q is not known", io.Class)
	}
	if io.Priority < 0 || io.Priority > 7 {
		return errs.New(errs.Invalid, "process.ioPriority.priority: %d is not in 0–7", io.Priority)
	}
	return nil
}

func checkAffinity(p *specs.Process) error {
	a := p.ExecCPUAffinity
	if a == nil {
		return nil
	}
	if _, err := numbers(a.Initial, maxCPUs); err != nil {
		return errs.New(errs.Invalid, "process.execCPUAffinity.initial: %w", err)
	}
	if _, err := numbers(a.Final, maxCPUs); err != nil {
		return errs.New(errs.Invalid, "process.execCPUAffinity.final: %w", err)
	}
	return nil
}

// checkMemoryPolicy says what set_mempolicy(2) would say with EINVAL.
func checkMemoryPolicy(m *specs.LinuxMemoryPolicy) error {
	mode, ok := memoryModes[m.Mode]
	if !ok {
		return errs.New(errs.Invalid, "linux.memoryPolicy.mode: %q is not known", m.Mode)
	}
	nodes, err := numbers(m.Nodes, maxNodes)
	if err != nil {
		return errs.New(errs.Invalid, "linux.memoryPolicy.nodes: %w", err)
	}
	var flags uint64
	for i, f := range m.Flags {
		v, ok := memoryFlags[f]
		if !ok {
			return errs.New(errs.Invalid, "linux.memoryPolicy.flags[%d]: %q is not known", i, f)
		}
		flags |= v
	}
	switch {
	case mode.nodes == never && len(nodes) > 0:
		return errs.New(errs.Invalid, "linux.memoryPolicy.nodes: %s takes none", m.Mode)
	case mode.nodes == always && len(nodes) == 0:
		return errs.New(errs.Invalid, "linux.memoryPolicy.nodes: %s needs some", m.Mode)
	case mode.nodes == never && flags != 0:
		return errs.New(errs.Invalid, "linux.memoryPolicy.flags: %s takes none", m.Mode)
	case flags&mpolStatic != 0 && flags&mpolRelative != 0:
		return errs.New(errs.Invalid, "linux.memoryPolicy.flags: nodes are static or relative, not both")
	case flags&(mpolStatic|mpolRelative) != 0 && len(nodes) == 0:
		return errs.New(errs.Invalid, "linux.memoryPolicy.flags: there are no nodes to be static or relative")
	}
	return nil
}

// checkPersonality accepts what the specification has.
func checkPersonality(p *specs.LinuxPersonality) error {
	if _, ok := personalities[p.Domain]; !ok {
		return errs.New(errs.Invalid, "linux.personality.domain: %q is neither LINUX nor LINUX32", p.Domain)
	}
	if len(p.Flags) > 0 {
		return errs.New(errs.Unsupported, "linux.personality.flags: %q: the specification has none yet", p.Flags)
	}
	return nil
}
