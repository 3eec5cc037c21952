package seccomp

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"

	moby "github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// call is one system call as a filter sees it.
type call struct {
	arch uint32
	nr   uint32
	args [6]uint64
}

// vm runs a compiled filter in another implementation of classic BPF.
func vm(t testing.TB, p *Program) *bpf.VM {
	t.Helper()
	raw := make([]bpf.RawInstruction, len(p.Filter))
	for i, f := range p.Filter {
		raw[i] = bpf.RawInstruction{Op: f.Code, Jt: f.Jt, Jf: f.Jf, K: f.K}
	}
	prog, all := bpf.Disassemble(raw)
	if !all {
		t.Fatal("the filter has instructions that are not classic BPF")
	}
	m, err := bpf.NewVM(prog)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func ask(t testing.TB, m *bpf.VM, c call) uint32 {
	t.Helper()
	// The VM loads words as on a network, the kernel as on the machine.
	b := binary.BigEndian.AppendUint32(nil, c.nr)
	b = binary.BigEndian.AppendUint32(b, c.arch)
	b = binary.BigEndian.AppendUint64(b, 0)
	for _, a := range c.args {
		b = binary.BigEndian.AppendUint32(b, uint32(a))
		b = binary.BigEndian.AppendUint32(b, uint32(a>>32))
	}
	r, err := m.Run(b)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(r)
}

// reference says what a profile means, call by call, with no thought for speed.
func reference(p *specs.LinuxSeccomp, c call) uint32 {
	var a *abi
	for i, x := range abis[runtime.GOARCH] {
		isX32 := x.name == specs.ArchX32
		if x.audit == c.arch && isX32 == (c.arch == unix.AUDIT_ARCH_X86_64 && c.nr >= x32Bit && c.nr != ^uint32(0)) &&
			(i == 0 || slices.Contains(p.Architectures, x.name)) {
			a = &abis[runtime.GOARCH][i]
		}
	}
	if a == nil {
		return unix.SECCOMP_RET_KILL_THREAD
	}
	fallback, _ := action(p.DefaultAction, p.DefaultErrnoRet)
	if c.nr == ^uint32(0) && c.arch == unix.AUDIT_ARCH_X86_64 {
		return fallback
	}
	newest := -1
	var unconditional, conditional []uint32
	for _, s := range p.Syscalls {
		ret, _ := action(s.Action, s.ErrnoRet)
		for _, name := range s.Names {
			nr, ok := a.table.SyscallNames[name]
			if ok {
				newest = max(newest, nr)
			}
			if ret == fallback {
				continue
			}
			if ok && uint32(nr|a.table.SeccompMask) == c.nr {
				if len(s.Args) == 0 {
					unconditional = append(unconditional, ret)
				} else if holds(s.Args, c, a.narrow) {
					conditional = append(conditional, ret)
				}
			}
			if a.muxed && len(s.Args) == 0 {
				for by, calls := range map[string]map[string]uint64{"socketcall": socketcall, "ipc": ipc} {
					if n, ok := calls[name]; ok && c.nr == uint32(a.table.SyscallNames[by]) && uint32(c.args[0]) == uint32(n) {
						conditional = append(conditional, ret)
					}
				}
			}
		}
	}
	switch {
	case len(unconditional) > 0:
		return unconditional[0]
	case len(conditional) > 0:
		return conditional[0]
	}
	permissive := slices.Contains([]specs.LinuxSeccompAction{specs.ActAllow, specs.ActLog, specs.ActTrace, specs.ActNotify}, p.DefaultAction)
	if newest > 0 && !permissive && int(c.nr&^uint32(a.table.SeccompMask)) > newest {
		return unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)
	}
	return fallback
}

func holds(args []specs.LinuxSeccompArg, c call, narrow bool) bool {
	count := map[uint]int{}
	any, all, repeated := false, true, false
	for _, a := range args {
		if count[a.Index]++; count[a.Index] > 1 {
			repeated = true
		}
		v, x, y := c.args[a.Index], a.Value, a.ValueTwo
		if narrow {
			v, x, y = v&0xffffffff, x&0xffffffff, y&0xffffffff
		}
		h := map[specs.LinuxSeccompOperator]bool{
			specs.OpEqualTo: v == x, specs.OpNotEqual: v != x, specs.OpGreaterThan: v > x, specs.OpGreaterEqual: v >= x,
			specs.OpLessThan: v < x, specs.OpLessEqual: v <= x, specs.OpMaskedEqual: v&x == y&x,
		}[a.Op]
		any, all = any || h, all && h
	}
	if repeated {
		return any
	}
	return all
}

