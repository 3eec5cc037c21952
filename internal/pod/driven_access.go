package pod

import (
	"context"
	"net"
	"time"

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
