package executor

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
)

func TestScheduler(t *testing.T) {
	for name, tt := range map[string]struct {
		s    specs.Scheduler
		want unix.SchedAttr
	}{
		"batch":    {specs.Scheduler{Policy: specs.SchedBatch, Nice: 5}, unix.SchedAttr{Policy: unix.SCHED_BATCH, Nice: 5}},
		"other":    {specs.Scheduler{Policy: specs.SchedOther, Nice: -3, Flags: []specs.LinuxSchedulerFlag{specs.SchedFlagResetOnFork}}, unix.SchedAttr{Policy: unix.SCHED_NORMAL, Nice: -3, Flags: unix.SCHED_FLAG_RESET_ON_FORK}},
		"idle":     {specs.Scheduler{Policy: specs.SchedIdle}, unix.SchedAttr{Policy: unix.SCHED_IDLE}},
		"fifo":     {specs.Scheduler{Policy: specs.SchedFIFO, Priority: 7}, unix.SchedAttr{Policy: unix.SCHED_FIFO, Priority: 7}},
		"rr":       {specs.Scheduler{Policy: specs.SchedRR, Priority: 1}, unix.SchedAttr{Policy: unix.SCHED_RR, Priority: 1}},
		"deadline": {specs.Scheduler{Policy: specs.SchedDeadline, Runtime: 20e6, Deadline: 90e6, Period: 100e6, Flags: []specs.LinuxSchedulerFlag{specs.SchedFlagResetOnFork}}, unix.SchedAttr{Policy: unix.SCHED_DEADLINE, Flags: unix.SCHED_FLAG_RESET_ON_FORK, Runtime: 20e6, Deadline: 90e6, Period: 100e6}},
	} {
		t.Run(name, func(t *testing.T) {
			r := probe(t, func(s *specs.Spec, c *Config) {
				s.Process.Scheduler = &tt.s
				s.Process.User.UID = 1000
			})
			r.Scheduler.Size = 0
			r.Scheduler.Util_max, r.Scheduler.Util_min = 0, 0
			if p := tt.want.Policy; p != unix.SCHED_NORMAL && p != unix.SCHED_BATCH && p != unix.SCHED_DEADLINE {
				r.Scheduler.Nice = tt.want.Nice
			}
			if tt.want.Runtime == 0 { // the kernel tells the slice of fair tasks
				r.Scheduler.Runtime = 0
			}
			if *r.Scheduler != tt.want {
				t.Errorf("got  %+v\nwant %+v", *r.Scheduler, tt.want)
			}
		})
	}
}

func TestIOPriorityPersonalityAndMemory(t *testing.T) {
	r := probe(t, func(s *specs.Spec, c *Config) {
		s.Process.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_BE, Priority: 3}
		s.Linux.Personality = &specs.LinuxPersonality{Domain: specs.PerLinux32}
		s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolBind, Nodes: "0", Flags: []specs.MemoryPolicyFlagType{specs.MpolFStaticNodes}}
	})
	if r.IOPriority != 2<<13|3 || r.Personality != 8 || r.Machine == "x86_64" || r.Policy != 2|mpolStatic || r.Nodes != 1 {
		t.Errorf("got %+v", r)
	}
	for mode, m := range memoryModes {
		t.Run(string(mode), func(t *testing.T) {
			nodes, want := "", uint64(0)
			if m.nodes != never {
				nodes, want = "0-0", 1
			}
			r := probe(t, func(s *specs.Spec, c *Config) {
				s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: mode, Nodes: nodes}
			})
			if uint64(r.Policy) != m.number || r.Nodes != want {
				t.Errorf("got %+v", r)
			}
		})
	}
	// What only this machine refuses is refused in Create, by name.
	s := spec("true")
	s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolBind, Nodes: "900"}
	if _, err := shared.Create(contextT(t), Config{ID: "x", Spec: s, Rootfs: layers(t, image(t))}); !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "MPOL_BIND 900") {
		t.Errorf("got %v", err)
	}
}

