package seccomp

import (
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
)

var known = []specs.Arch{
	specs.ArchX86, specs.ArchX86_64, specs.ArchX32, specs.ArchARM, specs.ArchAARCH64, specs.ArchMIPS, specs.ArchMIPS64,
	specs.ArchMIPS64N32, specs.ArchMIPSEL, specs.ArchMIPSEL64, specs.ArchMIPSEL64N32, specs.ArchPPC, specs.ArchPPC64,
	specs.ArchPPC64LE, specs.ArchS390, specs.ArchS390X, specs.ArchPARISC, specs.ArchPARISC64, specs.ArchRISCV64,
	specs.ArchLOONGARCH64, specs.ArchM68K, specs.ArchSH, specs.ArchSHEB, "SCMP_ARCH_NATIVE",
}

// rule is what happens to a call if all conditions hold.
type rule struct {
	conditions []specs.LinuxSeccompArg
	ret        uint32
}

// table is what a profile says about one ABI.
type table struct {
	abi
	rules []rule // in the order to be tried
	// calls have the number of a call in their upper half and in the lower that of a rule for it: by
	// themselves they sort by call and order of rules, and a profile of four hundred calls is three pages.
	calls    []uint64
	fallback uint32 // for calls without a rule that matches
	newest   uint32 // calls above it answer ENOSYS
	enosys   bool
	first    int // of the rules that are being added
}

// read checks a profile and sorts it by architecture and number.
func read(p *specs.LinuxSeccomp, goarch string) ([]*table, error) {
	fallback, err := action(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		return nil, err
	}
	if p.DefaultAction == specs.ActNotify {
		return nil, errs.New(errs.Invalid, "seccomp: %s cannot be the default action", p.DefaultAction)
	}
	for _, a := range p.Architectures {
		if !slices.Contains(known, a) {
			return nil, errs.New(errs.Invalid, "seccomp: architecture %q is not known", a)
		}
	}
	names := 0
	for i := range p.Syscalls {
		names += len(p.Syscalls[i].Names)
	}
	var tables []*table
	for i, a := range abis(goarch) {
		if i > 0 && !slices.Contains(p.Architectures, a.name) {
			continue
		}
		tables = append(tables, &table{abi: a, rules: make([]rule, 0, 2*len(p.Syscalls)), calls: make([]uint64, 0, names+names/4), fallback: fallback})
	}
	if len(tables) == 0 {
		return nil, errs.New(errs.Unsupported, "seccomp: profiles are not supported on %s", goarch)
	}
	var c cursor
	for i := range p.Syscalls {
		if err := add(tables, &p.Syscalls[i], fallback, &c); err != nil {
			return nil, err
		}
	}
	var spare []uint64
	for _, t := range tables {
		switch p.DefaultAction {
		case specs.ActAllow, specs.ActLog, specs.ActTrace:
		default:
			t.enosys = t.newest > 0
		}
		spare = t.sort(spare)
	}
	return tables, nil
}

// sort sorts the calls, and returns memory that they have no more use for. Numbers are dense, so each is
// counted, and tells where it goes: comparing them is a fifth of a compilation.
func (t *table) sort(spare []uint64) []uint64 {
	const dense = 1024
	if len(t.calls) == 0 {
		return spare
	}
	least := uint32(slices.Min(t.calls) >> 32)
	if uint32(slices.Max(t.calls)>>32)-least >= dense {
		slices.Sort(t.calls)
		return spare
	}
	var at [dense + 1]int32 // where the calls of a number begin
	for _, c := range t.calls {
		at[uint32(c>>32)-least+1]++
	}
	for i := range dense {
		at[i+1] += at[i]
	}
	sorted := slices.Grow(spare[:0], len(t.calls))[:len(t.calls)]
	for _, c := range t.calls {
		to := &at[uint32(c>>32)-least]
		sorted[*to] = c
		*to++
	}
	t.calls, sorted = sorted, t.calls
	return sorted
}

