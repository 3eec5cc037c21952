package executor

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/guard"
	"github.com/orlop-io/orlop/internal/platform/executor/guards"
	"github.com/orlop-io/orlop/internal/platform/executor/plan"
	"github.com/orlop-io/orlop/internal/platform/executor/tiny"
)

// A start whose process is in another user or time namespace has three parts, because the
// kernel lets only processes with one thread join those, and before Linux 6.3 only children
// enter a new time namespace:
//
//  1. orlop-init, as whom the caller is, joins namespaces, opens what is mounted, and sets
//     what needs privileges on the host (builder.host).
//  2. It executes a program without a runtime (package tiny), which joins the user
//     namespace, becomes root in it, and clones: so the new namespaces belong to it. The
//     clone is a child of the caller's, as in any start.
//  3. The clone executes orlop-init again, for the rest of the plan. What was opened in
//     the first part it has as descriptors.
//
// The binary may be executed but not read, so no process of the user namespace may trace
// part 3, and part 2 makes itself undumpable first.

// entered is a namespace that is joined in part 2.
type entered struct {
	file *os.File
	kind uint64
}

// crosses tells whether the start has these parts.
func (b *builder) crosses() bool { return b.user != nil || len(b.entered) > 0 || b.clock }

// privileged tells whether this process may enter namespaces and mount on the host. If not,
// everything is done from inside the user namespace.
func privileged() bool { return ownCaps()&capSysAdmin != 0 }

// split takes what needs privileges on the host out of the plan. The mappings say who the
// program's user is there.
func (b *builder) split(uid uint32, terminal bool) {
	if !privileged() {
		return
	}
	rest := b.plan.Ops[:0]
	for _, op := range b.plan.Ops {
		switch op.Code {
		case plan.OOMScore, plan.IOPriority:
			b.host.Ops = append(b.host.Ops, op)
			continue
		case plan.Rlimit:
			// Raised where that may be done, and lowered where it no longer disturbs.
			b.host.Ops = append(b.host.Ops, plan.Op{Code: plan.RaiseLimit, N: op.N, S: op.S})
		case plan.Scheduler:
			b.scheduler = op.N // by the caller: not everything is inherited
			continue
		case plan.OwnStreams:
			if b.user != nil {
				continue
			}
		}
		rest = append(rest, op)
	}
	b.plan.Ops = rest
	if terminal || b.user == nil {
		return
	}
	if id, ok := b.user.uids.host(uid); ok {
		b.host.Add(plan.OwnStreams, plan.N(uint64(id)))
	}
}

// cross completes both plans. Nothing may be given to the child after it.
func (b *builder) cross() error {
	var user uint64
	if b.user != nil {
		user = b.give(b.user.file)
	}
	var fds []uint64
	for _, n := range b.entered {
		fds = append(fds, b.give(n.file))
	}
	// The program is next, orlop-init is last, and after it come the mounts.
	init := uint64(plan.FirstFD + len(b.files) + 1)
	f, err := program("orlop-init", b.program(user, fds, init))
	if err != nil {
		return err
	}
	b.opened = append(b.opened, f)
	b.host.Add(plan.Cross, plan.N(b.give(f), init+1))
	if privileged() {
		var take plan.Plan
		for slot := range b.slots {
			if slices.ContainsFunc(b.inside.Ops, func(o plan.Op) bool { return o.N[0] == slot }) {
				continue
			}
			take.Add(plan.Take, plan.N(slot, init+1+slot))
		}
		b.plan.Ops = append(take.Ops, b.plan.Ops...)
	}
	return nil
}

// program composes part 2. user, entered and init are descriptors.
func (b *builder) program(user uint64, entered []uint64, init uint64) []byte {
	var p tiny.Program
	// step says what the calls since the last one are.
	step := func(what string) {
		for len(b.steps) < p.Len() {
			b.steps = append(b.steps, what)
		}
	}
	hide(&p)
	step("hide")
	p.Call(unix.SYS_FCNTL, init, unix.F_SETFD, unix.FD_CLOEXEC)
	step("mark")
	b.enter(&p, user, entered, plan.SocketFD, step)
	p.Call(unix.SYS_EXECVEAT, init, p.Data([]byte{0}), p.Strings([]string{"orlop-init"}), p.Strings(append(slices.Clone(initEnv), guard.Environ()...)), unix.AT_EMPTY_PATH)
	step("execute init")
	return p.Executable()
}

