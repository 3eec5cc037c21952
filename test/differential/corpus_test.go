package differential

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// corpus are all cases that are made by hand: one or more for every field of the
// specification that has a meaning on Linux.
func corpus() []Case {
	all := slices.Concat(processCases(), rootCases(), mountCases(), namespaceCases(), resourceCases(), updateCases(), securityCases(), deviceCases(), hookCases(), flagCases(), invalidCases())
	seen := map[string]bool{}
	for _, c := range all {
		if seen[c.Name] {
			panic("two cases have the name " + c.Name)
		}
		seen[c.Name] = true
	}
	return all
}

// with is a case that changes the configuration only.
func with(name string, change func(s *specs.Spec)) Case {
	return Case{name, func(_ testing.TB, b *Bundle) { change(b.Spec) }}
}

// each makes a case of every value.
func each[T any](name string, values []T, change func(s *specs.Spec, v T)) (all []Case) {
	for i, v := range values {
		label := fmt.Sprint(v)
		if len(label) > 40 || strings.ContainsAny(label, "{}/ \x00") {
			label = fmt.Sprint(i)
		}
		all = append(all, with(name+"-"+label, func(s *specs.Spec) { change(s, v) }))
	}
	return all
}

// allCapabilities are those of Linux 5.9 and later, in their order.
var allCapabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP",
	"CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER",
	"CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE",
	"CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL", "CAP_SETFCAP",
	"CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF",
	"CAP_CHECKPOINT_RESTORE",
}

// everyCapability grants all that this machine has to give.
func everyCapability() *specs.LinuxCapabilities {
	var have []string
	for i, name := range allCapabilities {
		if set, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, uintptr(i), 0, 0, 0); err == nil && set == 1 {
			have = append(have, name)
		}
	}
	return &specs.LinuxCapabilities{Bounding: have, Effective: have, Permitted: have}
}

