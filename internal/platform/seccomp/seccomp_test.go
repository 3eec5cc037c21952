package seccomp

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"testing"

	moby "github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
)

func defaultProfile(t testing.TB, caps ...string) *specs.LinuxSeccomp {
	t.Helper()
	p, err := moby.GetDefaultProfile(&specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: caps}}})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestDefaultProfile(t *testing.T) {
	for _, goarch := range []string{"amd64", "arm64"} {
		check(t, defaultProfile(t), goarch)
		check(t, defaultProfile(t, "CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_NET_ADMIN"), goarch)
	}
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

// randomProfile makes a profile of every operator, action and combination of rules.
func randomProfile(r *rand.Rand, goarch string) *specs.LinuxSeccomp {
	ops := []specs.LinuxSeccompOperator{specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpEqualTo, specs.OpGreaterEqual, specs.OpGreaterThan, specs.OpMaskedEqual}
	acts := []specs.LinuxSeccompAction{specs.ActKill, specs.ActKillProcess, specs.ActKillThread, specs.ActTrap, specs.ActErrno, specs.ActTrace, specs.ActAllow, specs.ActLog, specs.ActNotify}
	archs := []specs.Arch{specs.ArchX86, specs.ArchX86_64, specs.ArchX32, specs.ArchAARCH64, specs.ArchARM, specs.ArchPPC64LE}
	names := append(abis(goarch)[0].names(), "socketcall", "ipc", "no_such_call", "waitpid", "fcntl64")
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
	for p.DefaultAction == specs.ActNotify {
		p.DefaultAction = pick()
	}
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
			if n := names[r.IntN(len(names))]; n != "write" || s.Action != specs.ActNotify {
				s.Names = append(s.Names, n)
			}
		}
		if len(s.Names) == 0 {
			continue
		}
		for range max(0, r.IntN(9)-4) {
			s.Args = append(s.Args, specs.LinuxSeccompArg{Index: uint(r.IntN(6)), Value: number(), ValueTwo: number(), Op: ops[r.IntN(len(ops))]})
		}
		p.Syscalls = append(p.Syscalls, s)
	}
	return p
}

// TestRandomProfiles compares with the reference.
func TestRandomProfiles(t *testing.T) {
	rounds := 40
	if testing.Short() {
		rounds = 5
	}
	for seed := range rounds {
		for _, goarch := range []string{"amd64", "arm64"} {
			t.Run(fmt.Sprint(goarch, seed), func(t *testing.T) {
				check(t, randomProfile(rand.New(rand.NewPCG(uint64(seed), 7)), goarch), goarch)
			})
		}
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
		"default notify":   {DefaultAction: specs.ActNotify},
		"notify of write":  rule(specs.LinuxSyscall{Action: specs.ActNotify, Names: []string{"read", "write"}}),
		"kill and notify":  {DefaultAction: specs.ActAllow, Flags: []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagWaitKillableRecv}},
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

func TestFlags(t *testing.T) {
	notify := []specs.LinuxSyscall{{Names: []string{"mkdir"}, Action: specs.ActNotify}}
	for _, c := range []struct {
		flags []specs.LinuxSeccompFlag
		rules []specs.LinuxSyscall
		want  uint
	}{
		{nil, nil, unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW},
		{[]specs.LinuxSeccompFlag{}, nil, 0},
		{[]specs.LinuxSeccompFlag{"SECCOMP_FILTER_FLAG_TSYNC"}, nil, 0},
		{[]specs.LinuxSeccompFlag{specs.LinuxSeccompFlagLog}, nil, unix.SECCOMP_FILTER_FLAG_LOG},
		{[]specs.LinuxSeccompFlag{specs.LinuxSeccompFlagLog, specs.LinuxSeccompFlagSpecAllow}, nil, unix.SECCOMP_FILTER_FLAG_LOG | unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW},
		{[]specs.LinuxSeccompFlag{specs.LinuxSeccompFlagWaitKillableRecv}, notify, unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV},
	} {
		prog, err := Compile(&specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Flags: c.flags, Syscalls: c.rules})
		if err != nil {
			t.Fatal(err)
		}
		if prog.Flags != c.want || prog.Notify != (c.rules != nil) {
			t.Errorf("%q: flags %#x, notify %t, want %#x", c.flags, prog.Flags, prog.Notify, c.want)
		}
	}
}

// TestCache: it stays within its bound, and whatever it has seen it answers with what a
// fresh compilation gives.
func TestCache(t *testing.T) {
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() {
			for seed := range maxCached + 20 {
				p := randomProfile(rand.New(rand.NewPCG(uint64(seed), 19)), runtime.GOARCH)
				fresh, err := compile(p, runtime.GOARCH)
				if err != nil {
					t.Error(err)
					return
				}
				for range 2 {
					cached, err := Compile(p)
					if err != nil || !slices.Equal(cached.Filter, fresh.Filter) || cached.Flags != fresh.Flags || cached.Notify != fresh.Notify {
						t.Errorf("seed %d: another program came from the cache (%v)", seed, err)
						return
					}
				}
			}
		})
	}
	wg.Wait()
	cache.Lock()
	defer cache.Unlock()
	if n := len(cache.programs); n == 0 || n > maxCached {
		t.Errorf("%d programs are kept, want 1 to %d", n, maxCached)
	}
}

