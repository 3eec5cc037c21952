package executor

import (
	"slices"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/executor/guards"
	"github.com/orlop-io/orlop/internal/platform/executor/plan"
	"github.com/orlop-io/orlop/internal/platform/seccomp"
)

// defaultPath is where programs are looked for if the environment has no PATH.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

var rlimits = map[string]uint64{
	"RLIMIT_CPU": unix.RLIMIT_CPU, "RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_DATA": unix.RLIMIT_DATA, "RLIMIT_STACK": unix.RLIMIT_STACK,
	"RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_RSS": unix.RLIMIT_RSS, "RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_NOFILE": unix.RLIMIT_NOFILE,
	"RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK, "RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_LOCKS": unix.RLIMIT_LOCKS, "RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING,
	"RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE, "RLIMIT_NICE": unix.RLIMIT_NICE, "RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO, "RLIMIT_RTTIME": unix.RLIMIT_RTTIME,
}

// streams puts the session and the terminal into the plan, once the mounts are there.
func (b *builder) streams(p *specs.Process, exec bool) {
	b.plan.Add(plan.Session, nil)
	if !p.Terminal {
		if b.nullStreams != 0 {
			b.plan.Add(plan.NullStreams, plan.N(b.nullStreams))
		}
		if p.User.UID != 0 {
			b.plan.Add(plan.OwnStreams, plan.N(uint64(p.User.UID)))
		}
		return
	}
	var rows, cols uint64
	if p.ConsoleSize != nil {
		rows, cols = uint64(p.ConsoleSize.Height), uint64(p.ConsoleSize.Width)
	}
	b.plan.Add(plan.Console, plan.N(rows, cols, uint64(p.User.UID), flag(!exec)))
}

// process puts everything about the process itself into the plan, the gate, and what
// comes after it.
//
// The order matters. The bounding set goes while CAP_SETPCAP is there; the working
// directory is entered as root, then again as the user where root may not; the user
// changes with capabilities kept, and they are set afterwards. A seccomp filter is
// installed last, after the gate: nothing but execve has to be allowed by it. Without
// no_new_privs installing one needs CAP_SYS_ADMIN, so that is kept until then, and the
// filter has to allow capset.
// ready is the profile compiled, where somebody has done that already.
func (b *builder) process(p *specs.Process, sc *specs.LinuxSeccomp, ready *seccomp.Program, hooks plan.Plan, exec bool) error {
	if err := checkProcess(p); err != nil {
		return err
	}
	filter := ready
	if filter == nil {
		var err error
		if filter, err = seccomp.Compile(sc); err != nil {
			return err
		}
	}
	if !guards.Seccomp.On() {
		filter = nil
	}
	caps, warnings := capMasks(p.Capabilities, b.caps())
	b.warnings = append(b.warnings, warnings...)

	if !b.noKeyring {
		b.keyring(p.SelinuxLabel)
	}
	if err := b.labels(p); err != nil {
		return err
	}
	if p.OOMScoreAdj != nil {
		b.plan.Add(plan.OOMScore, plan.N(uint64(int64(*p.OOMScoreAdj))))
	}
	if len(hooks.Ops) > 0 && p.Scheduler != nil && p.Scheduler.Policy == specs.SchedDeadline && !slices.Contains(p.Scheduler.Flags, specs.SchedFlagResetOnFork) {
		return errs.New(errs.Invalid, "process.scheduler.policy: a process with SCHED_DEADLINE cannot start hooks.startContainer without SCHED_FLAG_RESET_ON_FORK")
	}
	b.scheduling(p, exec)
	b.plan.Add(plan.Chdir, plan.N(1, 0), p.Cwd)
	if p.User.Umask != nil {
		b.plan.Add(plan.Umask, plan.N(uint64(*p.User.Umask)))
	} else {
		b.plan.Add(plan.Umask, plan.N(0o022))
	}
	b.plan.Add(plan.Bounding, plan.N(caps.bounding))
	for _, l := range p.Rlimits {
		b.plan.Add(plan.Rlimit, plan.N(rlimits[l.Type], l.Soft, l.Hard), l.Type)
	}
	ids := plan.N(uint64(p.User.UID), uint64(p.User.GID))
	for _, g := range p.User.AdditionalGids {
		ids = append(ids, uint64(g))
	}
	b.plan.Add(plan.User, ids)
	b.plan.Add(plan.Chdir, plan.N(0, 1), p.Cwd)
	late := filter != nil && !p.NoNewPrivileges
	if late {
		if b.caps()&capSysAdmin == 0 {
			return errs.New(errs.PermissionDenied, "process.noNewPrivileges: a seccomp filter without noNewPrivileges needs CAP_SYS_ADMIN")
		}
		b.plan.Add(plan.Caps, plan.N(caps.effective|capSysAdmin, caps.permitted|capSysAdmin, caps.inheritable, 0))
	} else {
		b.plan.Add(plan.Caps, plan.N(caps.effective, caps.permitted, caps.inheritable, caps.ambient))
	}
	if p.NoNewPrivileges {
		b.plan.Add(plan.NoNewPrivs, nil)
	}
	if err := b.extraFiles(); err != nil {
		return err
	}
	env := environment(p.Env)
	if !slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, "HOME=") }) {
		b.plan.Add(plan.Home, plan.N(uint64(p.User.UID)))
	}
	b.plan.Add(plan.Lookup, nil, p.Args[0], searchPath(env))
	b.waitAtGate()
	if err := b.listen(sc, filter, exec); err != nil {
		return err
	}
	b.plan.Ops = append(b.plan.Ops, hooks.Ops...)
	if filter != nil {
		if filter.Notify {
			filter = &seccomp.Program{Filter: filter.Filter, Flags: filter.Flags | unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, Kills: filter.Kills}
		}
		b.plan.Add(plan.Seccomp, plan.N(uint64(filter.Flags), flag(filter.Kills)), string(filter.Instructions()))
	}
	if late {
		b.plan.Add(plan.Caps, plan.N(caps.effective, caps.permitted, caps.inheritable, caps.ambient))
	}
	b.plan.Add(plan.Exec, plan.N(uint64(len(p.Args))), append(append([]string{}, p.Args...), env...)...)
	return nil
}

func searchPath(env []string) string {
	for i := len(env) - 1; i >= 0; i-- {
		if v, ok := strings.CutPrefix(env[i], "PATH="); ok {
			return v
		}
	}
	return defaultPath
}

// environment leaves out variables that are set again later: getenv(3) finds the first of
// several, and who appends to a list means the last. An empty HOME is none.
func environment(list []string) []string {
	seen := make(map[string]bool, len(list))
	env := make([]string, 0, len(list))
	for _, e := range slices.Backward(list) {
		name, value, _ := strings.Cut(e, "=")
		if !seen[name] && (name != "HOME" || value != "") {
			env = append(env, e)
		}
		seen[name] = true
	}
	slices.Reverse(env)
	return env
}
