package pod

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/atomicfile"
	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/keeper"
	"github.com/orlop-io/orlop/internal/platform/namespace"
	"github.com/orlop-io/orlop/internal/pod/probe"
)

func decodeBase64(s string) ([]byte, error) { return base64.StdEncoding.DecodeString(s) }

// probing is the goroutines that ask one incarnation of a container how it is.
type probing struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// ensureProbes starts them where they do not run: a startup probe first, and the
// others once it has passed.
func (w *worker) ensureProbes(spec *Spec, c *Container, id ContainerID) {
	if c.Startup == nil && c.Readiness == nil && c.Liveness == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.probes[id] != nil || w.p.ctx == nil {
		return
	}
	ctx, cancel := context.WithCancel(w.p.ctx)
	pr := &probing{cancel: cancel}
	w.probes[id] = pr
	cc, grace := *c, spec.TerminationGrace
	pr.wg.Go(func() { w.probe(ctx, &cc, id, grace) })
}

func (w *worker) stopProbe(id ContainerID) {
	w.mu.Lock()
	pr := w.probes[id]
	delete(w.probes, id)
	w.mu.Unlock()
	if pr != nil {
		pr.cancel()
		pr.wg.Wait()
	}
}

func (w *worker) stopProbes() {
	w.mu.Lock()
	all := w.probes
	w.probes = make(map[ContainerID]*probing)
	w.mu.Unlock()
	for _, pr := range all {
		pr.cancel()
	}
	for _, pr := range all {
		pr.wg.Wait()
	}
}

// probe runs the probes of one incarnation until ctx ends.
func (w *worker) probe(ctx context.Context, c *Container, id ContainerID, grace time.Duration) {
	set := func(fn func(*ContainerStatus)) {
		w.updateContainer(c.Name, func(s *ContainerStatus) {
			if s.ID == id && s.State == RunningNow {
				fn(s)
			}
		})
		w.poke()
	}
	watch := func(kind string, p *Probe, eager bool, decided func(ok bool) bool) {
		s := probe.Schedule{InitialDelay: p.InitialDelay, Period: p.Period, Timeout: p.Timeout,
			SuccessThreshold: p.SuccessThreshold, FailureThreshold: p.FailureThreshold, Eager: eager}
		probe.Watch(ctx, s, w.container(c.Name).StartedAt,
			func(ctx context.Context) probe.Outcome { return w.check(ctx, c, &p.Action) },
			func(message string) { w.note(c.Name, true, "Unhealthy", kind+" probe failed: "+message) },
			func(ok bool, _ string) bool { return decided(ok) })
	}
	restart := func(kind string, p *Probe) {
		w.note(c.Name, false, "Killing", "container "+c.Name+" failed its "+kind+" probe; it is ended")
		if p.TerminationGrace > 0 {
			grace = p.TerminationGrace
		}
		w.restart(c, grace)
	}
	if c.Startup != nil && !w.container(c.Name).Started {
		passed := false
		watch("startup", c.Startup, true, func(ok bool) bool {
			if passed = ok; !ok {
				restart("startup", c.Startup)
			}
			return false
		})
		if !passed {
			return
		}
	}
	set(func(s *ContainerStatus) {
		s.Started = true
		if c.Readiness == nil {
			s.Ready = true
		}
	})
	var wg sync.WaitGroup
	defer wg.Wait()
	if c.Readiness != nil {
		wg.Go(func() {
			watch("readiness", c.Readiness, true, func(ok bool) bool {
				set(func(s *ContainerStatus) { s.Ready = ok })
				return true
			})
		})
	}
	if c.Liveness != nil {
		wg.Go(func() {
			watch("liveness", c.Liveness, false, func(ok bool) bool {
				if !ok {
					restart("liveness", c.Liveness)
				}
				return ok
			})
		})
	}
}

// port resolves a port by number or name.
func port(c *Container, r PortRef) (uint16, error) {
	if r.Name == "" {
		return r.Number, nil
	}
	for _, p := range c.Ports {
		if p.Name == r.Name {
			return p.Port, nil
		}
	}
	return 0, errs.New(errs.Invalid, "container %s has no port named %q", c.Name, r.Name)
}

// check carries out one action of a probe or a hook.
func (w *worker) check(ctx context.Context, c *Container, a *Action) probe.Outcome {
	check := probe.Check{Exec: a.Exec}
	var err error
	switch {
	case a.HTTP != nil:
		h := &probe.HTTP{Scheme: "http", Host: a.HTTP.Host, Path: a.HTTP.Path, Headers: a.HTTP.Headers}
		if a.HTTP.TLS {
			h.Scheme = "https"
		}
		h.Port, err = port(c, a.HTTP.Port)
		check.HTTP = h
	case a.TCP != nil:
		check.TCP = &probe.TCP{Host: a.TCP.Host}
		check.TCP.Port, err = port(c, a.TCP.Port)
	case a.GRPC != nil:
		check.GRPC = &probe.GRPC{Service: a.GRPC.Service}
		check.GRPC.Port, err = port(c, a.GRPC.Port)
	}
	if err != nil {
		return probe.Outcome{Message: err.Error()}
	}
	return probe.Run(ctx, check, w.target(c))
}

func (w *worker) target(c *Container) probe.Target {
	addr := "127.0.0.1"
	w.mu.Lock()
	if len(w.st.IPs) > 0 {
		addr = w.st.IPs[0].String()
	}
	w.mu.Unlock()
	return probe.Target{
		Addr: addr,
		Dial: w.dial,
		Exec: func(ctx context.Context, argv []string) (int, []byte, error) { return w.execOutput(ctx, c.Name, argv) },
	}
}

