package executor

import (
	"encoding/json"
	"os"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/orlop-io/orlop/internal/platform/executor/plan"
)

// FuzzSpec: any document is an error or a plan, never a panic, and what was opened on the
// way is closed. A plan survives the way to the child.
func FuzzSpec(f *testing.F) {
	full := spec("true")
	one := 1
	full.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedBatch}
	full.Process.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_BE}
	full.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_CORE"}}
	full.Process.ExecCPUAffinity = &specs.CPUAffinity{Initial: "0-1", Final: "1"}
	full.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolBind, Nodes: "0"}
	full.Linux.Personality = &specs.LinuxPersonality{Domain: specs.PerLinux}
	full.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: rule(specs.ActErrno, 1, "mkdir")}
	full.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229}}
	full.Linux.Sysctl = map[string]string{"net.ipv4.ip_forward": "1"}
	full.Hooks = &specs.Hooks{CreateContainer: []specs.Hook{{Path: "/bin/true", Timeout: &one}}, Poststop: []specs.Hook{{Path: "/bin/true"}}}
	joins := spec("true")
	joins.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.PIDNamespace, Path: "/proc/self/ns/pid"}, {Type: specs.NetworkNamespace, Path: "/proc/self/ns/net"}}
	joins.Mounts = append(joins.Mounts, specs.Mount{Source: "/etc", Destination: "/x", Type: "bind", Options: []string{"rbind", "rro"}})
	for _, s := range []*specs.Spec{spec("sh"), full, joins, {}} {
		data, err := json.Marshal(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte(`{"process":{"args":["a"],"cwd":"/"},"linux":{"seccomp":{"defaultAction":"SCMP_ACT_NOTIFY","listenerPath":"/dev/log"}}}`))
	open := func() int {
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			f.Fatal(err)
		}
		return len(fds)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var s specs.Spec
		if json.Unmarshal(data, &s) != nil {
			return
		}
		before := open()
		for _, pause := range []bool{false, true} {
			b := newBuilder(nil, nil, nil, nil)
			if b.container(&Config{ID: "fuzz", Spec: &s, Rootfs: Rootfs{Dir: "/nowhere"}, Pause: pause}) == nil {
				checkPlan(t, &b.plan)
				checkStraight(t, b)
			}
			b.close()
		}
		b := newBuilder(nil, nil, nil, nil)
		self, err := os.Open("/proc/self/ns/pid")
		if err != nil {
			t.Fatal(err)
		}
		if b.join(&ExecConfig{PID: os.Getpid(), Process: s.Process}, self) == nil {
			checkPlan(t, &b.plan)
			checkStraight(t, b)
		}
		b.close()
		self.Close()
		if after := open(); after != before {
			t.Errorf("%d descriptors were open, and then %d", before, after)
		}
	})
}

// checkStraight makes a program of a plan that has that form, and what is left out in it comes
// to an end.
func checkStraight(t *testing.T, b *builder) {
	s := b.straight([3]*os.File{})
	if s == nil {
		return
	}
	if n := s.program.Len(); len(s.codes) != n || len(s.told)%2 != 0 || len(s.program.Executable()) == 0 {
		t.Errorf("a program of %d calls for %d, that tells %d words", n, len(s.codes), len(s.told))
	}
	if used := s.next - uint64(len(s.free)); used > uint64(len(s.files)+len(s.slots)+len(s.kernel)+2) {
		t.Errorf("%d descriptors are left open of %d given, %d mounts", used, len(s.files), len(s.slots))
	}
}

// checkPlan decodes what the child would get.
func checkPlan(t *testing.T, p *plan.Plan) {
	t.Helper()
	r := plan.Reader{B: p.Encode()}
	n := 0
	for {
		if _, ok := r.Next(); !ok {
			break
		}
		n++
	}
	if r.Bad || n != len(p.Ops) {
		t.Errorf("of %d operations %d arrive", len(p.Ops), n)
	}
}

// FuzzFailure: whatever comes from init is an error with a text.
func FuzzFailure(f *testing.F) {
	m := plan.Failure{Code: plan.Exec, Operand: "x", Errno: 2, Hint: "hint"}
	f.Add(m.Encode())
	f.Add([]byte{plan.MsgHook, plan.MsgHooked})
	f.Add([]byte{plan.MsgHook})
	f.Fuzz(func(t *testing.T, said []byte) {
		if len(said) > 0 && failure(said).Error() == "" {
			t.Error("an error without a text")
		}
		if err := passed(said); err != nil && err.Error() == "" {
			t.Error("an error without a text")
		}
	})
}
