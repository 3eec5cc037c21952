package pod

import (
	"context"
	"io"
	"net"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/cgroup"
	"github.com/orlop-io/orlop/internal/platform/namespace"
)

// running returns a container that runs.
func (d *Driven) running(id ContainerID) (*drivenContainer, DrivenContainer, error) {
	c, err := d.container(id)
	if err != nil {
		return nil, DrivenContainer{}, err
	}
	st := c.status()
	if st.State != DrivenRunning {
		return nil, st, errs.New(errs.FailedPrecondition, "container %s is %s; it must run", id, st.State)
	}
	return c, st, nil
}

// Exec runs a command in a container that runs, as Pods.Exec does.
func (d *Driven) Exec(ctx context.Context, id ContainerID, o ExecOptions) (*Session, error) {
	c, st, err := d.running(id)
	if err != nil {
		return nil, err
	}
	return c.pod.w.exec(ctx, st.Config.Name, id, o)
}

// Attach connects to the streams of a container's own process, as Pods.Attach does.
func (d *Driven) Attach(ctx context.Context, id ContainerID, o AttachOptions) (*Session, error) {
	c, st, err := d.running(id)
	if err != nil {
		return nil, err
	}
	return c.pod.w.attach(ctx, &st.Config.Container, id, o)
}

// Dial connects to a port inside the pod, on its loopback interface.
func (d *Driven) Dial(ctx context.Context, id ID, port uint16) (net.Conn, error) {
	pod, err := d.pod(id)
	if err != nil {
		return nil, err
	}
	if s := pod.sandbox(); s.State != SandboxReady {
		return nil, errs.New(errs.FailedPrecondition, "pod sandbox %s is %s; it must be ready", id, s.State)
	}
	return pod.w.dialPort(ctx, port)
}

// Output is what a command has written, up to a limit, and how it ended.
type Output struct {
	Stdout, Stderr []byte
	Code           int
	Truncated      bool // more was written than the limit
}

// Run runs a command to its end. When ctx ends first the command is killed and the error
// is ctx's. Of each stream at most limit bytes are kept; the rest is read and dropped, so
// that the command is not held up.
func (d *Driven) Run(ctx context.Context, id ContainerID, command []string, limit int64) (Output, error) {
	var out Output
	s, err := d.Exec(ctx, id, ExecOptions{Command: command})
	if err != nil {
		return out, err
	}
	defer s.Close()
	var wg sync.WaitGroup
	kept := [2]capped{{limit: limit}, {limit: limit}}
	for i, r := range []io.Reader{s.Stdout, s.Stderr} {
		wg.Go(func() { io.Copy(&kept[i], r) })
	}
	code, _, err := s.Wait(ctx)
	if err != nil {
		s.Signal(context.WithoutCancel(ctx), int(unix.SIGKILL))
		s.Close()
		wg.Wait()
		return out, err
	}
	s.Drain(wg.Wait)
	return Output{Stdout: kept[0].b, Stderr: kept[1].b, Code: code, Truncated: kept[0].over || kept[1].over}, nil
}

// capped keeps the first bytes that are written to it.
type capped struct {
	b     []byte
	limit int64
	over  bool
}

func (c *capped) Write(b []byte) (int, error) {
	room := min(int64(len(b)), c.limit-int64(len(c.b)))
	c.b = append(c.b, b[:room]...)
	c.over = c.over || room < int64(len(b))
	return len(b), nil
}

// ContainerUsage is what a container's control group counts, and errs.FailedPrecondition
// for one that does not run.
func (d *Driven) ContainerUsage(id ContainerID) (cgroup.Stats, error) {
	c, _, err := d.running(id)
	if err != nil {
		return cgroup.Stats{}, err
	}
	g, err := d.p.cgroups.Load(c.pod.w.group() + "/" + string(id))
	if err != nil {
		return cgroup.Stats{}, err
	}
	return g.Stats()
}

// SandboxUsage is what the pod's control group counts.
func (d *Driven) SandboxUsage(id ID) (cgroup.Stats, error) {
	pod, err := d.pod(id)
	if err != nil {
		return cgroup.Stats{}, err
	}
	g, err := d.p.cgroups.Load(pod.w.group())
	if err != nil {
		return cgroup.Stats{}, err
	}
	return g.Stats()
}

// NetworkUsage is what went through the pod's own interface.
type NetworkUsage struct {
	At                          time.Time
	Interface                   string
	ReceiveBytes, TransmitBytes uint64

	ReceivePackets, ReceiveErrors, ReceiveDrops    uint64
	TransmitPackets, TransmitErrors, TransmitDrops uint64
}

// SandboxNetwork returns the pod's traffic; a pod on the host's network has none of its own.
func (d *Driven) SandboxNetwork(id ID) (NetworkUsage, error) {
	pod, err := d.pod(id)
	if err != nil {
		return NetworkUsage{}, err
	}
	u := NetworkUsage{At: time.Now(), Interface: "eth0"}
	ns := pod.w.nsPath(namespace.Net)
	if ns == "" || pod.sandbox().State != SandboxReady {
		return u, nil
	}
	err = namespace.Do(ns, func() error {
		for i, to := range []*uint64{&u.ReceiveBytes, &u.ReceivePackets, &u.ReceiveErrors, &u.ReceiveDrops} {
			*to = counter(i)
		}
		for i, to := range []*uint64{&u.TransmitBytes, &u.TransmitPackets, &u.TransmitErrors, &u.TransmitDrops} {
			*to = counter(8 + i)
		}
		return nil
	})
	return u, err
}

// NetworkNamespace is the path of the pod's network namespace, "" for the host's.
func (d *Driven) NetworkNamespace(id ID) string {
	pod, err := d.pod(id)
	if err != nil {
		return ""
	}
	return pod.w.nsPath(namespace.Net)
}