// hide keeps others from the process's memory: see child.undumpable.
func hide(p *tiny.Program) {
	if guards.Undumpable.On() {
		p.Call(unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 0)
	}
}

// enter has a program enter the namespaces and go on in a clone that is born into them, which
// tells the parent of itself. step is told what was added.
func (b *builder) enter(p *tiny.Program, user uint64, entered []uint64, channel uint64, step func(what string)) {
	join := func() {
		for i, n := range b.entered {
			p.Call(unix.SYS_SETNS, entered[i], n.kind)
			step("join namespace " + n.file.Name())
		}
	}
	if privileged() {
		join()
	}
	if b.user != nil {
		p.Call(unix.SYS_SETNS, user, unix.CLONE_NEWUSER)
		step("join user namespace " + b.user.file.Name())
		if !privileged() {
			join()
		}
		// In some it may not be done (setgroups in user_namespaces(7)).
		p.Try(unix.SYS_SETGROUPS, 0, 0)
		step("drop groups")
		p.Call(unix.SYS_SETRESGID, 0, 0, 0)
		step("become group 0 of the user namespace (is it mapped?)")
		p.Call(unix.SYS_SETRESUID, 0, 0, 0)
		step("become user 0 of the user namespace (is it mapped?)")
		hide(p) // a change of user sets it to what the sysctl fs.suid_dumpable says
		step("hide")
	}
	var clone [64]byte // struct clone_args of clone(2), as of Linux 5.3
	binary.NativeEndian.PutUint64(clone[:], uint64(b.clone)|unix.CLONE_PARENT)
	p.Fork(unix.SYS_CLONE3, p.Data(clone[:]), uint64(len(clone)))
	step("clone")
	p.Call(unix.SYS_WRITE, channel, p.Data([]byte{plan.MsgCrossed}), 1)
	step("report")
}

// crossed waits until part 3 has begun, of which arrival tells, and whose process p is from then
// on. If it fails, p is whichever has to be reaped.
func (b *builder) crossed(ctx context.Context, p *Process, ch *channel, arrival func(*Process, *channel) (int, error)) error {
	pid, err := arrival(p, ch)
	if err != nil && ctx.Err() != nil {
		// The clone may have been made: let its message come, or the end of both.
		unix.PidfdSendSignal(int(p.pidfd.Fd()), unix.SIGKILL, nil, 0)
		if e := ch.unbind(); e == nil {
			pid, _ = arrival(p, ch)
		}
		err = context.Cause(ctx)
	}
	if pid == 0 {
		return err
	}
	if err == nil {
		err = ch.identify(false) // descriptors come with what follows
	}
	p.reap()
	p.pidfd.Close()
	p.pid, p.pidfd = pid, nil
	// It is a child that nobody has waited for: the number is its own.
	fd, e := unix.PidfdOpen(pid, 0)
	if e != nil {
		return errors.Join(err, fmt.Errorf("pidfd of %d: %w", pid, e))
	}
	p.pidfd = os.NewFile(uintptr(fd), "pidfd")
	return err
}

// arrival returns the process id that the message of part 3 comes with.
func (b *builder) arrival(p *Process, ch *channel) (int, error) {
	for {
		msg, pid, err := ch.receiveFrom()
		if err == io.EOF {
			return 0, p.died("on its way into the user namespace")
		}
		if err != nil {
			return 0, err
		}
		if call, errno, ok := tiny.Failed(msg); ok && call < len(b.steps) {
			return 0, kinded(fmt.Errorf("%s: %w", b.steps[call], unix.Errno(errno)), unix.Errno(errno))
		}
		switch msg[0] {
		case plan.MsgCrossed:
			return pid, nil
		case plan.MsgWarn:
			p.warnings = append(p.warnings, string(msg[1:]))
		case plan.MsgFail:
			return 0, failure(msg)
		default:
			return 0, errs.New(errs.Internal, "init sent a message that is not known: %q", msg[0])
		}
	}
}

// schedule sets the scheduling policy, once init waits at the gate.
func (b *builder) schedule(p *Process) error {
	if b.scheduler == nil {
		return nil
	}
	n := b.scheduler
	at := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: uint32(n[0]), Flags: n[1], Nice: int32(n[2]), Priority: uint32(n[3]), Runtime: n[4], Deadline: n[5], Period: n[6]}
	if err := unix.SchedSetAttr(p.pid, &at, 0); err != nil {
		return kinded(fmt.Errorf("%s: %w", plan.Names[plan.Scheduler], err), err)
	}
	return nil
}