// dial connects from inside the pod's network namespace.
func (w *worker) dial(ctx context.Context, network, addr string) (conn net.Conn, err error) {
	ns := w.nsPath(namespace.Net)
	if ns == "" {
		return dialHere(ctx, network, addr)
	}
	err = namespace.Do(ns, func() error {
		conn, err = dialHere(ctx, network, addr)
		return err
	})
	return conn, err
}

// dialHere connects without leaving the calling thread: package net may dial from
// goroutines of its own, which are in the host's namespace.
func dialHere(ctx context.Context, network, addr string) (net.Conn, error) {
	if network != "tcp" && network != "tcp4" && network != "tcp6" {
		return nil, errs.New(errs.Unsupported, "dial %s", network)
	}
	ap, err := net.ResolveTCPAddr("tcp", addr)
	if err != nil {
		return nil, err
	}
	family, sa := unix.AF_INET6, unix.Sockaddr(nil)
	if ip4 := ap.IP.To4(); ip4 != nil {
		family, sa = unix.AF_INET, &unix.SockaddrInet4{Port: ap.Port, Addr: [4]byte(ip4)}
	} else {
		sa = &unix.SockaddrInet6{Port: ap.Port, Addr: [16]byte(ap.IP.To16())}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), addr)
	defer f.Close()
	if err := unix.Connect(fd, sa); err != nil && err != unix.EINPROGRESS {
		return nil, &net.OpError{Op: "dial", Net: network, Addr: ap, Err: err}
	}
	for {
		wait := 1000
		if t, ok := ctx.Deadline(); ok {
			wait = int(min(max(0, time.Until(t)/time.Millisecond), 1000))
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, wait)
		if err != nil && err != unix.EINTR {
			return nil, err
		}
		if n > 0 {
			break
		}
		if err := ctx.Err(); err != nil {
			return nil, &net.OpError{Op: "dial", Net: network, Addr: ap, Err: err}
		}
	}
	if errno, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR); err != nil || errno != 0 {
		return nil, &net.OpError{Op: "dial", Net: network, Addr: ap, Err: errors.Join(err, unix.Errno(errno))}
	}
	return net.FileConn(f)
}

// hook runs a lifecycle hook of an incarnation. It ends with its container: there is
// nothing left to prepare, or to wait for, then.
func (w *worker) hook(ctx context.Context, c *Container, id ContainerID, a *Action) probe.Outcome {
	within, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	var ended atomic.Bool
	wg.Go(func() {
		if _, err := w.p.runtime.wait(within, string(id)); err == nil || isGone(err) {
			ended.Store(true)
			cancel()
		}
	})
	var o probe.Outcome
	if a.Sleep > 0 {
		select {
		case <-time.After(a.Sleep):
			o.OK = true
		case <-within.Done():
		}
	} else {
		o = w.check(within, c, a)
	}
	cancel()
	wg.Wait()
	if ended.Load() {
		o = probe.Outcome{OK: true}
	}
	return o
}

// execOutput runs a command in the container and returns what it printed, up to 10 KiB.
func (w *worker) execOutput(ctx context.Context, container string, argv []string) (int, []byte, error) {
	st := w.container(container)
	if st.State != RunningNow {
		return 0, nil, errs.New(errs.FailedPrecondition, "container %s does not run", container)
	}
	process, err := w.processLike(st.ID, argv, false)
	if err != nil {
		return 0, nil, err
	}
	r, out, err := processPipe(true)
	if err != nil {
		return 0, nil, err
	}
	defer r.Close()
	c, err := w.p.runtime.get(ctx)
	if err != nil {
		out.Close()
		return 0, nil, err
	}
	e, err := c.Exec(ctx, string(st.ID), keeper.ExecSpec{Process: process, Stdout: out, Stderr: out})
	out.Close()
	if err != nil {
		return 0, nil, err
	}
	var text strings.Builder
	read := make(chan struct{})
	go func() {
		defer close(read)
		io.Copy(&text, io.LimitReader(r, 10<<10))
		io.Copy(io.Discard, r)
	}()
	x, err := e.Wait(ctx)
	if err != nil {
		e.Kill()
		return 0, nil, err
	}
	// What the command left running may keep the pipe: do not wait for that.
	select {
	case <-read:
	case <-time.After(100 * time.Millisecond):
		r.Close()
		<-read
	}
	return x.Code, []byte(text.String()), nil
}

// processFile holds a container's own process as it was asked for. It dies with the machine,
// as it may hold secrets: the run directory is on a tmpfs.
func (w *worker) processFile(id ContainerID) string {
	return filepath.Join(w.runDir(), "containers", string(id), "process.json")
}

// keepProcess records it before the container starts, so that one that runs always has it.
func (w *worker) keepProcess(id ContainerID, p *specs.Process) error {
	raw, err := json.Marshal(p)
	if err != nil {
		return err
	}
	return atomicfile.Write(w.processFile(id), raw, 0o600, false)
}

// processLike is a process with the identity, environment and confinement of the
// container's own.
func (w *worker) processLike(id ContainerID, argv []string, tty bool) (*specs.Process, error) {
	raw, err := os.ReadFile(w.processFile(id))
	if err != nil {
		return nil, err
	}
	var p specs.Process
	if err := json.Unmarshal(raw, &p); err != nil {
		return nil, errs.New(errs.Corrupt, "container %s: read its process: %w", id, err)
	}
	p.Args, p.Terminal = argv, tty
	if tty {
		p.Env = append(append([]string(nil), p.Env...), "TERM=xterm")
	}
	return &p, nil
}