func processCases() []Case {
	cases := []Case{
		with("base", func(*specs.Spec) {}),
		with("args", func(s *specs.Spec) { s.Process.Args = []string{"/inside", "one two", "", "–"} }),
		with("args-by-path", func(s *specs.Spec) {
			s.Process.Args = []string{"inside"}
			s.Process.Env = append(s.Process.Env, "PATH=/nowhere:/")
		}),
		with("args-by-path-first", func(s *specs.Spec) {
			s.Process.Args = []string{"inside"}
			s.Process.Env = []string{"PATH=/tmp:/"}
		}),
		with("args-relative", func(s *specs.Spec) { s.Process.Args = []string{"./inside"} }),
		with("env-none", func(s *specs.Spec) { s.Process.Env = nil }),
		with("env-repeated", func(s *specs.Spec) { s.Process.Env = append(s.Process.Env, "A=1", "B=2", "A=3", "C=") }),
		with("env-home", func(s *specs.Spec) { s.Process.Env = append(s.Process.Env, "HOME=/elsewhere") }),
		with("env-home-empty", func(s *specs.Spec) { s.Process.Env = append(s.Process.Env, "HOME=") }),
		with("env-strange", func(s *specs.Spec) { s.Process.Env = append(s.Process.Env, "=x", "A B=ü\n", "lower=1=2") }),
		with("env-without-equals", func(s *specs.Spec) { s.Process.Env = append(s.Process.Env, "NOTHING") }),
		with("cwd", func(s *specs.Spec) { s.Process.Cwd = "/home" }),
		with("cwd-missing", func(s *specs.Spec) { s.Process.Cwd = "/new/deep/directory" }),
		with("cwd-missing-user", func(s *specs.Spec) { s.Process.Cwd = "/new/deep"; s.Process.User = specs.User{UID: 1000, GID: 1000} }),
		with("cwd-unclean", func(s *specs.Spec) { s.Process.Cwd = "/home/../tmp/" }),
		with("cwd-in-proc", func(s *specs.Spec) { s.Process.Cwd = "/proc/self" }),
		with("cwd-file", func(s *specs.Spec) { s.Process.Cwd = "/etc/passwd" }),
		with("user", func(s *specs.Spec) { s.Process.User = specs.User{UID: 1000, GID: 1000} }),
		with("user-unknown", func(s *specs.Spec) { s.Process.User = specs.User{UID: 4321, GID: 1234} }),
		with("user-groups", func(s *specs.Spec) {
			s.Process.User = specs.User{UID: 1000, GID: 1000, AdditionalGids: []uint32{5, 2000, 7, 5}}
		}),
		with("user-root-groups", func(s *specs.Spec) { s.Process.User.AdditionalGids = []uint32{10, 20} }),
		with("user-umask", func(s *specs.Spec) { s.Process.User.Umask = ptr(uint32(0o027)) }),
		with("user-umask-0", func(s *specs.Spec) { s.Process.User.Umask = ptr(uint32(0)) }),
		with("user-umask-777", func(s *specs.Spec) { s.Process.User.Umask = ptr(uint32(0o777)) }),
		with("user-keeps-capabilities", func(s *specs.Spec) {
			s.Process.User = specs.User{UID: 1000, GID: 1000}
			s.Process.Capabilities.Ambient = []string{"CAP_NET_RAW", "CAP_CHOWN"}
			s.Process.Capabilities.Inheritable = []string{"CAP_NET_RAW", "CAP_CHOWN"}
		}),
		with("user-other-gid-0", func(s *specs.Spec) { s.Process.User = specs.User{UID: 1000, GID: 0} }),
		with("user-largest", func(s *specs.Spec) { s.Process.User = specs.User{UID: 4294967294, GID: 4294967294} }),
		with("terminal", func(s *specs.Spec) { s.Process.Terminal = true }),
		with("terminal-size", func(s *specs.Spec) {
			s.Process.Terminal = true
			s.Process.ConsoleSize = &specs.Box{Height: 33, Width: 111}
		}),
		with("terminal-user", func(s *specs.Spec) {
			s.Process.Terminal = true
			s.Process.User = specs.User{UID: 1000, GID: 1000}
		}),
		with("terminal-readonly", func(s *specs.Spec) {
			s.Process.Terminal = true
			s.Root.Readonly = true
		}),
		with("size-without-terminal", func(s *specs.Spec) { s.Process.ConsoleSize = &specs.Box{Height: 33, Width: 111} }),
		with("new-privileges", func(s *specs.Spec) { s.Process.NoNewPrivileges = false }),
		with("capabilities-absent", func(s *specs.Spec) { s.Process.Capabilities = nil }),
		with("capabilities-empty", func(s *specs.Spec) { s.Process.Capabilities = &specs.LinuxCapabilities{} }),
		with("capabilities-all", func(s *specs.Spec) { s.Process.Capabilities = everyCapability() }),
		with("capabilities-all-privileges", func(s *specs.Spec) {
			s.Process.Capabilities = everyCapability()
			s.Process.NoNewPrivileges = false
		}),
		with("capabilities-beyond-the-machine", func(s *specs.Spec) {
			s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: allCapabilities, Effective: allCapabilities, Permitted: allCapabilities}
		}),
		with("capabilities-inheritable", func(s *specs.Spec) { s.Process.Capabilities.Inheritable = []string{"CAP_CHOWN"} }),
		with("capabilities-ambient", func(s *specs.Spec) {
			s.Process.Capabilities.Inheritable = []string{"CAP_CHOWN"}
			s.Process.Capabilities.Ambient = []string{"CAP_CHOWN"}
		}),
		with("capabilities-ambient-alone", func(s *specs.Spec) { s.Process.Capabilities.Ambient = []string{"CAP_CHOWN"} }),
		with("capabilities-bounding-only", func(s *specs.Spec) {
			s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: []string{"CAP_KILL", "CAP_CHOWN"}}
		}),
		with("capabilities-permitted-only", func(s *specs.Spec) {
			s.Process.Capabilities = &specs.LinuxCapabilities{Permitted: []string{"CAP_KILL", "CAP_CHOWN"}}
		}),
		with("capabilities-effective-over-permitted", func(s *specs.Spec) {
			s.Process.Capabilities.Permitted = []string{"CAP_KILL"}
			s.Process.Capabilities.Effective = []string{"CAP_KILL", "CAP_CHOWN"}
		}),
		with("capabilities-unknown", func(s *specs.Spec) {
			s.Process.Capabilities.Bounding = append(slices.Clone(s.Process.Capabilities.Bounding), "CAP_OF_A_LATER_KERNEL")
		}),
		with("capabilities-user-bounding", func(s *specs.Spec) {
			s.Process.User = specs.User{UID: 1000, GID: 1000}
			s.Process.NoNewPrivileges = false
		}),
		with("io-priority-idle", func(s *specs.Spec) {
			s.Process.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_IDLE}
		}),
		with("io-priority-best-effort", func(s *specs.Spec) {
			s.Process.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_BE, Priority: 6}
		}),
		with("io-priority-realtime", func(s *specs.Spec) {
			s.Process.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_RT, Priority: 3}
		}),
		with("io-priority-class", func(s *specs.Spec) { s.Process.IOPriority = &specs.LinuxIOPriority{Class: "IOPRIO_CLASS_NONE"} }),
		with("io-priority-range", func(s *specs.Spec) {
			s.Process.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_BE, Priority: 9}
		}),
		with("apparmor", func(s *specs.Spec) { s.Process.ApparmorProfile = "no-such-profile" }),
		with("selinux", func(s *specs.Spec) { s.Process.SelinuxLabel = "system_u:system_r:container_t:s0" }),
		with("exec-cpu-affinity", func(s *specs.Spec) { s.Process.ExecCPUAffinity = &specs.CPUAffinity{Initial: "0", Final: "0-1"} }),
		with("exec-cpu-affinity-bad", func(s *specs.Spec) { s.Process.ExecCPUAffinity = &specs.CPUAffinity{Initial: "x"} }),
		with("personality-linux32", func(s *specs.Spec) { s.Linux.Personality = &specs.LinuxPersonality{Domain: specs.PerLinux32} }),
		with("personality-linux", func(s *specs.Spec) { s.Linux.Personality = &specs.LinuxPersonality{Domain: specs.PerLinux} }),
		with("personality-flags", func(s *specs.Spec) {
			s.Linux.Personality = &specs.LinuxPersonality{Domain: specs.PerLinux, Flags: []specs.LinuxPersonalityFlag{"ADDR_NO_RANDOMIZE"}}
		}),
		with("personality-unknown", func(s *specs.Spec) { s.Linux.Personality = &specs.LinuxPersonality{Domain: "SOLARIS"} }),
		with("hostname", func(s *specs.Spec) { s.Hostname = "another.example" }),
		with("hostname-none", func(s *specs.Spec) { s.Hostname = "" }),
		with("hostname-long", func(s *specs.Spec) { s.Hostname = strings.Repeat("x", 65) }),
		with("domainname", func(s *specs.Spec) { s.Domainname = "domain.example" }),
		with("domainname-long", func(s *specs.Spec) { s.Domainname = strings.Repeat("x", 65) }),
		with("annotations", func(s *specs.Spec) { s.Annotations = map[string]string{"org.example": "x", "run.oci.handler": "y"} }),
		with("exit-code", func(s *specs.Spec) { s.Process.Env = append(s.Process.Env, "INSIDE_CODE=42") }),
		with("exit-code-255", func(s *specs.Spec) { s.Process.Env = append(s.Process.Env, "INSIDE_CODE=255") }),
		with("exit-stderr", func(s *specs.Spec) { s.Process.Env = append(s.Process.Env, "INSIDE_STDERR=it said", "INSIDE_CODE=3") }),
		{"stdin-null", func(_ testing.TB, b *Bundle) { b.NoStdin = true }},
		with("version-1.0.0", func(s *specs.Spec) { s.Version = "1.0.0" }),
		with("version-1.3.0", func(s *specs.Spec) { s.Version = "1.3.0" }),
		with("version-1.0.2-dev", func(s *specs.Spec) { s.Version = "1.0.2-dev" }),
	}
	cases = append(cases, each("oom-score", []int{0, 1, 500, 1000}, func(s *specs.Spec, v int) { s.Process.OOMScoreAdj = &v })...)
	limits := []string{"CPU", "FSIZE", "DATA", "STACK", "CORE", "RSS", "NPROC", "NOFILE", "MEMLOCK", "AS", "LOCKS", "SIGPENDING", "MSGQUEUE", "NICE", "RTPRIO", "RTTIME"}
	for _, l := range limits {
		soft, hard := uint64(1000), uint64(2000)
		switch l {
		case "AS", "DATA", "STACK", "FSIZE":
			soft, hard = 1<<32, 1<<33
		case "NICE", "RTPRIO":
			soft, hard = 0, 0
		}
		cases = append(cases, with("rlimit-"+l, func(s *specs.Spec) {
			s.Process.Rlimits = append(s.Process.Rlimits, specs.POSIXRlimit{Type: "RLIMIT_" + l, Soft: soft, Hard: hard})
			if l == "NOFILE" {
				s.Process.Rlimits = s.Process.Rlimits[1:]
			}
		}))
	}
	cases = append(cases,
		with("rlimit-none", func(s *specs.Spec) { s.Process.Rlimits = nil }),
		with("rlimit-user", func(s *specs.Spec) {
			s.Process.User = specs.User{UID: 1000, GID: 1000}
			s.Process.Rlimits = append(s.Process.Rlimits, specs.POSIXRlimit{Type: "RLIMIT_CORE"})
		}),
	)
	for _, p := range []specs.Scheduler{
		{Policy: specs.SchedOther, Nice: 5}, {Policy: specs.SchedOther}, {Policy: specs.SchedBatch, Nice: 3}, {Policy: specs.SchedIdle},
		{Policy: specs.SchedFIFO, Priority: 10}, {Policy: specs.SchedRR, Priority: 20},
		{Policy: specs.SchedDeadline, Runtime: 10000000, Deadline: 30000000, Period: 30000000},
		{Policy: specs.SchedOther, Flags: []specs.LinuxSchedulerFlag{specs.SchedFlagResetOnFork}},
		{Policy: specs.SchedOther, Nice: -5}, {Policy: "SCHED_BOGUS"}, {Policy: specs.SchedOther, Nice: 30}, {Policy: specs.SchedOther, Priority: 3},
		{Policy: specs.SchedFIFO, Priority: 10, Runtime: 5}, {Policy: specs.SchedOther, Flags: []specs.LinuxSchedulerFlag{"SCHED_FLAG_BOGUS"}},
		{Policy: specs.SchedISO},
	} {
		name := fmt.Sprintf("scheduler-%s-%d-%d-%d-%d", p.Policy, p.Nice, p.Priority, p.Runtime, len(p.Flags))
		if len(p.Flags) > 0 {
			name += string(p.Flags[0])
		}
		cases = append(cases, with(name, func(s *specs.Spec) { s.Process.Scheduler = &p }))
	}
	return cases
}