// TestExecAttributes: where a process of a container runs, and what it has of the
// container's.
func TestExecAttributes(t *testing.T) { eachWay(t, testExecAttributes) }

func testExecAttributes(t *testing.T) {
	g := group(t)
	s := spec("sleep", "1000")
	s.Mounts = append(s.Mounts, specs.Mount{Source: probePath, Destination: "/probe", Type: "bind", Options: []string{"bind", "ro"}})
	p, end := start(t, Config{ID: "target", Spec: s, Rootfs: layers(t, image(t)), Cgroup: g})
	defer end()
	var all unix.CPUSet
	if err := unix.SchedGetaffinity(0, &all); err != nil {
		t.Fatal(err)
	}
	if all.Count() < 2 {
		t.Fatal("this needs two processors")
	}
	for name, tt := range map[string]struct {
		cpus   specs.CPUAffinity
		cgroup bool
		want   []int
	}{
		"initial":         {specs.CPUAffinity{Initial: "1"}, false, []int{1}},
		"final":           {specs.CPUAffinity{Final: "1"}, true, []int{1}},
		"both":            {specs.CPUAffinity{Initial: "0-1", Final: "0"}, true, []int{0}},
		"several, spaces": {specs.CPUAffinity{Final: " 0 , 1"}, true, []int{0, 1}},
	} {
		t.Run(name, func(t *testing.T) {
			c := ExecConfig{PID: p.PID(), Personality: &specs.LinuxPersonality{Domain: specs.PerLinux32}, MemoryPolicy: &specs.LinuxMemoryPolicy{Mode: specs.MpolInterleave, Nodes: "0"},
				Process: &specs.Process{Args: []string{"/probe"}, Cwd: "/", ExecCPUAffinity: &tt.cpus, User: specs.User{UID: 3}}}
			if tt.cgroup {
				c.Cgroup = g
			}
			r := probed(t, execute(t, c))
			if !slices.Equal(r.CPUs, tt.want) || r.Personality != 8 || r.Policy != 3 {
				t.Errorf("got %+v", r)
			}
		})
	}
	var after unix.CPUSet
	if unix.SchedGetaffinity(0, &after); after != all {
		t.Errorf("this process now has %v", after)
	}
	if _, err := shared.Exec(contextT(t), ExecConfig{PID: p.PID(), Process: &specs.Process{Args: []string{"/probe"}, Cwd: "/", ExecCPUAffinity: &specs.CPUAffinity{Initial: "4000"}}}); !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "4000") {
		t.Errorf("got %v", err)
	}
	// It is not for the first process.
	if r := probe(t, func(s *specs.Spec, c *Config) {
		s.Process.ExecCPUAffinity = &specs.CPUAffinity{Initial: "1", Final: "1"}
	}); len(r.CPUs) != all.Count() {
		t.Errorf("a container's first process has %v", r.CPUs)
	}
}

// TestEnvironment: a program's environment is what is given, and HOME. Of a variable that
// is given twice the later value counts.
func TestEnvironment(t *testing.T) { eachWay(t, testEnvironment) }

func testEnvironment(t *testing.T) {
	passwd := "# a comment\nroot:x:0:0:root:/root:/bin/sh\nbroken:x:5\nuser:x:1000:1000::/home/user:\nuser:x:1000:1000::/second:/bin/sh\nnone:x:7:7::"
	for _, tt := range []struct {
		uid  uint32
		env  []string
		want string
	}{
		{0, nil, "HOME=/root"}, {1000, nil, "HOME=/home/user"}, {5, nil, "HOME=/"}, {7, nil, "HOME=/"}, {12345, nil, "HOME=/"},
		{1000, []string{"A=1", "B=", "A=2", "HOME=/a", "HOME="}, "B=|A=2|HOME=/home/user"}, {1000, []string{"HOME="}, "HOME=/home/user"},
	} {
		for _, exec := range []bool{false, true} {
			args := []string{"/bin/cat", "/proc/self/environ"}
			s := spec(args...)
			s.Process.Env, s.Process.User.UID = tt.env, tt.uid
			root := image(t)
			os.WriteFile(root+"/etc/passwd", []byte(passwd), 0o644)
			var out string
			if exec {
				p, end := start(t, Config{ID: "target", Spec: spec("sleep", "1000"), Rootfs: layers(t, root)})
				out = execute(t, ExecConfig{PID: p.PID(), Process: s.Process})
				end()
			} else {
				out = run(t, Config{Spec: s, Rootfs: layers(t, root)}).out
			}
			if got := strings.ReplaceAll(strings.TrimSuffix(out, "\x00"), "\x00", "|"); got != tt.want {
				t.Errorf("user %d, %q: got %q, want %q", tt.uid, tt.env, got, tt.want)
			}
		}
	}
}