// TestDigest: every change of a profile that makes another program gives another name.
func TestDigest(t *testing.T) {
	one, two := uint(1), uint(2)
	base := func() *specs.LinuxSeccomp {
		return &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, DefaultErrnoRet: &one, Architectures: []specs.Arch{specs.ArchX86}, Flags: []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagLog},
			Syscalls: []specs.LinuxSyscall{{Names: []string{"read", "pipe"}, Action: specs.ActErrno, ErrnoRet: &one, Args: []specs.LinuxSeccompArg{{Index: 1, Value: 2, ValueTwo: 3, Op: specs.OpMaskedEqual}}}}}
	}
	seen := map[string]string{string(content(base())): "unchanged"}
	for name, change := range map[string]func(p *specs.LinuxSeccomp){
		"default action": func(p *specs.LinuxSeccomp) { p.DefaultAction = specs.ActTrace },
		"default errno":  func(p *specs.LinuxSeccomp) { p.DefaultErrnoRet = &two },
		"no errno":       func(p *specs.LinuxSeccomp) { p.DefaultErrnoRet = nil },
		"architecture":   func(p *specs.LinuxSeccomp) { p.Architectures[0] = specs.ArchX32 },
		"architectures":  func(p *specs.LinuxSeccomp) { p.Architectures = nil },
		"flag":           func(p *specs.LinuxSeccomp) { p.Flags[0] = specs.LinuxSeccompFlagSpecAllow },
		"empty flags":    func(p *specs.LinuxSeccomp) { p.Flags = []specs.LinuxSeccompFlag{} },
		"no flags":       func(p *specs.LinuxSeccomp) { p.Flags = nil },
		"name":           func(p *specs.LinuxSeccomp) { p.Syscalls[0].Names[0] = "open" },
		"names":          func(p *specs.LinuxSeccomp) { p.Syscalls[0].Names = []string{"readpipe"} },
		"action":         func(p *specs.LinuxSeccomp) { p.Syscalls[0].Action = specs.ActTrace },
		"errno":          func(p *specs.LinuxSeccomp) { p.Syscalls[0].ErrnoRet = &two },
		"index":          func(p *specs.LinuxSeccomp) { p.Syscalls[0].Args[0].Index = 2 },
		"value":          func(p *specs.LinuxSeccomp) { p.Syscalls[0].Args[0].Value = 3 },
		"second value":   func(p *specs.LinuxSeccomp) { p.Syscalls[0].Args[0].ValueTwo = 2 },
		"operator":       func(p *specs.LinuxSeccomp) { p.Syscalls[0].Args[0].Op = specs.OpEqualTo },
		"no conditions":  func(p *specs.LinuxSeccomp) { p.Syscalls[0].Args = nil },
		"no rules":       func(p *specs.LinuxSeccomp) { p.Syscalls = nil },
	} {
		p := base()
		change(p)
		d := string(content(p))
		if other, ok := seen[d]; ok {
			t.Errorf("%s has the name of %s", name, other)
		}
		seen[d] = name
	}
}

// FuzzCompile: whatever a profile says, it is refused with a reason or makes a program that
// runs to its end and says what the profile means.
func FuzzCompile(f *testing.F) {
	for seed := range 8 {
		p, err := json.Marshal(randomProfile(rand.New(rand.NewPCG(uint64(seed), 17)), "amd64"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(p, uint32(seed), uint64(1), uint64(2))
	}
	f.Fuzz(func(t *testing.T, profile []byte, nr uint32, a, b uint64) {
		p := new(specs.LinuxSeccomp)
		if json.Unmarshal(profile, p) != nil {
			return
		}
		for _, goarch := range []string{"amd64", "arm64"} {
			prog, err := compile(p, goarch)
			if err != nil {
				if !errors.Is(err, errs.Invalid) {
					t.Fatal(err)
				}
				continue
			}
			m, o := vm(t, prog.Filter), newOracle(p, goarch)
			for i := range abis(goarch) {
				abi := &abis(goarch)[i]
				numbers := []uint32{nr &^ (1 << 31)}
				for n := range o.rules[abi] {
					numbers = append(numbers, n)
				}
				for _, n := range numbers {
					c := call{arch: abi.audit, nr: n, args: [6]uint64{a, b, a ^ b, a + b, a - b, 0}}
					if got, want := ask(t, m, c), o.meaning(c).ret; got != want {
						t.Fatalf("%s, call %+v: %#x, want %#x", goarch, c, got, want)
					}
				}
			}
		}
	})
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
		if _, err := compile(p, runtime.GOARCH); err != nil {
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
