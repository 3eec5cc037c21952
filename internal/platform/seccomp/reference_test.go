package seccomp

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// call is one system call as a filter sees it.
type call struct {
	arch uint32
	nr   uint32
	args [6]uint64
}

// vm runs a compiled filter in another implementation of classic BPF.
func vm(t testing.TB, filter []unix.SockFilter) *bpf.VM {
	t.Helper()
	raw := make([]bpf.RawInstruction, len(filter))
	for i, f := range filter {
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

// meaning is what a profile says about a call, found with no thought for speed.
type meaning struct {
	ret uint32
	// others are what further rules with conditions say that hold as well.
	others []uint32
	// tangled tells that the call's rules compare one argument with several ranges, or
	// that one with several conditions compares an argument that another rule does too.
	tangled bool
}

// abiOf finds how a call was made; nil if the profile does not list that.
func abiOf(p *specs.LinuxSeccomp, goarch string, c call) *abi {
	x32 := slices.Contains(p.Architectures, specs.ArchX32)
	for i := range abis(goarch) {
		a := &abis(goarch)[i]
		if a.audit != c.arch || i > 0 && !slices.Contains(p.Architectures, a.name) {
			continue
		}
		foreign := c.arch == unix.AUDIT_ARCH_X86_64 && c.nr >= x32Bit && (x32 || c.nr != ^uint32(0))
		if foreign == (a.name == specs.ArchX32) {
			return a
		}
	}
	return nil
}

// oracle knows what a profile means on a processor.
type oracle struct {
	p      *specs.LinuxSeccomp
	goarch string
	rules  map[*abi]map[uint32][]rule // by number, in the order of the profile
	newest map[*abi]uint32            // call that the profile names
}

func newOracle(p *specs.LinuxSeccomp, goarch string) *oracle {
	o := &oracle{p, goarch, map[*abi]map[uint32][]rule{}, map[*abi]uint32{}}
	fallback, _ := action(p.DefaultAction, p.DefaultErrnoRet)
	for i := range abis(goarch) {
		a := &abis(goarch)[i]
		rules := map[uint32][]rule{}
		o.rules[a] = rules
		for _, s := range p.Syscalls {
			ret, _ := action(s.Action, s.ErrnoRet)
			each := [][]specs.LinuxSeccompArg{s.Args}
			if len(countArgs(s.Args)) != len(s.Args) {
				each = nil
				for _, c := range s.Args {
					each = append(each, []specs.LinuxSeccompArg{c})
				}
			}
			for _, name := range s.Names {
				nr, known := a.number(name)
				if known {
					o.newest[a] = max(o.newest[a], nr)
				}
				for _, conditions := range each {
					if ret != fallback && known {
						rules[nr] = append(rules[nr], rule{conditions, ret})
					}
					if ret == fallback || !a.muxed {
						continue
					}
					for by, calls := range map[string]map[string]int{"socketcall": sources[socketcall].fixes, "ipc": sources[ipc].fixes} {
						if first, ok := calls[name]; ok {
							muxed := slices.DeleteFunc(slices.Clone(conditions), func(c specs.LinuxSeccompArg) bool { return c.Index == 0 })
							nr, _ := a.number(by)
							rules[nr] = append(rules[nr], rule{append(muxed, specs.LinuxSeccompArg{Value: uint64(first), Op: specs.OpEqualTo}), ret})
						}
					}
				}
			}
		}
	}
	return o
}

func countArgs(args []specs.LinuxSeccompArg) map[uint]int {
	count := map[uint]int{}
	for _, a := range args {
		count[a.Index]++
	}
	return count
}

func (o *oracle) meaning(c call) meaning {
	p, goarch := o.p, o.goarch
	a := abiOf(p, goarch, c)
	if a == nil {
		return meaning{ret: unix.SECCOMP_RET_KILL_THREAD}
	}
	fallback, _ := action(p.DefaultAction, p.DefaultErrnoRet)
	rules, newest := o.rules[a][c.nr], o.newest[a]
	permissive := slices.Contains([]specs.LinuxSeccompAction{specs.ActAllow, specs.ActLog, specs.ActTrace}, p.DefaultAction)
	if newest > 0 && !permissive && c.nr > newest && abiOf(p, goarch, call{arch: c.arch, nr: newest}) == a && !(a.name == specs.ArchX86_64 && c.nr == ^uint32(0)) {
		return meaning{ret: unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)}
	}
	m := meaning{ret: fallback}
	ranges, compared, several := map[uint]int{}, map[uint]int{}, map[uint]bool{}
	var matched []uint32
	for _, r := range rules {
		conditions := slices.DeleteFunc(slices.Clone(r.conditions), func(c specs.LinuxSeccompArg) bool {
			return c.Op == specs.OpMaskedEqual && (c.Value == 0 || a.narrow && uint32(c.Value) == 0)
		})
		if len(conditions) == 0 {
			return meaning{ret: r.ret}
		}
		all := true
		for _, k := range conditions {
			all = all && holds(k, c.args[k.Index], a.narrow)
			if !slices.Contains([]specs.LinuxSeccompOperator{specs.OpEqualTo, specs.OpNotEqual, specs.OpMaskedEqual}, k.Op) {
				ranges[k.Index]++
			}
			compared[k.Index]++
			several[k.Index] = several[k.Index] || len(conditions) > 1
			m.tangled = m.tangled || ranges[k.Index] > 1 || several[k.Index] && compared[k.Index] > 1
		}
		if all {
			matched = append(matched, r.ret)
		}
	}
	if len(matched) > 0 {
		m.ret, m.others = matched[0], matched[1:]
	}
	return m
}

func holds(c specs.LinuxSeccompArg, v uint64, narrow bool) bool {
	x, y := c.Value, c.ValueTwo
	if narrow {
		v, x, y = v&0xffffffff, x&0xffffffff, y&0xffffffff
	}
	return map[specs.LinuxSeccompOperator]bool{
		specs.OpEqualTo: v == x, specs.OpNotEqual: v != x, specs.OpGreaterThan: v > x, specs.OpGreaterEqual: v >= x,
		specs.OpLessThan: v < x, specs.OpLessEqual: v <= x, specs.OpMaskedEqual: v&x == y&x,
	}[c.Op]
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

// numbers are those of every call, and some around them.
func numbers() []uint32 {
	numbers := []uint32{^uint32(0), x32Bit - 1}
	for nr := range uint32(700) {
		numbers = append(numbers, nr, nr|x32Bit)
	}
	for nr := range uint32(8) { // ARM's own
		numbers = append(numbers, 0xf0000+nr)
	}
	return numbers
}

// eachCall tries every number of every ABI with no arguments, and those that the profile
// has rules for with arguments that it may care for.
func (o *oracle) eachCall(try func(c call)) {
	r := rand.New(rand.NewPCG(1, 2))
	values := interesting(o.p, r)
	for _, arch := range []uint32{unix.AUDIT_ARCH_X86_64, unix.AUDIT_ARCH_I386, unix.AUDIT_ARCH_AARCH64, unix.AUDIT_ARCH_ARM, 0} {
		listed := abiOf(o.p, o.goarch, call{arch: arch}) != nil
		for _, nr := range numbers() {
			c := call{arch: arch, nr: nr}
			try(c)
			if !listed {
				break // all alike
			}
			if a := abiOf(o.p, o.goarch, c); a == nil || len(o.rules[a][nr]) == 0 {
				continue
			}
			for range 10 {
				for i := range c.args {
					c.args[i] = values[r.IntN(len(values))]
				}
				try(c)
			}
		}
	}
}

// check compares the compiled profile with the reference.
func check(t *testing.T, p *specs.LinuxSeccomp, goarch string) {
	t.Helper()
	prog, err := compile(p, goarch)
	if err != nil {
		t.Fatal(err)
	}
	m := vm(t, prog.Filter)
	o := newOracle(p, goarch)
	o.eachCall(func(c call) {
		if got, want := ask(t, m, c), o.meaning(c).ret; got != want {
			t.Fatalf("%s, arch %#x number %#x arguments %#x: %#x, want %#x", goarch, c.arch, c.nr, c.args, got, want)
		}
	})
}
