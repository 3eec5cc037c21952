package seccomp

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// library is libseccomp, behind a program that the test compiles: what is linked into
// Orlop stays free of C.
type library struct {
	in      *bufio.Writer
	out     *bufio.Reader
	numbers map[string]int
}

func openLibrary(t *testing.T) *library {
	t.Helper()
	bin := buildC(t, "libseccomp.c", "-lseccomp")
	cmd := exec.Command(bin)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("the program with libseccomp: %v: %s", err, stderr.String())
		}
	})
	return &library{in: bufio.NewWriter(in), out: bufio.NewReader(out), numbers: map[string]int{}}
}

// buildC compiles a program of testdata.
func buildC(t *testing.T, source string, args ...string) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), strings.TrimSuffix(source, ".c"))
	args = append([]string{"-Wall", "-Werror", "-O1", "-o", bin, filepath.Join("testdata", source)}, args...)
	if out, err := exec.Command("gcc", args...).CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v (deploy/packages.sh test installs what it needs)\n%s", err, out)
	}
	return bin
}

func (l *library) order(format string, args ...any) { fmt.Fprintf(l.in, format+"\n", args...) }

func (l *library) answer(t *testing.T) int {
	t.Helper()
	l.in.Flush()
	var n int
	if _, err := fmt.Fscanln(l.out, &n); err != nil {
		t.Fatal("the program with libseccomp does not answer: ", err)
	}
	return n
}

func archName(a specs.Arch) string {
	return strings.ToLower(strings.TrimPrefix(string(a), "SCMP_ARCH_"))
}

// number is what libseccomp thinks a call has in an ABI; below zero if it is none there.
func (l *library) number(t *testing.T, a specs.Arch, call string) int {
	key := fmt.Sprint(archName(a), " ", call)
	n, ok := l.numbers[key]
	if !ok {
		l.order("name %s", key)
		n = l.answer(t)
		l.numbers[key] = n
	}
	return n
}

// compile does with a profile what runc does.
func (l *library) compile(t *testing.T, p *specs.LinuxSeccomp, goarch string) ([]unix.SockFilter, error) {
	t.Helper()
	fallback, err := action(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		return nil, err
	}
	optimize := 1
	if len(p.Syscalls) > 8 {
		optimize = 2
	}
	l.order("new %#x %d", fallback, optimize)
	for i, a := range abis(goarch) {
		switch {
		case i == 0 && goarch == "arm64":
			l.order("only aarch64")
		case i == 0 || slices.Contains(p.Architectures, a.name):
			l.order("arch %s", archName(a.name))
		}
	}
	rule := func(ret uint32, name string, args []specs.LinuxSeccompArg) {
		line := fmt.Sprintf("rule %#x %s", ret, name)
		for _, a := range args {
			line += fmt.Sprintf(" %d %s %#x %#x", a.Index, strings.TrimPrefix(string(a.Op), "SCMP_CMP_"), a.Value, a.ValueTwo)
		}
		l.order("%s", line)
	}
	for _, s := range p.Syscalls {
		ret, err := action(s.Action, s.ErrnoRet)
		if err != nil {
			return nil, err
		}
		if ret == fallback {
			continue
		}
		count := countArgs(s.Args)
		for _, name := range s.Names {
			if len(count) == len(s.Args) {
				rule(ret, name, s.Args)
				continue
			}
			for i := range s.Args {
				rule(ret, name, s.Args[i:i+1])
			}
		}
	}
	l.order("end")
	n := l.answer(t)
	if n < 0 {
		return nil, unix.Errno(-n)
	}
	filter := make([]unix.SockFilter, n)
	for i := range filter {
		f := &filter[i]
		if _, err := fmt.Fscanln(l.out, &f.Code, &f.Jt, &f.Jf, &f.K); err != nil {
			t.Fatal(err)
		}
	}
	return filter, nil
}

// known leaves in a profile what libseccomp has heard of: it and Orlop know the calls of
// different kernels.
func (l *library) known(t *testing.T, p *specs.LinuxSeccomp, goarch string) *specs.LinuxSeccomp {
	t.Helper()
	q := *p
	q.Syscalls = nil
	for _, s := range p.Syscalls {
		names := s.Names
		s.Names = nil
		for _, n := range names {
			if l.number(t, abis(goarch)[0].name, n) != unknownCall {
				s.Names = append(s.Names, n)
			}
		}
		if len(s.Names) > 0 {
			q.Syscalls = append(q.Syscalls, s)
		}
	}
	return &q
}

// unknownCall is __NR_SCMP_ERROR.
const unknownCall = -1

// TestNumbers compares the tables of numbers.
func TestNumbers(t *testing.T) {
	l := openLibrary(t)
	for _, goarch := range []string{"amd64", "arm64"} {
		for _, a := range abis(goarch) {
			names := map[string]bool{}
			for _, b := range slices.Concat(abis("amd64"), abis("arm64")) {
				for _, n := range b.names() {
					names[n] = true
				}
			}
			for name := range names {
				theirs := l.number(t, a.name, name)
				ours, ok := a.number(name)
				switch {
				case theirs == unknownCall: // a newer kernel's, or no call
				case theirs >= 0 && (!ok || uint32(theirs) != ours):
					t.Errorf("%s: %s is %d (%t), libseccomp has %d", a.name, name, ours, ok, theirs)
				case theirs < -1000 && ok: // what this ABI does not have
					t.Errorf("%s: %s is %d, libseccomp has no such call", a.name, name, ours)
				}
			}
		}
	}
}

