package pod

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/keeper"
	"github.com/orlop-io/orlop/internal/platform/namespace"
)

// state is what is: the volatile record of a pod.
type state struct {
	ID         ID
	Sandbox    bool // complete
	IPs        []netip.Addr
	Users      *namespace.IDMaps `json:",omitempty"` // chosen for Spec.OwnUsers
	StartedAt  time.Time
	Phase      Phase
	Reason     string
	Message    string
	Containers []ContainerStatus // init containers first, in the order of the spec
}

func newState(m *manifest) state {
	st := state{ID: m.ID, Phase: Pending}
	for i := range m.Spec.Init {
		st.Containers = append(st.Containers, ContainerStatus{Name: m.Spec.Init[i].Name, Init: true, Image: m.Spec.Init[i].Image, State: Waiting, Reason: "PodInitializing"})
	}
	for i := range m.Spec.Containers {
		st.Containers = append(st.Containers, ContainerStatus{Name: m.Spec.Containers[i].Name, Image: m.Spec.Containers[i].Image, State: Waiting, Reason: "PodInitializing"})
	}
	return st
}

// worker looks after one pod.
type worker struct {
	p    *Pods
	key  Key
	id   ID            // of this incarnation
	wake chan struct{} // holds one token
	gone chan struct{} // closed when the pod is no more

	volumes sync.Mutex // held while they are made or written: containers start side by side

	mu     sync.Mutex
	m      manifest
	st     state
	cancel context.CancelFunc // of what the worker is doing
	probes map[ContainerID]*probing
	tries  map[string]retry // of what failed, by what it was

	restarts map[string]time.Duration // containers to restart, by name, with the grace of their end
	hooked   map[ContainerID]bool     // whose preStop hook has begun
	stale    bool                     // configuration that its volumes show may have changed

	save   func(state) error // records it; called with mu held
	cgroup string            // "": below our own parent
	driven bool              // by a client
}

func newWorker(p *Pods, m manifest, st state) *worker {
	return &worker{p: p, key: m.Spec.Key, id: m.ID, m: m, st: st, wake: make(chan struct{}, 1), gone: make(chan struct{}),
		probes: make(map[ContainerID]*probing), tries: make(map[string]retry),
		restarts: make(map[string]time.Duration), hooked: make(map[ContainerID]bool),
		save: func(st state) error { return p.states.Put(m.Spec.Key.String(), st) }}
}

// poke makes the worker look again.
func (w *worker) poke() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// interrupt ends what the worker is doing, for something more important.
func (w *worker) interrupt() {
	w.mu.Lock()
	if w.cancel != nil {
		w.cancel()
	}
	w.mu.Unlock()
	w.poke()
}

func (w *worker) spec() Spec {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.specLocked()
}

// specLocked is the specification, with what was chosen where it leaves a choice. w.mu is held.
func (w *worker) specLocked() Spec {
	spec := w.m.Spec
	if w.st.Users != nil {
		spec.Users = w.st.Users
	}
	return spec
}

// wanted returns what the pod is to be, and whether it has come to its end.
func (w *worker) wanted() (spec Spec, ended bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.specLocked(), w.m.Done != nil
}