// TestNoVariable: what is no variable is refused.
func TestNoVariable(t *testing.T) {
	for _, e := range []string{"alone", "=value", ""} {
		s := spec("/bin/true")
		s.Process.Env = []string{"A=1", e}
		if _, err := shared.Create(contextT(t), Config{ID: "x", Spec: s, Rootfs: layers(t, image(t))}); !errors.Is(err, errs.Invalid) {
			t.Errorf("%q: %v, want an error of the kind invalid", e, err)
		}
	}
}

// TestPrograms: how the first argument names the program.
func TestPrograms(t *testing.T) {
	for name, tt := range map[string]struct {
		arg, cwd string
		env      []string
		ok       bool
	}{
		"by name without PATH": {"busybox", "/", nil, true},
		"relative":             {"../bin/busybox", "/etc", nil, true},
		"dot":                  {"./busybox", "/bin", nil, true},
		"empty part of PATH":   {"busybox", "/bin", []string{"PATH=/nowhere:"}, true},
		"not in PATH":          {"busybox", "/bin", []string{"PATH=/nowhere"}, false},
		"the last PATH counts": {"busybox", "/", []string{"PATH=/nowhere", "PATH=/bin"}, true},
	} {
		t.Run(name, func(t *testing.T) {
			s := spec(tt.arg, "echo", "here")
			s.Process.Env, s.Process.Cwd = tt.env, tt.cwd
			if !tt.ok {
				if _, err := shared.Create(contextT(t), Config{ID: "x", Spec: s, Rootfs: layers(t, image(t))}); !errors.Is(err, errs.NotFound) {
					t.Errorf("got %v", err)
				}
				return
			}
			if r := run(t, Config{Spec: s, Rootfs: layers(t, image(t))}); r.out != "here\n" {
				t.Errorf("got %q, %d", r.out, r.code)
			}
		})
	}
}

// TestCapabilityRules: what cannot be granted is left out, with a warning.
func TestCapabilityRules(t *testing.T) {
	s := spec("cat", "/proc/self/status")
	s.Process.User.UID = 5
	s.Process.Capabilities = &specs.LinuxCapabilities{
		Bounding: []string{"CAP_CHOWN", "CAP_KILL"}, Permitted: []string{"CAP_CHOWN"}, Effective: []string{"CAP_CHOWN", "CAP_KILL"},
		Inheritable: []string{"CAP_CHOWN", "CAP_FOWNER"}, Ambient: []string{"CAP_CHOWN", "CAP_KILL"},
	}
	r, w, _ := os.Pipe()
	defer r.Close()
	p, err := shared.Create(contextT(t), Config{ID: "x", Spec: s, Rootfs: layers(t, image(t)), Stdout: w})
	w.Close()
	if err == nil {
		err = p.Start(contextT(t))
	}
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 8192)
	n, _ := r.Read(buf)
	wait(t, p)
	f := fields(string(buf[:n]))
	for k, want := range map[string]string{"CapBnd": "21", "CapPrm": "1", "CapEff": "1", "CapInh": "1", "CapAmb": "1"} {
		if got := strings.TrimLeft(f[k], "0"); got != want {
			t.Errorf("%s is %s, want %s", k, got, want)
		}
	}
	warnings := strings.Join(p.Warnings(), "\n")
	for _, want := range []string{"effective", "inheritable capability has to be in the bounding set; left out: CAP_FOWNER", "ambient"} {
		if !strings.Contains(warnings, want) {
			t.Errorf("%q is not in %q", want, warnings)
		}
	}
}