// TestLibseccomp compares verdicts with those of the library that others use, for the
// default profile and for random ones. They may differ in two cases:
//
//   - Rules of different actions hold for one call. Here the first of the profile counts,
//     there the place in a tree that is ordered by arguments, operators and values.
//   - Rules that compare the same argument. libseccomp gets some of them wrong, see
//     TestLibseccompErrors.
func TestLibseccomp(t *testing.T) {
	l := openLibrary(t)
	for _, goarch := range []string{"amd64", "arm64"} {
		for _, caps := range [][]string{nil, {"CAP_SYS_ADMIN"}, {"CAP_SYS_PTRACE", "CAP_NET_ADMIN", "CAP_BPF", "CAP_SYSLOG"}} {
			p := l.known(t, defaultProfile(t, caps...), goarch)
			if goarch == "arm64" {
				p.Architectures = []specs.Arch{specs.ArchAARCH64, specs.ArchARM}
			}
			theirs, err := l.compile(t, p, goarch)
			if err != nil {
				t.Fatal(err)
			}
			if n := compare(t, p, goarch, theirs); n > 0 {
				t.Errorf("default profile, %s, %v: %d verdicts are excused", goarch, caps, n)
			}
		}
		refused, excused := 0, 0
		for seed := range 200 {
			p := l.known(t, randomProfile(rand.New(rand.NewPCG(uint64(seed), 11)), goarch), goarch)
			theirs, err := l.compile(t, p, goarch)
			if errors.Is(err, unix.EEXIST) { // the first of the two cases, found early
				refused++
				continue
			}
			if err != nil {
				t.Fatalf("%s, seed %d: %v", goarch, seed, err)
			}
			excused += compare(t, p, goarch, theirs)
			if t.Failed() {
				t.Fatalf("%s, seed %d", goarch, seed)
			}
		}
		t.Logf("%s: libseccomp refuses %d of 200 profiles; %d verdicts are excused", goarch, refused, excused)
		if refused > 60 {
			t.Errorf("%s: too few profiles are left to compare", goarch)
		}
	}
}

// compare says how many verdicts differ with an excuse, and fails where there is none.
func compare(t *testing.T, p *specs.LinuxSeccomp, goarch string, theirs []unix.SockFilter) (excused int) {
	t.Helper()
	prog, err := compile(p, goarch)
	if err != nil {
		t.Fatal(err)
	}
	ours, lib := vm(t, prog.Filter), vm(t, theirs)
	o := newOracle(p, goarch)
	o.eachCall(func(c call) {
		got, want, meant := ask(t, ours, c), ask(t, lib, c), o.meaning(c)
		if meant.ret == unix.SECCOMP_RET_ERRNO|uint32(unix.ENOSYS) {
			want = meant.ret // what runc puts before the library's program
		}
		switch {
		case got == want:
		case len(meant.others) > 0 && slices.Contains(meant.others, want), meant.tangled:
			excused++
		default:
			t.Errorf("arch %#x number %#x arguments %#x: %#x, libseccomp %#x", c.arch, c.nr, c.args, got, want)
		}
	})
	return excused
}

// TestLibseccompErrors holds on to the library's errors that TestLibseccomp excuses. When
// it fails, the excuse has to go.
func TestLibseccompErrors(t *testing.T) {
	l := openLibrary(t)
	for _, c := range []struct {
		about string
		rules [][]specs.LinuxSeccompArg
		call  call
		want  uint32
		lib   uint32
	}{{
		about: "what lies between two ranges is taken for one of them",
		rules: [][]specs.LinuxSeccompArg{
			{{Index: 4, Value: 10, Op: specs.OpLessEqual}},
			{{Index: 4, Value: 1 << 40, Op: specs.OpGreaterEqual}},
		},
		call: call{arch: unix.AUDIT_ARCH_X86_64, nr: numbersOf("inotify_init")[x8664], args: [6]uint64{4: 1 << 31}},
		want: unix.SECCOMP_RET_ALLOW, lib: unix.SECCOMP_RET_TRAP,
	}, {
		about: "after the second condition of a rule failed, the next rule is asked of that condition's argument",
		rules: [][]specs.LinuxSeccompArg{
			{{Index: 2, Value: 1, Op: specs.OpNotEqual}, {Index: 4, Value: 100, Op: specs.OpGreaterThan}},
			{{Index: 2, Value: 0, Op: specs.OpLessEqual}},
		},
		call: call{arch: unix.AUDIT_ARCH_I386, nr: 291, args: [6]uint64{4: 1}},
		want: unix.SECCOMP_RET_TRAP, lib: unix.SECCOMP_RET_ALLOW,
	}} {
		p := &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Architectures: []specs.Arch{specs.ArchX86}}
		for _, r := range c.rules {
			p.Syscalls = append(p.Syscalls, specs.LinuxSyscall{Names: []string{"inotify_init"}, Action: specs.ActTrap, Args: r})
		}
		theirs, err := l.compile(t, p, "amd64")
		if err != nil {
			t.Fatal(err)
		}
		prog, err := compile(p, "amd64")
		if err != nil {
			t.Fatal(err)
		}
		if got := ask(t, vm(t, prog.Filter), c.call); got != c.want {
			t.Errorf("%s: %#x, want %#x", c.about, got, c.want)
		}
		if got := ask(t, vm(t, theirs), c.call); got != c.lib {
			t.Errorf("%s: libseccomp now answers %#x", c.about, got)
		}
	}
}