// interesting are argument values around those that the profile compares with.
func interesting(p *specs.LinuxSeccomp, r *rand.Rand) []uint64 {
	vs := []uint64{0, 1, ^uint64(0), 1 << 31, 1 << 32, 1<<32 - 1}
	for _, s := range p.Syscalls {
		for _, a := range s.Args {
			for _, v := range []uint64{a.Value, a.ValueTwo} {
				vs = append(vs, v, v+1, v-1, v|1<<32, v^1<<63, v<<32)
			}
		}
	}
	for range 4 {
		vs = append(vs, r.Uint64(), uint64(r.Uint32()))
	}
	slices.Sort(vs)
	return slices.Compact(vs)
}

// check compares the compiled profile with the reference for every number of every ABI.
func check(t *testing.T, p *specs.LinuxSeccomp) {
	t.Helper()
	prog, err := Compile(p)
	if err != nil {
		t.Fatal(err)
	}
	m := vm(t, prog)
	r := rand.New(rand.NewPCG(1, 2))
	values := interesting(p, r)
	numbers := []uint32{^uint32(0), ^uint32(0) - 1, 1 << 31, x32Bit - 1}
	for nr := range uint32(700) {
		numbers = append(numbers, nr, nr|x32Bit)
	}
	for _, arch := range []uint32{unix.AUDIT_ARCH_X86_64, unix.AUDIT_ARCH_I386, unix.AUDIT_ARCH_AARCH64, unix.AUDIT_ARCH_ARM, 0} {
		for _, nr := range numbers {
			c := call{arch: arch, nr: nr}
			for n := range 6 {
				if n > 0 {
					for i := range c.args {
						c.args[i] = values[r.IntN(len(values))]
					}
				}
				if got, want := ask(t, m, c), reference(p, c); got != want {
					t.Fatalf("arch %#x number %#x arguments %#x: %#x, want %#x", c.arch, c.nr, c.args, got, want)
				}
			}
		}
	}
}

func defaultProfile(t testing.TB, caps ...string) *specs.LinuxSeccomp {
	t.Helper()
	p, err := moby.GetDefaultProfile(&specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: caps}}})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestDefaultProfile(t *testing.T) {
	check(t, defaultProfile(t))
	check(t, defaultProfile(t, "CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_NET_ADMIN"))
	prog, err := Compile(defaultProfile(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d instructions", len(prog.Filter))
	if again, _ := Compile(defaultProfile(t)); again != prog {
		t.Error("the same profile was compiled twice")
	}
	if other, _ := Compile(defaultProfile(t, "CAP_SYS_ADMIN")); other == prog {
		t.Error("another profile gave the same program")
	}
}

// TestRandomProfiles tries every operator, action and combination of rules.
func TestRandomProfiles(t *testing.T) {
	ops := []specs.LinuxSeccompOperator{specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpEqualTo, specs.OpGreaterEqual, specs.OpGreaterThan, specs.OpMaskedEqual}
	acts := []specs.LinuxSeccompAction{specs.ActKill, specs.ActKillProcess, specs.ActKillThread, specs.ActTrap, specs.ActErrno, specs.ActTrace, specs.ActAllow, specs.ActLog, specs.ActNotify}
	archs := []specs.Arch{specs.ArchX86, specs.ArchX86_64, specs.ArchX32, specs.ArchAARCH64, specs.ArchARM, specs.ArchS390X}
	var names []string
	for n := range abis[runtime.GOARCH][0].table.SyscallNames {
		names = append(names, n)
	}
	slices.Sort(names)
	names = append(names, "socketcall", "ipc", "no_such_call", "waitpid")
	rounds := 40
	if testing.Short() {
		rounds = 5
	}
	for seed := range rounds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := rand.New(rand.NewPCG(uint64(seed), 7))
			pick := func() specs.LinuxSeccompAction { return acts[r.IntN(len(acts))] }
			number := func() uint64 {
				switch r.IntN(4) {
				case 0:
					return uint64(r.IntN(4))
				case 1:
					return uint64(r.Uint32())
				case 2:
					return uint64(r.IntN(3))<<32 | uint64(r.IntN(3))
				}
				return r.Uint64()
			}
			p := &specs.LinuxSeccomp{DefaultAction: pick()}
			for _, a := range archs {
				if r.IntN(2) == 0 {
					p.Architectures = append(p.Architectures, a)
				}
			}
			for range r.IntN(25) {
				s := specs.LinuxSyscall{Action: pick()}
				if e := uint(r.IntN(200)); (s.Action == specs.ActErrno || s.Action == specs.ActTrace) && e > 50 {
					s.ErrnoRet = &e
				}
				for range 1 + r.IntN(20) {
					s.Names = append(s.Names, names[r.IntN(len(names))])
				}
				for range max(0, r.IntN(9)-4) {
					s.Args = append(s.Args, specs.LinuxSeccompArg{Index: uint(r.IntN(6)), Value: number(), ValueTwo: number(), Op: ops[r.IntN(len(ops))]})
				}
				p.Syscalls = append(p.Syscalls, s)
			}
			check(t, p)
		})
	}
}