// TestLabels: without the security module there is no start, and the error says what is
// missing. With AppArmor, the profile is the program's.
func TestLabels(t *testing.T) {
	create := func(change func(p *specs.Process)) error {
		s := spec("true")
		change(s.Process)
		p, err := shared.Create(contextT(t), Config{ID: "x", Spec: s, Rootfs: layers(t, image(t))})
		if err == nil {
			err = p.Start(contextT(t))
			wait(t, p)
		}
		return err
	}
	if err := create(func(p *specs.Process) { p.ApparmorProfile = "unconfined" }); err != nil {
		t.Error(err)
	}
	err := create(func(p *specs.Process) { p.ApparmorProfile = "orlop-no-such-profile" })
	if want := map[bool]*errs.Kind{true: errs.NotFound, false: errs.Unsupported}[apparmorEnabled()]; !errors.Is(err, want) || !strings.Contains(err.Error(), "process.apparmorProfile") {
		t.Errorf("got %v", err)
	}
	if !selinuxEnabled() {
		if err := create(func(p *specs.Process) { p.SelinuxLabel = "system_u:system_r:container_t:s0" }); !errors.Is(err, errs.Unsupported) || !strings.Contains(err.Error(), "process.selinuxLabel") {
			t.Errorf("got %v", err)
		}
	}
}