// run looks after the pod until it is gone or ctx ends.
func (w *worker) run(ctx context.Context) {
	defer w.stopProbes()
	for ctx.Err() == nil {
		op, cancel := context.WithCancel(ctx)
		w.mu.Lock()
		deleting, done := !w.m.DeletedAt.IsZero(), w.m.Done != nil
		w.cancel = cancel
		w.mu.Unlock()
		var next time.Duration
		var err error
		switch {
		case deleting:
			if err = w.destroy(op); err == nil {
				cancel()
				return
			}
			next = time.Second
		case done:
			next = time.Hour
		default:
			next, err = w.step(op)
		}
		cancel()
		if err != nil && ctx.Err() == nil && !errors.Is(err, context.Canceled) {
			w.p.log.Error("a pod could not be brought further; trying again", "pod", w.key, "error", err)
			next = time.Second
		}
		timer := time.NewTimer(next)
		select {
		case <-w.wake:
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
	}
}

// idle is how long a worker with nothing to do sleeps; events wake it.
const idle = time.Minute

// step does the next things, and says when to look again at the latest.
func (w *worker) step(ctx context.Context) (time.Duration, error) {
	spec := w.spec()
	if d := spec.ActiveDeadline; d > 0 && !w.st.StartedAt.IsZero() && time.Since(w.st.StartedAt) > d {
		return idle, w.finish(ctx, &spec, Failed, "DeadlineExceeded", fmt.Sprintf("the pod was active longer than its deadline of %s", d))
	}
	if wait := w.waiting("sandbox"); wait > 0 {
		return wait, nil
	}
	if err := w.ensureSandbox(ctx, &spec); err != nil {
		if ctx.Err() != nil {
			return 0, err
		}
		w.note("", true, "FailedCreatePodSandBox", err.Error())
		w.update(func(st *state) { st.Reason, st.Message = "FailedCreatePodSandBox", err.Error() })
		return w.later("sandbox", time.Second, 30*time.Second), nil
	}
	w.succeeded("sandbox")
	w.refreshVolumes(ctx, &spec)

	next := idle
	sooner := func(d time.Duration) { next = min(next, max(d, time.Millisecond)) }
	// Once the main containers have begun, an init container, which is a sidecar then,
	// holds them up no more.
	begun := w.begun(&spec)
	initialized := true
	for i := range spec.Init {
		c, st := &spec.Init[i], w.container(spec.Init[i].Name)
		if !c.Sidecar() && st.State == Terminated && st.ExitCode == 0 {
			continue
		}
		d, err := w.advance(ctx, &spec, c)
		if err != nil {
			return 0, err
		}
		sooner(d)
		st = w.container(c.Name)
		if c.Sidecar() {
			if !st.Started || st.State != RunningNow {
				initialized = false
			}
		} else if st.State != Terminated || st.ExitCode != 0 {
			if st.State == Terminated && policyOf(&spec, c) == RestartNever {
				return idle, w.finish(ctx, &spec, Failed, "Init:Error", fmt.Sprintf("init container %s ended with %d", c.Name, st.ExitCode))
			}
			initialized = false
		}
		if !initialized && !begun {
			break
		}
	}
	if initialized || begun {
		// Containers start side by side: one that waits for its image holds up no other.
		var wg sync.WaitGroup
		waits, bad := make([]time.Duration, len(spec.Containers)), make([]error, len(spec.Containers))
		for i := range spec.Containers {
			if len(spec.Containers) == 1 {
				waits[i], bad[i] = w.advance(ctx, &spec, &spec.Containers[i])
				break
			}
			wg.Go(func() { waits[i], bad[i] = w.advance(ctx, &spec, &spec.Containers[i]) })
		}
		wg.Wait()
		if err := errors.Join(bad...); err != nil {
			return 0, err
		}
		for _, d := range waits {
			sooner(d)
		}
	}
	if phase, reason, ended := w.conclude(&spec); ended {
		return idle, w.finish(ctx, &spec, phase, reason, "")
	}
	if d := spec.ActiveDeadline; d > 0 {
		sooner(time.Until(w.st.StartedAt.Add(d)))
	}
	return next, nil
}

// begun tells whether a main container of this incarnation of the pod was ever started.
func (w *worker) begun(spec *Spec) bool {
	return slices.ContainsFunc(spec.Containers, func(c Container) bool {
		st := w.container(c.Name)
		return !st.StartedAt.IsZero() || st.Restarts > 0
	})
}

func policyOf(spec *Spec, c *Container) RestartPolicy {
	if c.Restart != "" {
		return c.Restart
	}
	return spec.RestartPolicy
}

// conclude tells whether every container has come to its end for good.
func (w *worker) conclude(spec *Spec) (phase Phase, reason string, ended bool) {
	phase = Succeeded
	running := false
	for i := range spec.Containers {
		c, st := &spec.Containers[i], w.container(spec.Containers[i].Name)
		policy := policyOf(spec, c)
		over := st.State == Terminated && (policy == RestartNever || policy == RestartOnFailure && st.ExitCode == 0)
		if st.State == RunningNow || st.Restarts > 0 || st.State == Terminated {
			running = true
		}
		if !over {
			phase = ""
		} else if st.ExitCode != 0 && phase != "" {
			phase, reason = Failed, st.Reason
		}
	}
	if phase == "" {
		w.update(func(st *state) {
			st.Phase, st.Reason, st.Message = Pending, "", ""
			if running {
				st.Phase = Running
			}
		})
		return "", "", false
	}
	return phase, reason, true
}

// finish ends what still runs, sidecars say, and records that the pod has come to its
// end by itself.
func (w *worker) finish(ctx context.Context, spec *Spec, phase Phase, reason, message string) error {
	if err := w.stopContainers(ctx, spec.TerminationGrace); err != nil {
		return err
	}
	w.update(func(st *state) { st.Phase, st.Reason, st.Message = phase, reason, message })
	if err := w.teardown(ctx); err != nil {
		return err
	}
	pod := w.status()
	w.mu.Lock()
	defer w.mu.Unlock()
	m := w.m
	m.Done = &pod
	if err := w.p.manifests.Put(m.Spec.Key.String(), m); err != nil {
		return err
	}
	w.m = m
	return nil
}

// destroy removes the pod for good.
func (w *worker) destroy(ctx context.Context) (err error) {
	ctx, span := w.span(ctx, "pod removal")
	defer span.End(&err)
	w.mu.Lock()
	m := w.m
	w.mu.Unlock()
	grace := max(0, m.grace()-time.Since(m.DeletedAt)) // what a daemon before us has waited counts
	if err := w.stopContainers(ctx, grace); err != nil {
		return err
	}
	if err := w.teardown(ctx); err != nil {
		return err
	}
	if err := removeTree(ctx, w.logDir()); err != nil {
		return err
	}
	k := m.Spec.Key.String()
	if err := w.p.states.Delete(k); err != nil {
		return err
	}
	if err := w.p.manifests.Delete(k); err != nil {
		return err
	}
	faultDeleteForgot.Hit()
	w.p.mu.Lock()
	delete(w.p.workers, m.Spec.Key)
	w.p.mu.Unlock()
	close(w.gone)
	return nil
}

// container returns a container's status.
func (w *worker) container(name string) ContainerStatus {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.st.Containers {
		if c.Name == name {
			return c
		}
	}
	return ContainerStatus{}
}

// has tells whether a container of the keeper is of this pod.
func (w *worker) has(id string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.ContainsFunc(w.st.Containers, func(c ContainerStatus) bool { return string(c.ID) == id })
}

// update changes the state and records it.
func (w *worker) update(fn func(*state)) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	before := canonicalState(w.st)
	fn(&w.st)
	if before == canonicalState(w.st) {
		return nil
	}
	return w.save(w.st)
}