func TestBadProfiles(t *testing.T) {
	big := uint(1 << 16)
	one := uint(1)
	rule := func(s specs.LinuxSyscall) *specs.LinuxSeccomp {
		return &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{s}}
	}
	for name, p := range map[string]*specs.LinuxSeccomp{
		"no action":        {},
		"action":           {DefaultAction: "SCMP_ACT_SHRUG"},
		"architecture":     {DefaultAction: specs.ActAllow, Architectures: []specs.Arch{"SCMP_ARCH_Z80"}},
		"flag":             {DefaultAction: specs.ActAllow, Flags: []specs.LinuxSeccompFlag{"SECCOMP_FILTER_FLAG_NONE"}},
		"errno":            {DefaultAction: specs.ActErrno, DefaultErrnoRet: &big},
		"errno of allow":   {DefaultAction: specs.ActAllow, DefaultErrnoRet: &one},
		"no names":         rule(specs.LinuxSyscall{Action: specs.ActAllow}),
		"empty name":       rule(specs.LinuxSyscall{Action: specs.ActAllow, Names: []string{""}}),
		"rule's action":    rule(specs.LinuxSyscall{Action: "x", Names: []string{"read"}}),
		"rule's errno":     rule(specs.LinuxSyscall{Action: specs.ActErrno, ErrnoRet: &big, Names: []string{"read"}}),
		"seventh argument": rule(specs.LinuxSyscall{Action: specs.ActAllow, Names: []string{"read"}, Args: []specs.LinuxSeccompArg{{Index: 6, Op: specs.OpEqualTo}}}),
		"operator":         rule(specs.LinuxSyscall{Action: specs.ActAllow, Names: []string{"read"}, Args: []specs.LinuxSeccompArg{{Op: "=="}}}),
	} {
		if _, err := Compile(p); !errors.Is(err, errs.Invalid) {
			t.Errorf("%s: %v, want an error of the kind invalid", name, err)
		}
	}
	if prog, err := Compile(nil); prog != nil || err != nil {
		t.Errorf("nil profile: %v, %v", prog, err)
	}
}

// TestTooLong: a profile that does not fit the kernel's limit is refused, and not cut.
func TestTooLong(t *testing.T) {
	p := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno}
	for i := range uint64(2000) {
		p.Syscalls = append(p.Syscalls, specs.LinuxSyscall{Names: []string{"ioctl"}, Action: specs.ActAllow,
			Args: []specs.LinuxSeccompArg{{Index: 1, Value: i, Op: specs.OpEqualTo}}})
	}
	if _, err := Compile(p); !errors.Is(err, errs.Invalid) {
		t.Errorf("got %v, want an error of the kind invalid", err)
	}
}

func BenchmarkCompileCached(b *testing.B) {
	p := defaultProfile(b)
	for b.Loop() {
		if _, err := Compile(p); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCompile(b *testing.B) {
	p := defaultProfile(b)
	for b.Loop() {
		if _, err := compile(p); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkDepth tells how many instructions a call passes, on average over all numbers.
func BenchmarkDepth(b *testing.B) {
	prog, err := Compile(defaultProfile(b))
	if err != nil {
		b.Fatal(err)
	}
	steps := 0
	for nr := range uint32(450) {
		c := prog.Filter
		var acc uint32
		for pc := 0; ; pc++ {
			steps++
			in := c[pc]
			switch in.Code {
			case load:
				acc = map[uint32]uint32{offNumber: nr, offArch: unix.AUDIT_ARCH_X86_64}[in.K]
			case and:
				acc &= in.K
			case jump:
				pc += int(in.K)
			case ret:
			default:
				taken := in.Code == ifEqual && acc == in.K || in.Code == ifAbove && acc > in.K || in.Code == ifAtOver && acc >= in.K
				if taken {
					pc += int(in.Jt)
				} else {
					pc += int(in.Jf)
				}
			}
			if in.Code == ret {
				break
			}
		}
	}
	for b.Loop() {
	}
	b.ReportMetric(float64(steps)/450, "instructions/call")
	b.ReportMetric(float64(len(prog.Filter)), "instructions")
}
