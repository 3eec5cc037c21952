package differential

import (
	"fmt"
	"os"
	"testing"

	moby "github.com/moby/profiles/seccomp"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func profile(name string, p specs.LinuxSeccomp) Case {
	return with("seccomp-"+name, func(s *specs.Spec) {
		s.Linux.Seccomp = &p
		s.Process.Capabilities = everyCapability()
	})
}

func deny(action specs.LinuxSeccompAction, errno *uint, names ...string) specs.LinuxSeccomp {
	return specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: names, Action: action, ErrnoRet: errno}}}
}

func securityCases() []Case {
	standard := func(s *specs.Spec) {
		p, err := moby.GetDefaultProfile(s)
		if err != nil {
			panic(err)
		}
		s.Linux.Seccomp = p
	}
	compare := func(name string, op specs.LinuxSeccompOperator, value, two uint64) Case {
		return profile("argument-"+name, specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{
			{Names: []string{"socket"}, Action: specs.ActErrno, ErrnoRet: ptr(uint(77)), Args: []specs.LinuxSeccompArg{{Index: 0, Value: value, ValueTwo: two, Op: op}}},
		}})
	}
	flags := func(name string, flags ...specs.LinuxSeccompFlag) Case {
		p := deny(specs.ActErrno, nil, "mkdirat")
		p.Flags = flags
		return profile("flags-"+name, p)
	}
	cases := []Case{
		with("seccomp-default", standard),
		with("seccomp-default-privileges", func(s *specs.Spec) { s.Process.NoNewPrivileges = false; standard(s) }),
		with("seccomp-default-all-capabilities", func(s *specs.Spec) { s.Process.Capabilities = everyCapability(); standard(s) }),
		with("seccomp-default-user", func(s *specs.Spec) { s.Process.User = specs.User{UID: 1000, GID: 1000}; standard(s) }),
		with("seccomp-default-user-privileges", func(s *specs.Spec) {
			s.Process.User = specs.User{UID: 1000, GID: 1000}
			s.Process.NoNewPrivileges = false
			standard(s)
		}),
		with("seccomp-default-no-capabilities", func(s *specs.Spec) {
			s.Process.Capabilities = &specs.LinuxCapabilities{}
			s.Process.NoNewPrivileges = false
			standard(s)
		}),
		{"seccomp-default-user-namespace", func(t testing.TB, b *Bundle) { b.UserNamespace(t, 100000, 65536); standard(b.Spec) }},
		{"seccomp-default-terminal", func(t testing.TB, b *Bundle) { b.Spec.Process.Terminal = true; standard(b.Spec) }},
		profile("allow", specs.LinuxSeccomp{DefaultAction: specs.ActAllow}),
		profile("log", specs.LinuxSeccomp{DefaultAction: specs.ActLog}),
		profile("errno", deny(specs.ActErrno, nil, "mkdirat", "mount")),
		profile("errno-value", deny(specs.ActErrno, ptr(uint(99)), "mkdirat", "mount")),
		profile("errno-0", deny(specs.ActErrno, ptr(uint(0)), "mkdirat")),
		profile("errno-large", deny(specs.ActErrno, ptr(uint(70000)), "mkdirat")),
		profile("trace", deny(specs.ActTrace, nil, "mkdirat")),
		profile("trap", deny(specs.ActTrap, nil, "mkdirat")),
		profile("kill-process", deny(specs.ActKillProcess, nil, "mkdirat")),
		profile("kill-execve", deny(specs.ActKillProcess, nil, "execve")),
		profile("errno-execve", deny(specs.ActErrno, nil, "execve", "execveat")),
		profile("rule-logs", deny(specs.ActLog, nil, "mkdirat")),
		profile("unknown-call", deny(specs.ActErrno, nil, "no_such_call", "mkdirat")),
		profile("unknown-action", deny("SCMP_ACT_WONDER", nil, "mkdirat")),
		profile("unknown-default", specs.LinuxSeccomp{DefaultAction: "SCMP_ACT_WONDER"}),
		profile("unknown-operator", specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"socket"}, Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{{Op: "=="}}}}}),
		profile("argument-7", specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"socket"}, Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{{Index: 7, Op: specs.OpEqualTo}}}}}),
		profile("no-names", specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Action: specs.ActErrno}}}),
		profile("architectures", specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Architectures: []specs.Arch{specs.ArchX86, specs.ArchX32, specs.ArchAARCH64, specs.ArchARM}, Syscalls: deny(specs.ActErrno, nil, "mkdirat").Syscalls}),
		profile("architecture-unknown", specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Architectures: []specs.Arch{"SCMP_ARCH_Z80"}}),
		profile("notify-default", specs.LinuxSeccomp{DefaultAction: specs.ActNotify, ListenerPath: "/no/such/socket"}),
		profile("notify-write", specs.LinuxSeccomp{DefaultAction: specs.ActAllow, ListenerPath: "/no/such/socket", Syscalls: deny(specs.ActNotify, nil, "write").Syscalls}),
		profile("notify-no-listener", specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: deny(specs.ActNotify, nil, "mkdirat").Syscalls}),
		profile("notify-listener-missing", specs.LinuxSeccomp{DefaultAction: specs.ActAllow, ListenerPath: "/no/such/socket", Syscalls: deny(specs.ActNotify, nil, "mkdirat").Syscalls}),
		profile("listener-without-notify", specs.LinuxSeccomp{DefaultAction: specs.ActAllow, ListenerPath: "/no/such/socket", Syscalls: deny(specs.ActErrno, nil, "mkdirat").Syscalls}),
		profile("first-rule-wins", specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{
			{Names: []string{"mkdirat"}, Action: specs.ActErrno, ErrnoRet: ptr(uint(71))}, {Names: []string{"mkdirat"}, Action: specs.ActErrno, ErrnoRet: ptr(uint(72))},
		}}),
		profile("two-on-one-argument", specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{
			{Names: []string{"socket"}, Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{{Value: 40, Op: specs.OpEqualTo}, {Value: 38, Op: specs.OpEqualTo}}},
		}}),
		profile("two-arguments", specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{
			{Names: []string{"socket"}, Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{{Value: 40, Op: specs.OpEqualTo}, {Index: 1, Value: 1, Op: specs.OpEqualTo}}},
		}}),
		profile("enosys-above", specs.LinuxSeccomp{DefaultAction: specs.ActErrno, DefaultErrnoRet: ptr(uint(38)), Syscalls: allowed()}),
		profile("default-errno", specs.LinuxSeccomp{DefaultAction: specs.ActErrno, DefaultErrnoRet: ptr(uint(61)), Syscalls: allowed()}),
		profile("default-errno-none", specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: allowed()}),
		profile("default-trace", specs.LinuxSeccomp{DefaultAction: specs.ActTrace, Syscalls: allowed()}),
		flags("log", specs.LinuxSeccompFlagLog), flags("spec-allow", specs.LinuxSeccompFlagSpecAllow), flags("tsync", "SECCOMP_FILTER_FLAG_TSYNC"),
		flags("several", specs.LinuxSeccompFlagLog, specs.LinuxSeccompFlagSpecAllow), flags("wait-killable", specs.LinuxSeccompFlagWaitKillableRecv),
		flags("unknown", "SECCOMP_FILTER_FLAG_BOGUS"), flags("empty"),
		compare("eq", specs.OpEqualTo, 40, 0), compare("ne", specs.OpNotEqual, 40, 0), compare("lt", specs.OpLessThan, 17, 0), compare("le", specs.OpLessEqual, 16, 0),
		compare("ge", specs.OpGreaterEqual, 38, 0), compare("gt", specs.OpGreaterThan, 38, 0), compare("masked", specs.OpMaskedEqual, 0x20, 0x20), compare("masked-0", specs.OpMaskedEqual, 0, 0),
		compare("wide", specs.OpEqualTo, 1<<32+40, 0),
	}
	return cases
}

