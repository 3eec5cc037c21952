// Package seccomp compiles OCI seccomp profiles to the classic BPF programs that
// seccomp(2) takes, in Go, and keeps what it compiled.
//
// libseccomp takes 20 ms and more for the profile that containers have by default, at
// every start, and gives a program that a system call walks from the top. Here the
// numbers that share an action are merged to ranges, and a balanced tree of comparisons
// finds the range: a call passes about ten instructions.
//
// What a profile means is what runc and libseccomp make of it:
//
//   - A rule without conditions wins over rules with conditions for the same call; of
//     several the first counts. The conditions of a rule must all hold, except that all
//     are alternatives if two are on the same argument. A condition with an empty mask is none.
//   - On 32-bit ABIs, x32 among them, the lower halves of arguments are compared.
//   - On 32-bit x86 a rule for a call that socketcall or ipc makes as well holds for that
//     too; a condition on its first argument is lost there, where it cannot be seen.
//   - A rule whose action is the default one is left out.
//   - Names that no table knows are left out: profiles name calls of all kernels.
//   - Calls newer than all that the profile names answer ENOSYS, not the default error:
//     C libraries then fall back to what they did before the call existed.
//   - Calls of an architecture that is not listed kill the thread. The native
//     architecture is always listed.
//   - Without flags, SPEC_ALLOW is used.
package seccomp

import (
	"encoding/binary"
	"runtime"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// Program is a compiled profile. It is not to be changed.
type Program struct {
	// Filter are the instructions for seccomp(SECCOMP_SET_MODE_FILTER).
	Filter []unix.SockFilter
	// Flags are the SECCOMP_FILTER_FLAG_* to install it with.
	Flags uint
	// Notify tells that the profile hands calls to a listener (SCMP_ACT_NOTIFY), which
	// whoever installs it has to provide.
	Notify bool
	// Kills tells that an action may end a thread alone, and not its process.
	Kills bool
}

// maxCached is how many compiled profiles are kept. A node has a handful.
const maxCached = 128

var cache struct {
	sync.Mutex
	programs map[string]*Program
}

// Compile translates a profile. The result is cached by the profile's content. A nil
// profile gives nil. What the profile says and nobody knows is errs.Invalid. It is safe
// for concurrent use.
func Compile(p *specs.LinuxSeccomp) (*Program, error) {
	if p == nil {
		return nil, nil
	}
	key := content(p)
	cache.Lock()
	prog := cache.programs[string(key)] // no copy
	cache.Unlock()
	if prog != nil {
		return prog, nil
	}
	prog, err := compile(p, runtime.GOARCH)
	if err != nil {
		return nil, err
	}
	cache.Lock()
	defer cache.Unlock()
	if cache.programs == nil || len(cache.programs) >= maxCached {
		cache.programs = map[string]*Program{}
	}
	cache.programs[string(key)] = prog
	return prog, nil
}

// content is the profile in bytes: equal for equal profiles and no others. A digest of it
// would be shorter, but for a process that compiles one profile it costs more than the
// compilation can spare, and every process that links a hash pays for its package's start.
func content(p *specs.LinuxSeccomp) []byte {
	w := writer{buf: make([]byte, 0, 8<<10)}
	w.string(string(p.DefaultAction))
	w.errno(p.DefaultErrnoRet)
	w.number(uint64(len(p.Architectures)))
	for _, a := range p.Architectures {
		w.string(string(a))
	}
	w.present(p.Flags != nil)
	w.number(uint64(len(p.Flags)))
	for _, f := range p.Flags {
		w.string(string(f))
	}
	for _, s := range p.Syscalls {
		w.number(uint64(len(s.Names)))
		for _, n := range s.Names {
			w.string(n)
		}
		w.string(string(s.Action))
		w.errno(s.ErrnoRet)
		w.number(uint64(len(s.Args)))
		for _, a := range s.Args {
			w.number(uint64(a.Index))
			w.number(a.Value)
			w.number(a.ValueTwo)
			w.string(string(a.Op))
		}
	}
	return w.buf
}

type writer struct{ buf []byte }

func (w *writer) number(n uint64) { w.buf = binary.AppendUvarint(w.buf, n) }

func (w *writer) string(s string) {
	w.number(uint64(len(s)))
	w.buf = append(w.buf, s...)
}

func (w *writer) errno(n *uint) {
	w.present(n != nil)
	if n != nil {
		w.number(uint64(*n))
	}
}

func (w *writer) present(is bool) {
	if is {
		w.number(1)
	} else {
		w.number(0)
	}
}

// compile translates for one of the processors that abis knows.
func compile(p *specs.LinuxSeccomp, goarch string) (*Program, error) {
	prog := &Program{}
	if p.Flags == nil {
		prog.Flags = unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
	}
	for _, f := range p.Flags {
		switch f {
		case specs.LinuxSeccompFlagLog:
			prog.Flags |= unix.SECCOMP_FILTER_FLAG_LOG
		case specs.LinuxSeccompFlagSpecAllow:
			prog.Flags |= unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
		case specs.LinuxSeccompFlagWaitKillableRecv:
			prog.Flags |= unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
		case "SECCOMP_FILTER_FLAG_TSYNC":
			// The thread that installs the filter is the only one that goes on.
		default:
			return nil, errs.New(errs.Invalid, "seccomp: flag %q is not known", f)
		}
	}
	tables, err := read(p, goarch)
	if err != nil {
		return nil, err
	}
	kills := func(a specs.LinuxSeccompAction) bool { return a == specs.ActKill || a == specs.ActKillThread }
	prog.Kills = kills(p.DefaultAction)
	for _, s := range p.Syscalls {
		prog.Notify = prog.Notify || s.Action == specs.ActNotify
		prog.Kills = prog.Kills || kills(s.Action)
	}
	if prog.Flags&unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV != 0 && !prog.Notify {
		return nil, errs.New(errs.Invalid, "seccomp: flag %s needs a rule with the action %s", specs.LinuxSeccompFlagWaitKillableRecv, specs.ActNotify)
	}
	prog.Filter = assemble(tables)
	if len(prog.Filter) > unix.BPF_MAXINSNS {
		return nil, errs.New(errs.Invalid, "seccomp: the profile makes a program of %d instructions; the kernel takes %d", len(prog.Filter), unix.BPF_MAXINSNS)
	}
	return prog, nil
}
