package seccomp

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"slices"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// These two are the kernel's own way back from a probe: since Linux 6.14 and 6.18 they pass
// without a filter being asked.
const uretprobe, uprobe = 335, 336

// TestKernel has the kernel run compiled filters: it must agree with the other machine
// that the tests use. Actions are errors that differ by rule, so that no call is made.
func TestKernel(t *testing.T) {
	bin := buildC(t, "kernel.c", "-mno-red-zone")
	for seed := range 20 {
		r := rand.New(rand.NewPCG(uint64(seed), 13))
		p := randomProfile(r, "amd64")
		p.Architectures = []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32}
		p.DefaultAction = specs.ActErrno
		for i := range p.Syscalls {
			errno := uint(2 + i)
			p.Syscalls[i].Action, p.Syscalls[i].ErrnoRet = specs.ActErrno, &errno
			if i%5 == 4 {
				p.Syscalls[i].Action = specs.ActTrace // without a tracer: ENOSYS
			}
		}
		prog, err := compile(p, "amd64")
		if err != nil {
			t.Fatal(err)
		}
		m := vm(t, prog.Filter)
		var calls []call
		newOracle(p, "amd64").eachCall(func(c call) {
			if c.arch == unix.AUDIT_ARCH_X86_64 && (c.nr == uretprobe || c.nr == uprobe) {
				return
			}
			if (c.arch == unix.AUDIT_ARCH_X86_64 || c.arch == unix.AUDIT_ARCH_I386) && r.IntN(4) == 0 {
				calls = append(calls, c)
			}
		})
		var in bytes.Buffer
		fmt.Fprintln(&in, len(prog.Filter))
		for _, f := range prog.Filter {
			fmt.Fprintln(&in, f.Code, f.Jt, f.Jf, f.K)
		}
		fmt.Fprintln(&in, len(calls))
		var want []int64
		for _, c := range calls {
			by := 0
			if c.arch == unix.AUDIT_ARCH_I386 {
				by = 1
			}
			fmt.Fprint(&in, by, " ", c.nr)
			for i, a := range c.args {
				if by == 1 {
					c.args[i] = uint64(uint32(a))
				}
				fmt.Fprint(&in, " ", a)
			}
			fmt.Fprintln(&in)
			verdict := ask(t, m, c)
			switch verdict & unix.SECCOMP_RET_ACTION_FULL {
			case unix.SECCOMP_RET_ERRNO:
				want = append(want, -int64(verdict&unix.SECCOMP_RET_DATA))
			case unix.SECCOMP_RET_TRACE:
				want = append(want, -int64(unix.ENOSYS))
			default:
				t.Fatalf("verdict %#x", verdict)
			}
		}
		cmd := exec.Command(bin)
		var stderr bytes.Buffer
		cmd.Stdin, cmd.Stderr = &in, &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("seed %d: %v: %s", seed, err, stderr.String())
		}
		var got []int64
		for line := range bytes.Lines(out) {
			var n int64
			if _, err := fmt.Sscan(string(line), &n); err != nil {
				t.Fatal(err)
			}
			got = append(got, n)
		}
		if !slices.Equal(got, want) {
			for i := range got {
				if got[i] != want[i] {
					t.Fatalf("seed %d, call %+v: the kernel says %d, the other machine %d", seed, calls[i], got[i], want[i])
				}
			}
			t.Fatalf("seed %d: %d answers, want %d", seed, len(got), len(want))
		}
	}
}
