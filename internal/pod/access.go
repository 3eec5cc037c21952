package pod

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/cgroup"
	"github.com/orlop-io/orlop/internal/platform/keeper"
	"github.com/orlop-io/orlop/internal/platform/namespace"
)

// choose returns the status of the container of that name, or the pod's first main one.
func (w *worker) choose(name string) (*Container, ContainerStatus, error) {
	spec := w.spec()
	if name == "" {
		name = spec.Containers[0].Name
	}
	for _, l := range [][]Container{spec.Containers, spec.Init} {
		for i := range l {
			if l[i].Name == name {
				return &l[i], w.container(name), nil
			}
		}
	}
	return nil, ContainerStatus{}, errs.New(errs.NotFound, "pod %s has no container %q; it has %s", spec.Key, name, containerNames(&spec))
}

func containerNames(spec *Spec) (names string) {
	for _, l := range [][]Container{spec.Init, spec.Containers} {
		for _, c := range l {
			if names != "" {
				names += ", "
			}
			names += c.Name
		}
	}
	return names
}

// running is choose for a container that must run.
func (p *Pods) running(k Key, container string) (*worker, *Container, ContainerStatus, error) {
	w, err := p.worker(k)
	if err != nil {
		return nil, nil, ContainerStatus{}, err
	}
	c, st, err := w.choose(container)
	if err == nil && st.State != RunningNow {
		err = errs.New(errs.FailedPrecondition, "container %s of pod %s is %s (%s); see orlop inspect pod %s", c.Name, k, st.State, st.Reason, k.Name)
	}
	return w, c, st, err
}

// Exec runs a command in a container. The process belongs to the session: when the
// session is closed its terminal hangs up, or its pipes break.
func (p *Pods) Exec(ctx context.Context, k Key, o ExecOptions) (*Session, error) {
	w, c, st, err := p.running(k, o.Container)
	if err != nil {
		return nil, err
	}
	return w.exec(ctx, c.Name, st.ID, o)
}

func (w *worker) exec(ctx context.Context, name string, id ContainerID, o ExecOptions) (_ *Session, err error) {
	if len(o.Command) == 0 {
		return nil, errs.New(errs.Invalid, "no command is given; write it behind --")
	}
	process, err := w.processLike(id, o.Command, o.TTY)
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", name, err)
	}
	client, err := w.p.runtime.get(ctx)
	if err != nil {
		return nil, err
	}
	s := &Session{Container: name, TTY: o.TTY}
	spec := keeper.ExecSpec{Process: process}
	var theirs []*os.File
	defer func() {
		for _, f := range theirs {
			f.Close()
		}
		if err != nil {
			s.Close()
		}
	}()
	if !o.TTY {
		pipe := func(weRead bool) (ours, its *os.File) {
			if err == nil {
				ours, its, err = processPipe(weRead)
			}
			s.files, theirs = append(s.files, ours), append(theirs, its)
			return ours, its
		}
		if o.Stdin {
			s.Stdin, spec.Stdin = pipe(false)
		}
		var out, errOut *os.File
		out, spec.Stdout = pipe(true)
		errOut, spec.Stderr = pipe(true)
		if err != nil {
			return nil, err
		}
		s.Stdout, s.Stderr = &processOutput{f: out, rest: drainBytes}, &processOutput{f: errOut, rest: drainBytes}
	}
	e, err := client.Exec(ctx, string(id), spec)
	if err != nil {
		return nil, err
	}
	if o.TTY {
		s.Stdout, s.files = e.Console, append(s.files, e.Console)
		if o.Stdin {
			s.Stdin = nopCloser{e.Console}
		}
		s.resize = e.Resize
	}
	s.wait = e.Wait
	s.signal = func(ctx context.Context, sig int) error { return e.Signal(ctx, syscall.Signal(sig)) }
	s.kill = e.Kill
	return s, nil
}

// processPipe returns a pipe to or from a process. The process's end blocks, as programs
// expect of their streams; os.Pipe's would not.
func processPipe(weRead bool) (ours, its *os.File, err error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return nil, nil, os.NewSyscallError("pipe2", err)
	}
	mine, theirs := p[0], p[1]
	if !weRead {
		mine, theirs = p[1], p[0]
	}
	if err := unix.SetNonblock(mine, true); err != nil {
		unix.Close(mine)
		unix.Close(theirs)
		return nil, nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(mine), "pipe"), os.NewFile(uintptr(theirs), "pipe of the process"), nil
}

// nopCloser is a terminal as an input: it ends with the session, not with its input.
type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// Attach connects to the streams of a container's own process, from now on.
func (p *Pods) Attach(ctx context.Context, k Key, o AttachOptions) (*Session, error) {
	w, c, st, err := p.running(k, o.Container)
	if err != nil {
		return nil, err
	}
	return w.attach(ctx, c, st.ID, o)
}