// allowed is what the program inside cannot do without, and what reports say something of.
func allowed() []specs.LinuxSyscall {
	return []specs.LinuxSyscall{{Action: specs.ActAllow, Names: []string{
		"execve", "brk", "arch_prctl", "mmap", "munmap", "mprotect", "madvise", "read", "write", "open", "openat", "close", "fstat", "newfstatat", "lstat", "stat",
		"futex", "sched_yield", "sched_getaffinity", "sched_getattr", "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "gettid", "getpid", "getppid",
		"getsid", "getpgid", "getcwd", "umask", "keyctl", "fcntl", "ioctl", "uname", "prlimit64", "getrlimit", "getresuid", "getresgid", "getgroups", "capget", "prctl", "ioprio_get",
		"personality", "get_mempolicy", "socket", "statfs", "fstatfs", "close_range", "openat2", "dup3", "fsopen", "fsmount", "fsconfig", "move_mount", "epoll_wait", "poll", "capset", "getdents64", "readlink", "readlinkat", "mknodat", "mknod", "unlink", "unlinkat", "exit", "exit_group", "clone", "clone3",
		"nanosleep", "clock_gettime", "tgkill", "getrandom", "set_robust_list", "rseq", "pread64", "epoll_create1", "epoll_ctl", "epoll_pwait", "pipe2", "eventfd2",
		"set_tid_address", "access", "restart_syscall", "mincore", "timer_create", "timer_settime", "timer_delete", "setitimer",
	}}}
}

