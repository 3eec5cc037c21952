package executor

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/sysmon"
	"github.com/orlop-io/orlop/internal/platform/executor/guards"
	"github.com/orlop-io/orlop/internal/platform/executor/plan"
)

// Hooks (OCI config.md, "POSIX-platform Hooks") run at six points of a container's life:
//
//	prestart, createRuntime   by Create, in the caller's namespaces, when the container's mounts are made and its root is not yet pivoted to
//	createContainer           by init after them, in the container's namespaces
//	startContainer            by init when the gate is open, as the container's user
//	poststart, poststop       by the caller, with RunHooks
//
// A hook gets the container's state on its standard input, its environment and
// arguments as they are given, and nothing else of whoever runs it. What it writes is
// for the error if it fails.

// RunHooks runs hooks in the caller's namespaces one after another with state on their
// standard input. The first that fails ends it. A hook that ends with another status
// than zero is errs.FailedPrecondition, one that takes longer than its timeout is killed
// with its process group and is errs.Timeout.
func RunHooks(ctx context.Context, hooks []specs.Hook, state *specs.State) error {
	if len(hooks) == 0 {
		return nil
	}
	data, err := json.Marshal(state)
	if err != nil {
		return fmt.Errorf("hooks: encode state: %w", err)
	}
	for i := range hooks {
		if err := checkHook(&hooks[i], "hook"); err != nil {
			return err
		}
	}
	for i := range hooks {
		if err := runHook(ctx, &hooks[i], data); err != nil {
			return fmt.Errorf("hook %s: %w", hooks[i].Path, err)
		}
	}
	return nil
}

// runHook runs one hook to its end.
func runHook(ctx context.Context, h *specs.Hook, state []byte) error {
	if h.Timeout != nil {
		var cancel func()
		ctx, cancel = context.WithTimeoutCause(ctx, time.Duration(*h.Timeout)*time.Second,
			errs.New(errs.Timeout, "it was killed because it did not end within its timeout of %d s", *h.Timeout))
		defer cancel()
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	stdin, in, err := os.Pipe()
	if err != nil {
		return err
	}
	defer in.Close()
	out, stdout, err := os.Pipe()
	if err != nil {
		stdin.Close()
		return err
	}
	defer out.Close()
	env := append([]string{}, h.Env...) // not nil, which would be ours
	if !guards.HookEnvironment.On() {
		env = nil
	}
	var p *os.Process
	sysmon.Spawn(func() {
		p, err = os.StartProcess(h.Path, hookArgs(h), &os.ProcAttr{
			Env: env, Files: []*os.File{stdin, stdout, stdout}, Sys: &syscall.SysProcAttr{Setpgid: true},
		})
	})
	stdin.Close()
	stdout.Close()
	if err != nil {
		return kinded(err, err)
	}
	fed := make(chan struct{})
	go func() {
		defer close(fed)
		in.Write(state) // a hook need not read it
		in.Close()
	}()
	said := make(chan string)
	go func() {
		var t tail
		io.Copy(&t, out)
		said <- t.String()
	}()
	killed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		unix.Kill(-p.Pid, unix.SIGKILL)
		close(killed)
	})
	// It is reaped only when nobody is about to kill it, so its number stays its own.
	for unix.Waitid(unix.P_PID, p.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
	}
	stopped := stop()
	if !stopped {
		<-killed
	}
	status, err := p.Wait()
	in.SetWriteDeadline(time.Unix(1, 0))
	<-fed
	// What it left running may hold its output; what it wrote itself is there.
	out.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	text := <-said
	switch {
	case !stopped && ctx.Err() != nil:
		err = context.Cause(ctx)
	case err != nil:
		return err
	case !status.Success():
		ws := status.Sys().(syscall.WaitStatus)
		how := fmt.Sprintf("it ended with status %d", ws.ExitStatus())
		if ws.Signaled() {
			how = "it was killed by " + unix.SignalName(ws.Signal())
		}
		err = errs.New(errs.FailedPrecondition, "%s", how)
	}
	if err != nil && text != "" {
		err = fmt.Errorf("%w: %s", err, text)
	}
	return err
}

