package executor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/guard"
	"github.com/orlop-io/orlop/internal/base/sysmon"
	"github.com/orlop-io/orlop/internal/base/trace"
	"github.com/orlop-io/orlop/internal/platform/executor/plan"
	"github.com/orlop-io/orlop/internal/platform/namespace"
)

// initEnv is the environment of orlop-init: what Go's runtime would do for a long life is
// not worth its time in a short one. Collecting garbage would even end it: what returns memory
// afterwards sleeps by a timer, for which the runtime opens an epoll descriptor; init closes
// that with all others before it looks the program up, and the monitor thread, which asks it
// after 10 ms, takes the runtime down.
var initEnv = []string{"GOMAXPROCS=1", "GOGC=off", "GODEBUG=asyncpreemptoff=1,containermaxprocs=0,updatemaxprocs=0"}

// launch clones the child, gives it the plan and waits until it is at the gate.
func (e *Executor) launch(ctx context.Context, id string, b *builder, stdio [3]*os.File) (_ *Process, err error) {
	if err := b.forget(); err != nil {
		return nil, err
	}
	if s, at := e.straight(b, stdio); s != nil {
		if p, err := e.launchStraight(ctx, id, b, s, at); p != nil || err != nil {
			return p, err
		}
		if err := b.forget(); err != nil {
			return nil, err
		}
	}
	ch, theirs, err := newChannel()
	if err != nil {
		return nil, err
	}
	p := &Process{id: id, sync: ch, warnings: b.warnings}
	first := &b.plan
	if b.crosses() {
		if err = b.cross(); err == nil {
			err = ch.identify(true)
		}
		first = &b.host
	}
	if size := b.plan.Size(); err == nil && size > plan.MaxSize {
		err = errs.New(errs.Invalid, "the specification is too large: arguments, environment and mounts take %d MiB, and %d are the limit", size>>20, plan.MaxSize>>20)
	}
	if err != nil {
		ch.close()
		theirs.Close()
		return nil, err
	}
	defer func() {
		if err != nil {
			b.returnDevices()
			p.abandon()
		}
	}()
	_, step := trace.Start(ctx, "executor clone")
	err = e.cloneInit(p, b, stdio, theirs)
	step.End(&err)
	theirs.Close()
	if err != nil {
		return nil, err
	}
	ctx, step = trace.Start(ctx, "executor set-up") // ends when the process is at the gate
	defer step.End(&err)
	at := phases{step: step, begin: time.Now()}
	defer at.end(&err)
	if step != nil {
		at.clocks(&b.plan)
	}
	stop := ch.bind(ctx)
	defer stop()
	if !b.crosses() {
		if err := b.arrived(p.pid); err != nil {
			return nil, err
		}
	}
	if err := ch.sendPlan(first.Encode()); err != nil && !errors.Is(err, unix.EPIPE) {
		return nil, contextual(ctx, err)
	}
	if b.crosses() {
		if err := b.crossed(ctx, p, ch, b.arrival); err != nil {
			return nil, err
		}
		if err := b.arrived(p.pid); err != nil {
			return nil, err
		}
		if err := ch.sendPlan(b.plan.Encode()); err != nil && !errors.Is(err, unix.EPIPE) {
			return nil, contextual(ctx, err)
		}
	}
	for {
		msg, fd, err := ch.receive()
		if err == io.EOF {
			return nil, p.died("before it was ready")
		}
		if err != nil {
			return nil, contextual(ctx, err)
		}
		switch msg[0] {
		case plan.MsgSync:
			_, step := trace.Start(ctx, "executor hooks")
			err := b.runtimeHooks(ctx, p.pid)
			step.End(&err)
			if err != nil {
				return nil, err
			}
			if _, err := ch.file.Write([]byte{plan.MsgGo}); err != nil && !errors.Is(err, unix.EPIPE) {
				return nil, contextual(ctx, err)
			}
		case plan.MsgReady:
			if err := b.schedule(p); err != nil {
				return nil, err
			}
			if err := b.release(ctx, p, ch, []byte{plan.MsgGo}); err != nil {
				return nil, err
			}
			e.warn(ctx, p)
			return p, nil
		case plan.MsgClock:
			at.note(msg)
		case plan.MsgWarn:
			p.warnings = append(p.warnings, string(msg[1:]))
		case plan.MsgConsole:
			if fd >= 0 && p.console == nil {
				p.console = os.NewFile(uintptr(fd), "console")
			}
		case plan.MsgFail:
			return nil, failure(msg)
		default:
			return nil, errs.New(errs.Internal, "init sent a message that is not known: %q", msg[0])
		}
	}
}

// arrived does what can be done only once the process is there.
func (b *builder) arrived(pid int) error {
	if err := b.made(pid); err != nil {
		return err
	}
	if err := b.moveDevices(pid); err != nil {
		return err
	}
	return b.delegate()
}