func flagCases() []Case {
	flag := func(name string, flags ...string) Case {
		return Case{"flag-" + name, func(_ testing.TB, b *Bundle) { b.Flags = flags }}
	}
	return []Case{
		flag("no-pivot", "--no-pivot"), flag("no-new-keyring", "--no-new-keyring"), flag("no-subreaper", "--no-subreaper"), flag("keep", "--keep"),
		flag("unknown", "--frobnicate"), flag("console-socket", "--console-socket", "/no/such/socket"), flag("preserve-missing", "--preserve-fds", "7"),
		{"flag-no-pivot-readonly", func(_ testing.TB, b *Bundle) {
			b.Flags = []string{"--no-pivot"}
			b.Spec.Root.Readonly = true
		}},
		{"flag-no-pivot-terminal", func(_ testing.TB, b *Bundle) {
			b.Flags = []string{"--no-pivot"}
			b.Spec.Process.Terminal = true
		}},
		{"flag-preserve", func(t testing.TB, b *Bundle) {
			for i := range 3 {
				f, err := os.OpenFile(b.File(t, fmt.Sprintf("extra%d", i), "x"), os.O_RDWR, 0)
				b.check(t, err)
				b.Extra = append(b.Extra, f)
				b.closers = append(b.closers, func() { f.Close() })
			}
			b.Flags = []string{"--preserve-fds", "2"}
		}},
		{"flag-descriptors-not-preserved", func(t testing.TB, b *Bundle) {
			f, err := os.OpenFile("/", os.O_RDONLY|unix.O_DIRECTORY, 0)
			b.check(t, err)
			b.Extra = append(b.Extra, f)
			b.closers = append(b.closers, func() { f.Close() })
		}},
		{"flag-preserve-user-namespace", func(t testing.TB, b *Bundle) {
			b.UserNamespace(t, 100000, 65536)
			f, err := os.Open("/dev/null")
			b.check(t, err)
			b.Extra = append(b.Extra, f)
			b.closers = append(b.closers, func() { f.Close() })
			b.Flags = []string{"--preserve-fds", "1"}
		}},
	}
}