func rootCases() []Case {
	return []Case{
		with("root-readonly", func(s *specs.Spec) { s.Root.Readonly = true }),
		with("root-readonly-user", func(s *specs.Spec) {
			s.Root.Readonly = true
			s.Process.User = specs.User{UID: 1000, GID: 1000}
		}),
		with("root-readonly-cwd-missing", func(s *specs.Spec) { s.Root.Readonly = true; s.Process.Cwd = "/not/there" }),
		{"root-absolute", func(_ testing.TB, b *Bundle) { b.Spec.Root.Path = b.Path("rootfs") }},
		{"root-link", func(t testing.TB, b *Bundle) {
			link(t, "rootfs", b.Path("link"))
			b.Spec.Root.Path = "link"
		}},
		{"root-mount-point", func(t testing.TB, b *Bundle) { b.Spec.Root.Path = "./rootfs/" }},
		with("propagation-private", func(s *specs.Spec) { s.Linux.RootfsPropagation = "private" }),
		with("propagation-rprivate", func(s *specs.Spec) { s.Linux.RootfsPropagation = "rprivate" }),
		with("propagation-slave", func(s *specs.Spec) { s.Linux.RootfsPropagation = "slave" }),
		with("propagation-rslave", func(s *specs.Spec) { s.Linux.RootfsPropagation = "rslave" }),
		with("propagation-shared", func(s *specs.Spec) { s.Linux.RootfsPropagation = "shared" }),
		with("propagation-rshared", func(s *specs.Spec) { s.Linux.RootfsPropagation = "rshared" }),
		with("propagation-unbindable", func(s *specs.Spec) { s.Linux.RootfsPropagation = "unbindable" }),
		with("propagation-runbindable", func(s *specs.Spec) { s.Linux.RootfsPropagation = "runbindable" }),
		with("propagation-unknown", func(s *specs.Spec) { s.Linux.RootfsPropagation = "sideways" }),
	}
}