func (w *worker) updateContainer(name string, fn func(*ContainerStatus)) error {
	return w.update(func(st *state) {
		for i := range st.Containers {
			if st.Containers[i].Name == name {
				fn(&st.Containers[i])
			}
		}
	})
}

// status returns the pod as others see it.
func (w *worker) status() Pod {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.m.Done != nil {
		pod := *w.m.Done
		pod.DeletedAt = w.m.DeletedAt
		return pod
	}
	pod := Pod{ID: w.id, Spec: w.m.Spec, Phase: w.st.Phase, Reason: w.st.Reason, Message: w.st.Message, IPs: w.st.IPs,
		CreatedAt: w.m.CreatedAt, StartedAt: w.st.StartedAt, DeletedAt: w.m.DeletedAt, Ready: w.st.Phase == Running}
	pod.Containers = append(pod.Containers, w.st.Containers...)
	for _, c := range pod.Containers {
		if !c.Ready && (!c.Init || w.m.Spec.sidecar(c.Name)) {
			pod.Ready = false
		}
		if pod.Reason == "" && c.State == Waiting && c.Reason != "PodInitializing" && c.Reason != "ContainerCreating" {
			pod.Reason, pod.Message = c.Reason, c.Message
		}
	}
	if !w.m.DeletedAt.IsZero() {
		pod.Reason, pod.Ready = "Terminating", false
	}
	return pod
}

// note records an event of the pod.
func (w *worker) note(container string, warning bool, reason, message string) {
	w.p.events.add(Event{Warning: warning, Reason: reason, Message: message, Pod: w.key, PodID: w.id, Container: container})
}

func (w *worker) runDir() string  { return filepath.Join(w.p.o.Run, "pods", string(w.id)) }
func (w *worker) diskDir() string { return filepath.Join(w.p.o.Root, "pods", string(w.id)) }
func (w *worker) logDir() string {
	return filepath.Join(w.p.o.Root, "logs", fmt.Sprintf("%s_%s_%s", w.key.Namespace, w.key.Name, w.id))
}
func (w *worker) pauseID() string { return "pause-" + string(w.id) }

// group is the pod's control group: the client's, where it has made one.
func (w *worker) group() string {
	if w.cgroup != "" {
		return w.cgroup
	}
	return filepath.Join(w.p.o.CgroupParent, "pod"+string(w.id))
}

// lost is the end of a container that nobody saw.
var lost = keeper.Exit{Code: 255}

// isGone tells of an error that says that something does not exist.
func isGone(err error) bool { return errors.Is(err, errs.NotFound) }