// invalidCases are configurations that have to be refused, or make no container.
func invalidCases() []Case {
	config := func(name, content string) Case {
		return Case{"invalid-" + name, func(_ testing.TB, b *Bundle) { b.Config = []byte(content) }}
	}
	bad := func(name string, change func(s *specs.Spec)) Case { return with("invalid-"+name, change) }
	return []Case{
		config("json", "{"), config("json-empty", ""), config("json-array", "[]"), config("json-null", "null"), config("json-object", "{}"), config("json-trailing", "{} {}"),
		config("absent", "absent"), config("field-type", `{"ociVersion":"1.0.2","process":{"args":"sh"}}`), config("binary", "\x00\x01"),
		bad("no-process", func(s *specs.Spec) { s.Process = nil }),
		bad("no-root", func(s *specs.Spec) { s.Root = nil }),
		bad("no-linux", func(s *specs.Spec) { s.Linux = nil }),
		bad("no-version", func(s *specs.Spec) { s.Version = "" }),
		bad("version", func(s *specs.Spec) { s.Version = "one" }),
		bad("version-2", func(s *specs.Spec) { s.Version = "2.0.0" }),
		bad("no-args", func(s *specs.Spec) { s.Process.Args = nil }),
		bad("empty-arg", func(s *specs.Spec) { s.Process.Args = []string{""} }),
		bad("no-cwd", func(s *specs.Spec) { s.Process.Cwd = "" }),
		bad("relative-cwd", func(s *specs.Spec) { s.Process.Cwd = "home" }),
		bad("program-missing", func(s *specs.Spec) { s.Process.Args = []string{"/no/such/program"} }),
		bad("program-missing-by-path", func(s *specs.Spec) { s.Process.Args = []string{"no-such-program"} }),
		bad("program-not-executable", func(s *specs.Spec) { s.Process.Args = []string{"/etc/passwd"} }),
		bad("program-is-directory", func(s *specs.Spec) { s.Process.Args = []string{"/etc"} }),
		{"invalid-program-format", func(t testing.TB, b *Bundle) {
			b.check(t, os.Chmod(b.File(t, "rootfs/bin/text", "no program"), 0o755))
			b.Spec.Process.Args = []string{"/bin/text"}
		}},
		{"invalid-program-interpreter", func(t testing.TB, b *Bundle) {
			b.check(t, os.Chmod(b.File(t, "rootfs/bin/script", "#!/no/interpreter\n"), 0o755))
			b.Spec.Process.Args = []string{"/bin/script"}
		}},
		{"invalid-program-not-for-user", func(t testing.TB, b *Bundle) {
			b.check(t, os.Chmod(b.File(t, "rootfs/bin/private", "#!/inside\n"), 0o700))
			b.Spec.Process.Args = []string{"/bin/private"}
			b.Spec.Process.User = specs.User{UID: 1000, GID: 1000}
		}},
		bad("root-missing", func(s *specs.Spec) { s.Root.Path = "nothing" }),
		bad("root-file", func(s *specs.Spec) { s.Root.Path = "config.json" }),
		bad("root-empty", func(s *specs.Spec) { s.Root.Path = ""; s.Process.Args = []string{"/bin/sh"} }),
		bad("rlimit-type", func(s *specs.Spec) { s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_BOGUS", Soft: 1, Hard: 1}} }),
		bad("rlimit-soft-over-hard", func(s *specs.Spec) {
			s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 10, Hard: 5}}
		}),
		bad("rlimit-twice", func(s *specs.Spec) {
			s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 10, Hard: 50}, {Type: "RLIMIT_NOFILE", Soft: 20, Hard: 60}}
		}),
		bad("oom-score", func(s *specs.Spec) { s.Process.OOMScoreAdj = ptr(5000) }),
		bad("root-propagation", func(s *specs.Spec) { s.Linux.RootfsPropagation = "none" }),
		bad("no-namespaces", func(s *specs.Spec) { s.Linux.Namespaces = nil }),
		bad("wrong-id-type", func(s *specs.Spec) { s.Process.Env = append(s.Process.Env, "A\x00B=1") }),
	}
}