func hookCases() []Case {
	set := func(h *specs.Hooks, when string, hook ...specs.Hook) {
		switch when {
		case "prestart":
			//lint:ignore SA1019 engines use it, so it has to work
			h.Prestart = append(h.Prestart, hook...)
		case "createRuntime":
			h.CreateRuntime = append(h.CreateRuntime, hook...)
		case "createContainer":
			h.CreateContainer = append(h.CreateContainer, hook...)
		case "startContainer":
			h.StartContainer = append(h.StartContainer, hook...)
		case "poststart":
			h.Poststart = append(h.Poststart, hook...)
		case "poststop":
			h.Poststop = append(h.Poststop, hook...)
		}
	}
	var cases []Case
	for _, when := range []string{"prestart", "createRuntime", "createContainer", "poststart", "poststop"} {
		cases = append(cases,
			Case{"hook-" + when, func(t testing.TB, b *Bundle) {
				b.Spec.Hooks = &specs.Hooks{}
				b.Spec.Annotations = map[string]string{"who": "asks"}
				h := b.Hook(t, when, "echo no more")
				h.Env = []string{"PATH=/usr/bin:/bin", "ONE=1"}
				set(b.Spec.Hooks, when, h, b.Hook(t, when+"-second", "ls -d /"))
			}},
			Case{"hook-fails-" + when, func(t testing.TB, b *Bundle) {
				b.Spec.Hooks = &specs.Hooks{}
				set(b.Spec.Hooks, when, b.Hook(t, when, "echo first"), specs.Hook{Path: "/bin/false", Args: []string{"false"}}, b.Hook(t, when+"-third", "echo third"))
			}},
			Case{"hook-missing-" + when, func(t testing.TB, b *Bundle) {
				b.Spec.Hooks = &specs.Hooks{}
				set(b.Spec.Hooks, when, specs.Hook{Path: "/no/such/hook"})
			}},
			Case{"hook-timeout-" + when, func(t testing.TB, b *Bundle) {
				b.Spec.Hooks = &specs.Hooks{}
				set(b.Spec.Hooks, when, specs.Hook{Path: "/bin/sleep", Args: []string{"sleep", "60"}, Timeout: ptr(1)})
			}},
		)
	}
	cases = append(cases,
		Case{"hook-startContainer", func(t testing.TB, b *Bundle) {
			b.Spec.Hooks = &specs.Hooks{StartContainer: []specs.Hook{{Path: "/inside", Args: []string{"inside", "as a hook"}, Env: []string{"INSIDE_CODE=0"}}}}
		}},
		Case{"hook-fails-startContainer", func(t testing.TB, b *Bundle) {
			b.Spec.Hooks = &specs.Hooks{StartContainer: []specs.Hook{{Path: "/inside", Args: []string{"inside"}, Env: []string{"INSIDE_CODE=1"}}}}
		}},
		Case{"hook-missing-startContainer", func(t testing.TB, b *Bundle) {
			b.Spec.Hooks = &specs.Hooks{StartContainer: []specs.Hook{{Path: "/no/such/hook"}}}
		}},
		Case{"hook-relative", func(t testing.TB, b *Bundle) {
			b.Spec.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "bin/true"}}}
		}},
		Case{"hook-sees-mounts", func(t testing.TB, b *Bundle) {
			h := b.Hook(t, "mounts", "ls "+b.Path("rootfs/dev")+" "+b.Path("rootfs/proc/1")+" | head -5")
			b.Spec.Hooks = &specs.Hooks{CreateContainer: []specs.Hook{h}}
		}},
		Case{"hooks-all", func(t testing.TB, b *Bundle) {
			b.Spec.Hooks = &specs.Hooks{}
			for _, when := range []string{"prestart", "createRuntime", "createContainer", "poststart", "poststop"} {
				set(b.Spec.Hooks, when, specs.Hook{Path: "/bin/sh", Args: []string{"sh", "-c", "cat >/dev/null; echo " + when + " >>" + b.Path("hooks.order")}})
			}
		}},
		Case{"hook-no-args", func(t testing.TB, b *Bundle) {
			b.Spec.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/bin/true"}}}
		}},
		Case{"hook-timeout-0", func(t testing.TB, b *Bundle) {
			b.Spec.Hooks = &specs.Hooks{CreateRuntime: []specs.Hook{{Path: "/bin/true", Timeout: ptr(0)}}}
		}},
	)
	return cases
}