// release lets a process that waits at a gate of its own live without its parent. word is what it
// waits for.
func (b *builder) release(ctx context.Context, p *Process, ch *channel, word []byte) error {
	if b.gate == nil {
		return nil
	}
	p.gated = true
	if b.created != nil {
		if err := b.created(p); err != nil {
			return err
		}
	}
	if _, err := ch.file.Write(word); errors.Is(err, unix.EPIPE) {
		return p.died("at the gate")
	} else if err != nil {
		return contextual(ctx, err)
	}
	ch.close()
	p.sync = nil
	return nil
}

func (e *Executor) warn(ctx context.Context, p *Process) {
	for _, w := range p.warnings {
		e.log.WarnContext(ctx, "the container starts without something that it asked for", "container", p.id, "what", w)
	}
}

// processImage is what a process begins as.
type processImage struct {
	files      []*os.File // its descriptors from 0 on; nil is the null device
	exec       *os.File
	env        []string
	namespaces uintptr // CLONE_NEW* flags
}

// cloneInit makes the process of orlop-init.
func (e *Executor) cloneInit(p *Process, b *builder, stdio [3]*os.File, theirs *os.File) error {
	exec, err := e.init.file(b)
	if err != nil {
		return err
	}
	flags := b.clone
	if b.crosses() {
		flags = b.hostClone
	}
	files := append(append(stdio[:], theirs), b.files...)
	return e.clone(p, b, processImage{files: files, exec: exec, env: append(slices.Clone(initEnv), guard.Environ()...), namespaces: flags})
}

// clone makes the process, in its namespaces and its cgroup.
func (e *Executor) clone(p *Process, b *builder, im processImage) error {
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	var files []uintptr
	for _, f := range im.files {
		if f == nil {
			f = null
		}
		files = append(files, f.Fd())
	}
	// The binary comes last, by the number that it has in the child: what it has here may
	// be one that ForkExec uses in passing.
	exe := fmt.Sprintf("/proc/self/fd/%d", len(files))
	files = append(files, im.exec.Fd())
	pidfd := -1
	fork := func(cgroupFD int) (pid int, err error) {
		attr := &syscall.ProcAttr{Env: im.env, Files: files, Sys: &syscall.SysProcAttr{Cloneflags: im.namespaces, PidFD: &pidfd}}
		if cgroupFD >= 0 {
			attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, cgroupFD
		}
		sysmon.Spawn(func() { pid, err = syscall.ForkExec(exe, []string{"orlop-init"}, attr) })
		return pid, err
	}
	_, threads := b.clones()
	spawn := func() (err error) {
		switch {
		case threads:
			p.pid, err = b.cgroup.SpawnOnThread(fork)
		case b.cgroup != nil:
			p.pid, err = b.cgroup.Spawn(fork)
		default:
			p.pid, err = fork(-1)
		}
		return err
	}
	bound := func() error {
		if err := bindThread(b.cpus); err != nil {
			return err
		}
		return spawn()
	}
	switch {
	case b.pidns != nil:
		err = onPIDNamespace(b.pidns, bound)
	case b.pidfd != nil:
		err = onPIDNamespace(b.pidfd, bound)
	case len(b.cpus) > 0 || threads:
		err = namespace.OnThread(bound)
	default:
		err = spawn()
	}
	runtime.KeepAlive(im)
	if pidfd >= 0 {
		p.pidfd = os.NewFile(uintptr(pidfd), "pidfd")
	}
	if err != nil {
		return kinded(fmt.Errorf("clone: %w", err), err)
	}
	if p.pidfd == nil {
		return errs.New(errs.Unsupported, "clone: this kernel gives no pidfd (Linux 5.2 is the oldest that does)")
	}
	return nil
}

// abandon ends the child, if there is one, and reaps it.
func (p *Process) abandon() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.sync != nil {
		p.sync.close()
		p.sync = nil
	}
	if p.console != nil {
		p.console.Close()
	}
	switch {
	case p.pidfd != nil:
		unix.PidfdSendSignal(int(p.pidfd.Fd()), unix.SIGKILL, nil, 0)
		p.reap()
		p.pidfd.Close()
	case p.pid > 0:
		unix.Kill(p.pid, unix.SIGKILL)
		unix.Wait4(p.pid, nil, 0, nil)
	}
}

// reap waits for the process and returns what ended it, "" if somebody else reaped it.
func (p *Process) reap() string {
	var si unix.Siginfo
	for {
		err := unix.Waitid(unix.P_PIDFD, int(p.pidfd.Fd()), &si, unix.WEXITED|unix.WALL, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return ""
		}
		return ended(&si)
	}
}