func add(tables []*table, s *specs.LinuxSyscall, fallback uint32, c *cursor) error {
	if len(s.Names) == 0 {
		return errs.New(errs.Invalid, "seccomp: a rule names no system call")
	}
	ret, err := action(s.Action, s.ErrnoRet)
	if err != nil {
		return err
	}
	var count [6]int
	alternatives := false
	for _, a := range s.Args {
		if a.Index > 5 {
			return errs.New(errs.Invalid, "seccomp: rule for %s: there is no argument %d (0–5)", s.Names[0], a.Index)
		}
		switch a.Op {
		case specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpEqualTo, specs.OpGreaterEqual, specs.OpGreaterThan, specs.OpMaskedEqual:
		default:
			return errs.New(errs.Invalid, "seccomp: rule for %s: operator %q is not known", s.Names[0], a.Op)
		}
		if count[a.Index]++; count[a.Index] > 1 {
			alternatives = true
		}
	}
	rules := []rule{{s.Args, ret}}
	if alternatives {
		rules = nil
		for i := range s.Args {
			rules = append(rules, rule{s.Args[i : i+1], ret})
		}
	}
	for _, t := range tables {
		t.first = len(t.rules)
		for _, r := range rules {
			t.add(r)
		}
	}
	for _, name := range s.Names {
		if name == "" {
			return errs.New(errs.Invalid, "seccomp: a rule names a system call that is empty")
		}
		if name == "write" && s.Action == specs.ActNotify {
			return errs.New(errs.Invalid, "seccomp: %s cannot be the action of write", s.Action)
		}
		numbers := c.numbersOf(name)
		if numbers == nil {
			continue
		}
		for _, t := range tables {
			nr := numbers[t.column]
			if nr != noCall {
				t.newest = max(t.newest, nr)
			}
			if ret == fallback {
				continue
			}
			for i, r := range rules {
				if nr != noCall {
					t.call(nr, t.first+i)
				}
				if t.muxed {
					t.mux("socketcall", numbers[socketcall], r)
					t.mux("ipc", numbers[ipc], r)
				}
			}
		}
	}
	return nil
}

// add adds a rule, without the conditions that always hold, and returns which it is.
func (t *table) add(r rule) int {
	always := func(a specs.LinuxSeccompArg) bool {
		return a.Op == specs.OpMaskedEqual && (a.Value == 0 || t.narrow && uint32(a.Value) == 0)
	}
	if slices.ContainsFunc(r.conditions, always) {
		r.conditions = slices.DeleteFunc(slices.Clone(r.conditions), always)
	}
	t.rules = append(t.rules, r)
	return len(t.rules) - 1
}

// call has a rule hold for a call.
func (t *table) call(nr uint32, rule int) {
	t.calls = append(t.calls, uint64(nr)<<32|uint64(rule))
}

// mux adds a rule for a call that is also made by way of another, whose first argument
// tells which call is meant. The call's own arguments are in memory there: a condition on
// the first gives way, and one on another holds for what the kernel does not look at.
func (t *table) mux(by string, first uint32, r rule) {
	if first == noCall {
		return
	}
	conditions := []specs.LinuxSeccompArg{{Index: 0, Value: uint64(first), Op: specs.OpEqualTo}}
	for _, c := range r.conditions {
		if c.Index != 0 {
			conditions = append(conditions, c)
		}
	}
	nr, _ := t.number(by)
	t.call(nr, t.add(rule{conditions, r.ret}))
}

// action returns what the filter answers.
func action(a specs.LinuxSeccompAction, errno *uint) (uint32, error) {
	data := uint32(unix.EPERM)
	if errno != nil {
		if *errno > unix.SECCOMP_RET_DATA {
			return 0, errs.New(errs.Invalid, "seccomp: errnoRet %d does not fit 16 bits", *errno)
		}
		if a != specs.ActErrno && a != specs.ActTrace {
			return 0, errs.New(errs.Invalid, "seccomp: action %s takes no errnoRet", a)
		}
		data = uint32(*errno)
	}
	switch a {
	case specs.ActKill, specs.ActKillThread:
		return unix.SECCOMP_RET_KILL_THREAD, nil
	case specs.ActKillProcess:
		return unix.SECCOMP_RET_KILL_PROCESS, nil
	case specs.ActTrap:
		return unix.SECCOMP_RET_TRAP, nil
	case specs.ActErrno:
		return unix.SECCOMP_RET_ERRNO | data, nil
	case specs.ActTrace:
		return unix.SECCOMP_RET_TRACE | data, nil
	case specs.ActLog:
		return unix.SECCOMP_RET_LOG, nil
	case specs.ActNotify:
		return unix.SECCOMP_RET_USER_NOTIF, nil
	case specs.ActAllow:
		return unix.SECCOMP_RET_ALLOW, nil
	}
	return 0, errs.New(errs.Invalid, "seccomp: action %q is not known", a)
}
