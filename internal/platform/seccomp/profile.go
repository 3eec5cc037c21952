package seccomp

import (
	"runtime"
	"slices"

	"github.com/elastic/go-seccomp-bpf/arch"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// x32Bit marks the numbers of x32 calls, which come with x86-64's architecture.
const x32Bit = 0x40000000

// abi is one way to make system calls.
type abi struct {
	name   specs.Arch
	audit  uint32 // seccomp_data.arch
	table  *arch.Info
	narrow bool // arguments have 32 bits
	muxed  bool // has socketcall and ipc beside the calls that they stand for
}

// abis are those of this build's processors; a kernel never sees another.
var abis = map[string][]abi{
	"amd64": {
		{name: specs.ArchX86_64, audit: unix.AUDIT_ARCH_X86_64, table: arch.X86_64},
		{name: specs.ArchX86, audit: unix.AUDIT_ARCH_I386, table: arch.I386, narrow: true, muxed: true},
		{name: specs.ArchX32, audit: unix.AUDIT_ARCH_X86_64, table: arch.X32},
	},
	"arm64": {
		{name: specs.ArchAARCH64, audit: unix.AUDIT_ARCH_AARCH64, table: arch.AARCH64},
		{name: specs.ArchARM, audit: unix.AUDIT_ARCH_ARM, table: arch.ARM, narrow: true},
	},
}

var known = []specs.Arch{
	specs.ArchX86, specs.ArchX86_64, specs.ArchX32, specs.ArchARM, specs.ArchAARCH64, specs.ArchMIPS, specs.ArchMIPS64,
	specs.ArchMIPS64N32, specs.ArchMIPSEL, specs.ArchMIPSEL64, specs.ArchMIPSEL64N32, specs.ArchPPC, specs.ArchPPC64,
	specs.ArchPPC64LE, specs.ArchS390, specs.ArchS390X, specs.ArchPARISC, specs.ArchPARISC64, specs.ArchRISCV64,
	specs.ArchLOONGARCH64, specs.ArchM68K, specs.ArchSH, specs.ArchSHEB, "SCMP_ARCH_NATIVE",
}

// socketcall and ipc are the numbers that the calls have as the first argument of those
// two (net.h, ipc.h).
var (
	socketcall = map[string]uint64{
		"socket": 1, "bind": 2, "connect": 3, "listen": 4, "accept": 5, "getsockname": 6, "getpeername": 7, "socketpair": 8,
		"send": 9, "recv": 10, "sendto": 11, "recvfrom": 12, "shutdown": 13, "setsockopt": 14, "getsockopt": 15,
		"sendmsg": 16, "recvmsg": 17, "accept4": 18, "recvmmsg": 19, "sendmmsg": 20,
	}
	ipc = map[string]uint64{
		"semop": 1, "semget": 2, "semctl": 3, "semtimedop": 4, "msgsnd": 11, "msgrcv": 12, "msgget": 13, "msgctl": 14,
		"shmat": 21, "shmdt": 22, "shmget": 23, "shmctl": 24,
	}
)

// rule is what happens to a call if all conditions hold.
type rule struct {
	conditions []specs.LinuxSeccompArg
	ret        uint32
}

// table is what a profile says about one ABI.
type table struct {
	abi
	rules    map[uint32][]rule // by number, in the order to be tried
	fallback uint32            // for calls without a rule that matches
	newest   uint32            // calls above it answer ENOSYS
	enosys   bool
}

// read checks a profile and sorts it by architecture and number.
func read(p *specs.LinuxSeccomp) ([]*table, error) {
	fallback, err := action(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		return nil, err
	}
	for _, a := range p.Architectures {
		if !slices.Contains(known, a) {
			return nil, errs.New(errs.Invalid, "seccomp: architecture %q is not known", a)
		}
	}
	var tables []*table
	for i, a := range abis[runtime.GOARCH] {
		if i > 0 && !slices.Contains(p.Architectures, a.name) {
			continue
		}
		tables = append(tables, &table{abi: a, rules: map[uint32][]rule{}, fallback: fallback})
	}
	if len(tables) == 0 {
		return nil, errs.New(errs.Unsupported, "seccomp: profiles are not supported on %s", runtime.GOARCH)
	}
	for i := range p.Syscalls {
		if err := add(tables, &p.Syscalls[i], fallback); err != nil {
			return nil, err
		}
	}
	for _, t := range tables {
		switch p.DefaultAction {
		case specs.ActAllow, specs.ActLog, specs.ActTrace, specs.ActNotify:
		default:
			t.enosys = t.newest > 0
		}
		for nr, rules := range t.rules {
			// One without conditions is the only one that counts.
			if i := slices.IndexFunc(rules, func(r rule) bool { return len(r.conditions) == 0 }); i >= 0 {
				t.rules[nr] = rules[i : i+1]
			}
		}
	}
	return tables, nil
}

func add(tables []*table, s *specs.LinuxSyscall, fallback uint32) error {
	if len(s.Names) == 0 {
		return errs.New(errs.Invalid, "seccomp: a rule names no system call")
	}
	ret, err := action(s.Action, s.ErrnoRet)
	if err != nil {
		return err
	}
	count := map[uint]int{}
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
		for _, name := range s.Names {
			if name == "" {
				return errs.New(errs.Invalid, "seccomp: a rule names a system call that is empty")
			}
			if nr, ok := t.table.SyscallNames[name]; ok {
				nr := uint32(nr) | uint32(t.table.SeccompMask)
				t.newest = max(t.newest, nr)
				if ret != fallback {
					t.rules[nr] = append(t.rules[nr], rules...)
				}
			}
			if t.muxed && len(s.Args) == 0 && ret != fallback {
				t.mux("socketcall", socketcall, name, ret)
				t.mux("ipc", ipc, name, ret)
			}
		}
	}
	return nil
}

// mux adds a rule for a call that is also made by way of another.
func (t *table) mux(by string, calls map[string]uint64, name string, ret uint32) {
	n, ok := calls[name]
	if !ok {
		return
	}
	nr := uint32(t.table.SyscallNames[by])
	t.rules[nr] = append(t.rules[nr], rule{[]specs.LinuxSeccompArg{{Index: 0, Value: n, Op: specs.OpEqualTo}}, ret})
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