// TestChecks: what cannot be is refused before there is a process, by the field's path.
func TestChecks(t *testing.T) {
	for path, change := range map[string]func(s *specs.Spec){
		"process.args":                func(s *specs.Spec) { s.Process.Args = nil },
		"process.args: \"a\\x00\"":    func(s *specs.Spec) { s.Process.Args = []string{"a\x00"} },
		"process.env":                 func(s *specs.Spec) { s.Process.Env = []string{"a\x00"} },
		"process.cwd":                 func(s *specs.Spec) { s.Process.Cwd = "relative" },
		"process.oomScoreAdj":         func(s *specs.Spec) { s.Process.OOMScoreAdj = ptr(1001) },
		"process.user.umask":          func(s *specs.Spec) { s.Process.User.Umask = ptr(uint32(0o1000)) },
		"process.user.uid":            func(s *specs.Spec) { s.Process.User.UID = 1<<32 - 1 },
		"process.user.gid":            func(s *specs.Spec) { s.Process.User.GID = 1<<32 - 1 },
		"process.user.additionalGids": func(s *specs.Spec) { s.Process.User.AdditionalGids = []uint32{1, 1<<32 - 1} },
		"process.consoleSize":         func(s *specs.Spec) { s.Process.Terminal, s.Process.ConsoleSize = true, &specs.Box{Height: 1 << 16} },
		"process.rlimits[1].type": func(s *specs.Spec) {
			s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_CORE"}, {Type: "RLIMIT_NOPE"}}
		},
		"process.rlimits[1].type: RLIMIT": func(s *specs.Spec) {
			s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_CORE"}, {Type: "RLIMIT_CORE"}}
		},
		"process.rlimits[0]: RLIMIT_CORE": func(s *specs.Spec) { s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_CORE", Soft: 2, Hard: 1}} },
		"process.scheduler.policy":        func(s *specs.Spec) { s.Process.Scheduler = &specs.Scheduler{} },
		"process.scheduler.policy: no":    func(s *specs.Spec) { s.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedISO} },
		"process.scheduler.flags[0]": func(s *specs.Spec) {
			s.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedIdle, Flags: []specs.LinuxSchedulerFlag{"X"}}
		},
		"process.scheduler.nice":        func(s *specs.Spec) { s.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedOther, Nice: 20} },
		"process.scheduler.priority":    func(s *specs.Spec) { s.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedOther, Priority: 1} },
		"process.scheduler.priority: 0": func(s *specs.Spec) { s.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedFIFO} },
		"process.scheduler.runtime": func(s *specs.Spec) {
			s.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedFIFO, Priority: 1, Runtime: 1}
		},
		"process.scheduler.runtime 2000,": func(s *specs.Spec) {
			s.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedDeadline, Runtime: 2000, Deadline: 1000}
		},
		"process.ioPriority.class": func(s *specs.Spec) { s.Process.IOPriority = &specs.LinuxIOPriority{Class: "X"} },
		"process.ioPriority.priority": func(s *specs.Spec) {
			s.Process.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_BE, Priority: 8}
		},
		"process.execCPUAffinity.initial":  func(s *specs.Spec) { s.Process.ExecCPUAffinity = &specs.CPUAffinity{Initial: "1-0"} },
		"process.execCPUAffinity.final":    func(s *specs.Spec) { s.Process.ExecCPUAffinity = &specs.CPUAffinity{Final: "0,"} },
		"linux.memoryPolicy.mode":          func(s *specs.Spec) { s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{} },
		"linux.memoryPolicy.nodes":         func(s *specs.Spec) { s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolBind, Nodes: "x"} },
		"linux.memoryPolicy.nodes: MPOL_B": func(s *specs.Spec) { s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolBind} },
		"linux.memoryPolicy.nodes: MPOL_L": func(s *specs.Spec) {
			s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolLocal, Nodes: "0"}
		},
		"linux.memoryPolicy.flags[0]": func(s *specs.Spec) {
			s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolBind, Nodes: "0", Flags: []specs.MemoryPolicyFlagType{"X"}}
		},
		"linux.memoryPolicy.flags: nodes": func(s *specs.Spec) {
			s.Linux.MemoryPolicy = &specs.LinuxMemoryPolicy{Mode: specs.MpolBind, Nodes: "0", Flags: []specs.MemoryPolicyFlagType{specs.MpolFStaticNodes, specs.MpolFRelativeNodes}}
		},
		"linux.mountLabel":         func(s *specs.Spec) { s.Linux.MountLabel = "x" },
		"linux.personality.domain": func(s *specs.Spec) { s.Linux.Personality = &specs.LinuxPersonality{Domain: "BSD"} },
		"linux.personality.flags": func(s *specs.Spec) {
			s.Linux.Personality = &specs.LinuxPersonality{Domain: specs.PerLinux, Flags: []specs.LinuxPersonalityFlag{"X"}}
		},
		"hostname":               func(s *specs.Spec) { s.Hostname = strings.Repeat("x", 65) },
		"hooks.poststop[1].path": func(s *specs.Spec) { s.Hooks = &specs.Hooks{Poststop: []specs.Hook{{Path: "/x"}, {Path: "x"}}} },
	} {
		t.Run(path, func(t *testing.T) {
			before := leftovers()
			s := spec("true")
			change(s)
			_, err := shared.Create(contextT(t), Config{ID: "x", Spec: s, Rootfs: Rootfs{Dir: "/nowhere"}})
			if !errors.Is(err, errs.Invalid) && !errors.Is(err, errs.Unsupported) || !strings.HasPrefix(err.Error(), "create x: "+path) {
				t.Errorf("got %v (kind %v)", err, errs.KindOf(err))
			}
			if after := leftovers(); after != before {
				t.Errorf("left behind:\nbefore %s\nafter  %s", before, after)
			}
		})
	}
}

func TestNumbers(t *testing.T) {
	for list, want := range map[string]string{"": "[]", " ": "[]", "3": "[3]", "0-2,1,7": "[0 1 2 7]", "1-": "error", "-1": "error", "a": "error", "0,,1": "error", "9": "[9]", "10": "error", "0-99999999999": "error", "+1": "error"} {
		got, err := numbers(list, 10)
		if s := fmt.Sprint(got); err != nil && want != "error" || err == nil && s != want {
			t.Errorf("%q: got %v, %v; want %s", list, got, err, want)
		}
	}
}