// hookArgs are a hook's arguments; what is not given is its path.
func hookArgs(h *specs.Hook) []string {
	if len(h.Args) == 0 {
		return []string{h.Path}
	}
	return h.Args
}

// tail keeps the end of what is written to it.
type tail struct{ b bytes.Buffer }

func (t *tail) Write(p []byte) (int, error) {
	t.b.Write(p[max(0, len(p)-plan.MaxOutput):])
	t.b.Next(max(0, t.b.Len()-plan.MaxOutput))
	return len(p), nil
}

func (t *tail) String() string { return strings.TrimSpace(t.b.String()) }

// hookPlan is the container's hooks as Create runs them.
type hookPlan struct {
	runtime []specs.Hook // prestart, then createRuntime
	state   specs.State
}

// hooks reads the specification's hooks. What is run by the child is returned: before
// the pivot, and after the gate.
func (b *builder) hooks(c *Config) (created, started plan.Plan, err error) {
	b.hook.state = specs.State{Version: specs.Version, ID: c.ID, Status: specs.StateCreating, Bundle: c.Bundle, Annotations: c.Spec.Annotations}
	h := c.Spec.Hooks
	if h == nil {
		return created, started, nil
	}
	//lint:ignore SA1019 engines still use it
	prestart := h.Prestart
	for _, l := range []struct {
		name string
		list []specs.Hook
	}{
		{"prestart", prestart}, {"createRuntime", h.CreateRuntime}, {"createContainer", h.CreateContainer},
		{"startContainer", h.StartContainer}, {"poststart", h.Poststart}, {"poststop", h.Poststop},
	} {
		for i := range l.list {
			if err := checkHook(&l.list[i], fmt.Sprintf("hooks.%s[%d]", l.name, i)); err != nil {
				return created, started, err
			}
		}
	}
	b.hook.runtime = slices.Concat(prestart, h.CreateRuntime)
	if len(b.hook.runtime) > 0 {
		created.Add(plan.Sync, nil)
	}
	for _, l := range []struct {
		to     *plan.Plan
		name   string
		list   []specs.Hook
		status specs.ContainerState
		start  bool
	}{{&created, "createContainer", h.CreateContainer, specs.StateCreating, false}, {&started, "startContainer", h.StartContainer, specs.StateCreated, true}} {
		state := b.hook.state
		state.Status = l.status
		data, err := json.Marshal(state)
		if err != nil {
			return created, started, fmt.Errorf("hooks: encode state: %w", err)
		}
		for i := range l.list {
			h := &l.list[i]
			var seconds uint64
			if h.Timeout != nil {
				seconds = uint64(*h.Timeout)
			}
			args := hookArgs(h)
			l.to.Add(plan.Hook, plan.N(flag(l.start), seconds, uint64(len(args))),
				slices.Concat([]string{l.name + " hook " + h.Path, h.Path, string(data)}, args, h.Env)...)
		}
	}
	return created, started, nil
}

// checkHook tells what is wrong with a hook, which errors call by its name.
func checkHook(h *specs.Hook, name string) error {
	if !strings.HasPrefix(h.Path, "/") {
		return errs.New(errs.Invalid, "%s.path: %q is not an absolute path", name, h.Path)
	}
	if h.Timeout != nil && *h.Timeout <= 0 {
		return errs.New(errs.Invalid, "%s.timeout: %d is not greater than zero", name, *h.Timeout)
	}
	for _, l := range []struct {
		field string
		list  []string
	}{{"path", []string{h.Path}}, {"args", h.Args}, {"env", h.Env}} {
		for _, s := range l.list {
			if strings.IndexByte(s, 0) >= 0 {
				return errs.New(errs.Invalid, "%s.%s: %q has a null byte in it", name, l.field, s)
			}
		}
	}
	return nil
}

// runtimeHooks runs those of the hooks that are run in the caller's namespaces while the
// child waits.
func (b *builder) runtimeHooks(ctx context.Context, pid int) error {
	state := b.hook.state
	state.Pid = pid
	return RunHooks(ctx, b.hook.runtime, &state)
}
