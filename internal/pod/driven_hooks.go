package pod

import (
	"context"
	"errors"
	"fmt"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/namespace"
)

// Hooks are told what happens to driven pods while it happens, and may refuse or change
// it: plugins of the node are behind them. A hook that is asked before something happens
// fails it with its error; one that is told of what cannot be undone is logged.
//
// A method may be called by several goroutines at once, and must not wait for a pod's or
// container's request to end.
type Hooks interface {
	// Hold keeps what plugins that come newly are told of from changing until release is
	// called: what happens under it they are told of either as a state or as an event. It
	// is the innermost lock: whoever holds it takes no other of a pod or container.
	Hold() (release func())
	// Pod tells of a sandbox: HookRun before anybody can see it, HookStop once its
	// containers have ended and before its network goes, HookRemove before its record goes.
	Pod(ctx context.Context, h HookEvent, p HookedPod) error
	// Create asks before there is a container. The adjustment, which may be empty, is kept
	// with the container, for Adjust to change every specification of it.
	Create(ctx context.Context, p HookedPod, c HookedContainer) (adjustment []byte, updates []LimitsUpdate, err error)
	// Container tells of a container.
	Container(ctx context.Context, h HookEvent, p HookedPod, c HookedContainer) ([]LimitsUpdate, error)
	// Update asks before a container's limits change, and returns those to set.
	Update(ctx context.Context, p HookedPod, c HookedContainer, r *specs.LinuxResources) (*specs.LinuxResources, []LimitsUpdate, error)
	// Adjust changes a specification as Create's adjustment says, the same each time.
	Adjust(s *specs.Spec, adjustment []byte) error
}

// HookEvent is what happens.
type HookEvent string

const (
	HookRun        HookEvent = "run"
	HookPostCreate HookEvent = "post-create"
	HookStart      HookEvent = "start"
	HookPostStart  HookEvent = "post-start"
	HookPostUpdate HookEvent = "post-update"
	HookStop       HookEvent = "stop"
	HookRemove     HookEvent = "remove"
)

// HookedPod is a sandbox with what hooks are told of it.
type HookedPod struct {
	Sandbox
	Group      string // its control group
	Namespaces []specs.LinuxNamespace
}

// HookedContainer is a container with its specification, which is nil where it cannot be
// written any more, say without its image.
type HookedContainer struct {
	DrivenContainer
	OCI   *specs.Spec
	Group string
}

// LimitsUpdate changes the limits of a container.
type LimitsUpdate struct {
	Container     ContainerID
	Limits        *specs.LinuxResources
	IgnoreFailure bool
}

// noHooks is where there are none.
type noHooks struct{}

func (noHooks) Hold() func()                                    { return func() {} }
func (noHooks) Pod(context.Context, HookEvent, HookedPod) error { return nil }
func (noHooks) Create(context.Context, HookedPod, HookedContainer) ([]byte, []LimitsUpdate, error) {
	return nil, nil, nil
}
func (noHooks) Container(context.Context, HookEvent, HookedPod, HookedContainer) ([]LimitsUpdate, error) {
	return nil, nil
}
func (noHooks) Update(_ context.Context, _ HookedPod, _ HookedContainer, r *specs.LinuxResources) (*specs.LinuxResources, []LimitsUpdate, error) {
	return r, nil, nil
}
func (noHooks) Adjust(_ *specs.Spec, adjustment []byte) error {
	if len(adjustment) == 0 {
		return nil
	}
	return errs.New(errs.FailedPrecondition, "the container was adjusted by plugins, which the daemon was now started without")
}

// SetHooks sets the hooks; it must be called before the first request.
func (d *Driven) SetHooks(h Hooks) { d.hooks, d.hooked = h, true }

func (d *Driven) hookedPod(pod *drivenPod) HookedPod {
	h := HookedPod{Sandbox: pod.sandbox(), Group: pod.w.group()}
	for kind, of := range map[namespace.Kind]specs.LinuxNamespaceType{
		namespace.Net: specs.NetworkNamespace, namespace.IPC: specs.IPCNamespace, namespace.UTS: specs.UTSNamespace, namespace.User: specs.UserNamespace,
	} {
		if path := pod.w.nsPath(kind); path != "" {
			h.Namespaces = append(h.Namespaces, specs.LinuxNamespace{Type: of, Path: path})
		}
	}
	return h
}

// hookedContainer writes the specification anew: it is asked for seldom.
func (d *Driven) hookedContainer(ctx context.Context, pod *drivenPod, c DrivenContainer) HookedContainer {
	h := HookedContainer{DrivenContainer: c, Group: pod.w.group() + "/" + string(c.ID)}
	if !d.hooked {
		return h
	}
	img, err := d.p.o.Images.Find(ctx, c.ImageID)
	if err == nil {
		var release func()
		if h.OCI, _, release, err = d.buildContainer(ctx, pod, c.ID, &c.Config, img, true); err == nil {
			release()
			err = d.hooks.Adjust(h.OCI, c.Adjustment)
		}
	}
	if err != nil {
		d.p.log.Debug("plugins are told of a container without its specification", "container", c.ID, "error", err)
	}
	return h
}

// tellPod tells of a sandbox, and goes on whatever plugins think of it.
func (d *Driven) tellPod(ctx context.Context, h HookEvent, pod *drivenPod) {
	if err := d.hooks.Pod(context.WithoutCancel(ctx), h, d.hookedPod(pod)); err != nil {
		d.p.log.Error("a plugin failed", "hook", h, "pod", pod.rec.ID, "error", err)
	}
}

// tell tells of a container likewise.
func (d *Driven) tell(ctx context.Context, h HookEvent, c *drivenContainer) {
	ctx = context.WithoutCancel(ctx)
	st := c.status()
	updates, err := d.hooks.Container(ctx, h, d.hookedPod(c.pod), d.hookedContainer(ctx, c.pod, st))
	if err != nil {
		d.p.log.Error("a plugin failed", "hook", h, "container", st.ID, "error", err)
	}
	if err := d.Apply(ctx, updates); err != nil {
		d.p.log.Error("what a plugin asked for failed", "hook", h, "container", st.ID, "error", err)
	}
}

// Apply sets limits that a plugin asks for. It returns the failures that are not to be
// ignored; the other updates are made nonetheless.
func (d *Driven) Apply(ctx context.Context, updates []LimitsUpdate) error {
	var bad []error
	for _, u := range updates {
		c, err := d.container(u.Container)
		if err == nil {
			err = d.setLimits(ctx, c, u.Limits)
		}
		if err != nil && !u.IgnoreFailure {
			bad = append(bad, fmt.Errorf("update container %s: %w", u.Container, err))
		}
	}
	return errors.Join(bad...)
}

// Hooked returns what there is, for plugins that come newly; it is called under their
// side of Hold.
func (d *Driven) Hooked(ctx context.Context) (pods []HookedPod, containers []HookedContainer) {
	for _, b := range d.Sandboxes() {
		pod, err := d.pod(b.ID)
		if err != nil || b.State == SandboxCreating {
			continue
		}
		pods = append(pods, d.hookedPod(pod))
		for _, c := range d.Containers(b.ID) {
			if c.State != DrivenExited {
				containers = append(containers, d.hookedContainer(ctx, pod, c))
			}
		}
	}
	return pods, containers
}