// died tells how a child ended that did not say why. It reaps it.
func (p *Process) died(when string) error {
	how := p.reap()
	if how == "" {
		how = "ended"
	}
	return errs.New(errs.Internal, "init %s %s (if it was killed, the cgroup's limits may be too low for it to start)", how, when)
}

// Start opens the gate. It returns once the program has been executed. If that fails the
// process has been reaped, and the error's kind says why: errs.NotFound,
// errs.PermissionDenied, errs.Invalid (not an executable) or another. A process that was
// killed before the gate opened is errs.FailedPrecondition; it may still have to be reaped.
// A process is started once; a second Start is errs.FailedPrecondition.
func (p *Process) Start(ctx context.Context) (err error) {
	ctx, span := trace.Start(ctx, "executor execve")
	defer span.End(&err)
	p.mu.Lock()
	ch, straight := p.sync, p.straight
	p.sync, p.straight = nil, nil
	p.mu.Unlock()
	if p.gated {
		return errs.New(errs.FailedPrecondition, "start %s: it waits at a gate of its own, which OpenGate opens", p.id)
	}
	if ch == nil {
		return errs.New(errs.FailedPrecondition, "start %s: it has been started already", p.id)
	}
	defer ch.close()
	stop := ch.bind(ctx)
	defer stop()
	word := []byte{plan.MsgGo}
	if straight != nil {
		word = straight.word()
	}
	if _, err := ch.file.Write(word); err != nil {
		if errors.Is(err, unix.EPIPE) || errors.Is(err, unix.ECONNRESET) {
			return errs.New(errs.FailedPrecondition, "start %s: the process ended before it was started", p.id)
		}
		p.kill()
		return fmt.Errorf("start %s: %w", p.id, contextual(ctx, err))
	}
	var said []byte
	for {
		msg, _, err := ch.receive()
		if err == io.EOF {
			break // the socket closes at execve
		}
		if err != nil {
			p.kill()
			return fmt.Errorf("start %s: %w", p.id, contextual(ctx, err))
		}
		said = append(said, msg...)
	}
	if straight != nil {
		err = straight.after.passed(said)
	} else {
		err = passed(said)
	}
	if err != nil {
		p.kill()
		return fmt.Errorf("start %s: %w", p.id, err)
	}
	return nil
}

func (p *Process) kill() {
	unix.PidfdSendSignal(int(p.pidfd.Fd()), unix.SIGKILL, nil, 0)
	p.reap()
}

// contextual prefers the context's error to what it caused.
func contextual(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// failure turns the child's message into an error that names the operation and its
// operand.
func failure(msg []byte) error {
	f, ok := plan.DecodeFailure(msg)
	if !ok {
		return errs.New(errs.Internal, "init sent a message that is not known: %q", msg)
	}
	return failed(f)
}

func failed(f plan.Failure) error {
	errno := unix.Errno(f.Errno)
	text := plan.Names[f.Code]
	if f.Operand != "" {
		text += " " + f.Operand
	}
	if errno == 0 { // a hook
		return errs.New(errs.FailedPrecondition, "%s: %s", text, strings.TrimSpace(f.Hint))
	}
	err := fmt.Errorf("%s: %w", text, errno)
	if f.Hint != "" {
		err = fmt.Errorf("%w (%s)", err, strings.TrimSpace(f.Hint))
	}
	return kinded(err, errno)
}

// kinded gives err the kind of the system's error in cause.
func kinded(err, cause error) error {
	var errno syscall.Errno
	if !errors.As(cause, &errno) {
		return err
	}
	switch errno {
	case unix.ENOENT:
		return errs.As(errs.NotFound, err)
	case unix.EACCES, unix.EPERM, unix.EROFS:
		return errs.As(errs.PermissionDenied, err)
	case unix.EINVAL, unix.ENOTDIR, unix.EISDIR, unix.ELOOP, unix.ENAMETOOLONG, unix.ENOEXEC, unix.EXDEV, unix.E2BIG, unix.EEXIST:
		return errs.As(errs.Invalid, err)
	case unix.ENOSPC, unix.ENOMEM, unix.EAGAIN, unix.EMFILE, unix.ENFILE, unix.EDQUOT, unix.EUSERS:
		return errs.As(errs.ResourceExhausted, err)
	case unix.ENODEV, unix.ENOSYS, unix.EOPNOTSUPP:
		return errs.As(errs.Unsupported, err)
	case unix.EBUSY, unix.ETXTBSY:
		return errs.As(errs.InUse, err)
	case unix.ESRCH:
		return errs.As(errs.NotFound, err)
	case unix.ECONNREFUSED, unix.ECONNRESET, unix.EPIPE:
		return errs.As(errs.Unavailable, err)
	case unix.ETIMEDOUT:
		return errs.As(errs.Timeout, err)
	}
	return err
}