func (w *worker) attach(ctx context.Context, c *Container, id ContainerID, o AttachOptions) (*Session, error) {
	client, err := w.p.runtime.get(ctx)
	if err != nil {
		return nil, err
	}
	s := &Session{Container: c.Name, TTY: c.TTY}
	fail := func(err error) (*Session, error) { s.Close(); return nil, err }
	var spec keeper.AttachSpec
	out, wr, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer wr.Close()
	s.Stdout, s.files, spec.Stdout = &processOutput{f: out, rest: drainBytes}, append(s.files, out), wr
	if !c.TTY {
		r, wr, err := os.Pipe()
		if err != nil {
			return fail(err)
		}
		defer wr.Close()
		s.Stderr, s.files, spec.Stderr = &processOutput{f: r, rest: drainBytes}, append(s.files, r), wr
	}
	if err := client.Attach(ctx, string(id), spec); err != nil {
		return fail(err)
	}
	if o.Stdin {
		f, err := client.StdinWriter(ctx, string(id))
		if err != nil {
			return fail(err)
		}
		s.Stdin, s.files = f, append(s.files, f)
	}
	s.wait = func(ctx context.Context) (keeper.Exit, error) { return w.p.runtime.wait(ctx, string(id)) }
	if c.TTY {
		s.resize = func(cols, rows uint16) error { return client.Resize(context.Background(), string(id), cols, rows) }
	}
	return s, nil
}

// Logs tells where a container's log is.
func (p *Pods) Logs(ctx context.Context, k Key, container string, previous bool) (Logs, error) {
	w, err := p.worker(k)
	if err != nil {
		return Logs{}, err
	}
	c, st, err := w.choose(container)
	if err != nil {
		return Logs{}, err
	}
	n := st.Restarts
	if previous {
		if n == 0 {
			return Logs{}, errs.New(errs.NotFound, "container %s of pod %s was never started before: there is no previous log", c.Name, k)
		}
		n--
	} else if st.State == Waiting && st.ID == "" && n == 0 && st.Last == nil {
		if st.Reason != "" {
			return Logs{}, errs.New(errs.FailedPrecondition, "container %s of pod %s has not started yet (%s)", c.Name, k, st.Reason)
		}
	}
	name := c.Name
	return Logs{
		Container: name, Path: w.logPath(name, n),
		More: func() bool {
			if previous {
				return false
			}
			select {
			case <-w.gone:
				return false
			default:
			}
			pod := w.status()
			if pod.Phase == Succeeded || pod.Phase == Failed {
				return false
			}
			now := w.container(name)
			return now.Restarts == n && now.State != Terminated
		},
		Next: func() (string, bool) {
			if now := w.container(name); !previous && now.Restarts > n && now.ID != "" {
				return w.logPath(name, now.Restarts), true
			}
			return "", false
		},
	}, nil
}

// Dial connects to a port inside the pod.
func (p *Pods) Dial(ctx context.Context, k Key, port uint16) (net.Conn, error) {
	w, err := p.worker(k)
	if err != nil {
		return nil, err
	}
	return w.dialPort(ctx, port)
}

func (w *worker) dialPort(ctx context.Context, port uint16) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var last error
	for _, host := range []string{"127.0.0.1", "::1"} {
		conn, err := w.dial(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(int(port))))
		if err == nil {
			return conn, nil
		}
		if last == nil {
			last = err
		}
	}
	return nil, errs.New(errs.Unavailable, "nothing in pod %s answers at port %d: %w", w.m.Spec.Key, port, last)
}

// Stats returns what the running containers use; an empty namespace or name is all.
func (p *Pods) Stats(ctx context.Context, namespaceName, name string) ([]Stats, error) {
	var list []Stats
	for _, pod := range p.snapshot() {
		if namespaceName != "" && pod.Spec.Namespace != namespaceName || name != "" && pod.Spec.Name != name {
			continue
		}
		w, err := p.worker(pod.Spec.Key)
		if err != nil {
			continue
		}
		s := Stats{Pod: pod.Spec.Key, At: time.Now()}
		for _, c := range pod.Containers {
			if c.State != RunningNow {
				continue
			}
			g, err := p.cgroups.Load(w.group() + "/" + string(c.ID))
			if err != nil {
				continue // it has just ended
			}
			u, err := g.Stats()
			if err != nil {
				continue
			}
			s.Containers = append(s.Containers, ContainerStats{c.Name, usage(u)})
		}
		if ns := w.nsPath(namespace.Net); ns != "" && len(s.Containers) > 0 {
			namespace.Do(ns, func() error {
				s.ReceiveBytes, s.TransmitBytes = counter(0), counter(8)
				return nil
			})
		}
		list = append(list, s)
	}
	return list, nil
}

// counter reads a counter of eth0 in the calling thread's network namespace
// (proc(5), /proc/net/dev: received bytes come first, sent bytes ninth).
func counter(column int) uint64 {
	raw, err := os.ReadFile("/proc/thread-self/net/dev")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(raw)) {
		name, rest, ok := strings.Cut(line, ":")
		if w := strings.Fields(rest); ok && strings.TrimSpace(name) == "eth0" && len(w) > column {
			n, _ := strconv.ParseUint(w[column], 10, 64)
			return n
		}
	}
	return 0
}

func usage(s cgroup.Stats) Usage {
	u := Usage{
		CPU: s.CPU.Usage, MemoryBytes: s.Memory.WorkingSetBytes, MemoryUsageBytes: s.Memory.UsageBytes,
		MemoryLimitBytes: s.Memory.LimitBytes, Processes: s.PIDs.Current,
	}
	for _, d := range s.IO {
		u.ReadBytes += d.ReadBytes
		u.WriteBytes += d.WriteBytes
	}
	return u
}
