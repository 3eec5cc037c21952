package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/executor"
	"github.com/orlop-io/orlop/internal/platform/keeper"
	"github.com/orlop-io/orlop/internal/platform/namespace"
)

// CreateContainer records a container of a sandbox that is ready, and checks whatever can
// be checked without starting it: image, user, mounts, devices, profile. Like RunSandbox it
// goes on with a request whose client was not told.
func (d *Driven) CreateContainer(ctx context.Context, sandbox ID, c ContainerConfig) (ContainerID, error) {
	pod, err := d.pod(sandbox)
	if err != nil {
		return "", err
	}
	if err := c.check(); err != nil {
		return "", err
	}
	unlock, err := d.locks.Lock(ctx, fmt.Sprintf("container/%s/%s/%d", sandbox, c.Name, c.Attempt))
	if err != nil {
		return "", err
	}
	defer unlock()
	box := pod.sandbox()
	if box.State != SandboxReady {
		return "", errs.New(errs.FailedPrecondition, "pod sandbox %s is %s; containers can be made only in a ready one", sandbox, box.State)
	}
	for _, old := range d.Containers(sandbox) {
		if old.Config.Name != c.Name || old.Config.Attempt != c.Attempt {
			continue
		}
		dc, err := d.container(old.ID)
		if err != nil {
			continue
		}
		dc.mu.Lock()
		again := !dc.rec.Answered && dc.rec.State == DrivenCreated
		dc.rec.Answered = true
		dc.mu.Unlock()
		if again {
			return old.ID, nil
		}
		return "", errs.New(errs.AlreadyExists, "pod %s has a container %s of attempt %d already: %s (remove it, or ask for another attempt)", box.Config.Key, c.Name, c.Attempt, old.ID)
	}
	if c.Users != nil && !c.Users.Equal(box.Config.Users) {
		return "", errs.New(errs.Invalid, "container %s of pod %s: its user namespace's mappings are not the pod's; leave them out, or give the same", c.Name, box.Config.Key)
	}
	log, err := validLogPath(box.Config.LogDir, c.LogPath)
	if err != nil {
		return "", err
	}
	from, err := d.checkpointed(pod, &c)
	if err != nil {
		return "", fmt.Errorf("container %s of pod %s: %w", c.Name, box.Config.Key, err)
	}
	img, err := d.p.o.Images.Use(ctx, c.Image)
	if err != nil {
		return "", err
	}
	id := newContainerID()
	oci, _, release, err := d.buildContainer(ctx, pod, id, &c, img, true)
	if err != nil {
		return "", err
	}
	release()
	if err := from.fits(oci); err != nil {
		return "", fmt.Errorf("container %s of pod %s: %w", c.Name, box.Config.Key, err)
	}
	rec := containerRecord{DrivenContainer: DrivenContainer{
		ID: id, Sandbox: sandbox, Config: c, ImageID: img.ID, State: DrivenCreated, CreatedAt: time.Now(), User: oci.Process.User, LogPath: log,
		Checkpoint: from.location,
	}}
	dc, updates, err := d.admitContainer(ctx, pod, rec, oci)
	if err != nil {
		return "", fmt.Errorf("container %s of pod %s: %w", c.Name, box.Config.Key, err)
	}
	if err := d.Apply(ctx, updates); err != nil {
		err = fmt.Errorf("container %s of pod %s: what a plugin asks for other containers: %w", c.Name, box.Config.Key, err)
		return "", errors.Join(err, d.RemoveContainer(context.WithoutCancel(ctx), id))
	}
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	dc.mu.Lock()
	dc.rec.Answered = true
	dc.mu.Unlock()
	return id, nil
}

// admitContainer asks plugins and, if they let it, records and shows the container.
func (d *Driven) admitContainer(ctx context.Context, pod *drivenPod, rec containerRecord, oci *specs.Spec) (_ *drivenContainer, updates []LimitsUpdate, err error) {
	id, sandbox := rec.ID, rec.Sandbox
	defer d.hooks.Hold()()
	hooked, own := d.hookedPod(pod), HookedContainer{rec.DrivenContainer, oci, pod.w.group() + "/" + string(id)}
	defer func() {
		if err != nil && d.hooked { // those that were asked first let it, and do not know
			if _, herr := d.hooks.Container(context.WithoutCancel(ctx), HookRemove, hooked, own); herr != nil {
				d.p.log.Error("a plugin failed", "hook", HookRemove, "container", id, "error", herr)
			}
		}
	}()
	if rec.Adjustment, updates, err = d.hooks.Create(ctx, hooked, own); err != nil {
		return nil, nil, fmt.Errorf("a plugin refuses it: %w", err)
	}
	if err := d.hooks.Adjust(oci, rec.Adjustment); err != nil {
		return nil, nil, fmt.Errorf("adjust it as plugins say: %w", err)
	}
	if err := d.containers.Put(string(id), rec); err != nil {
		return nil, nil, err
	}
	faultDrivenContainer.Hit()
	dc := &drivenContainer{pod: pod, rec: rec}
	d.mu.Lock()
	if d.pods[sandbox] == nil { // removed meanwhile
		d.mu.Unlock()
		d.containers.Delete(string(id))
		return nil, nil, errs.New(errs.NotFound, "there is no pod sandbox %q any more", sandbox)
	}
	d.all[id] = dc
	pod.mu.Lock()
	pod.containers[id] = dc
	pod.mu.Unlock()
	d.mu.Unlock()
	pod.show(&rec.DrivenContainer)
	d.publish(EventCreated, sandbox, id)
	more, herr := d.hooks.Container(ctx, HookPostCreate, hooked, own)
	if herr != nil {
		d.p.log.Error("a plugin failed", "hook", HookPostCreate, "container", id, "error", herr)
	}
	return dc, append(updates, more...), nil
}

// StartContainer starts a container that was made. Started already, it is
// errs.FailedPrecondition, unless the client before was not told. What a client gave up
// waiting for goes on, and who asks again waits for that.
func (d *Driven) StartContainer(ctx context.Context, id ContainerID) (err error) {
	c, err := d.container(id)
	if err != nil {
		return err
	}
	unlock, err := d.locks.Lock(ctx, string(id))
	if err != nil {
		return err
	}
	defer unlock()
	defer func() {
		if err == nil && ctx.Err() == nil {
			c.mu.Lock()
			c.rec.StartAnswered = true
			c.mu.Unlock()
		}
	}()
	st := c.status()
	if st.State != DrivenCreated {
		if c.startedUnanswered() {
			return nil
		}
		return errs.New(errs.FailedPrecondition, "container %s is %s; only a created one can be started", id, st.State)
	}
	pod, w := c.pod, c.pod.w
	box := pod.sandbox()
	if box.State != SandboxReady {
		return errs.New(errs.FailedPrecondition, "pod sandbox %s is %s; containers can be started only in a ready one", box.ID, box.State)
	}
	img, err := d.p.o.Images.Find(ctx, st.ImageID)
	if err != nil {
		return err
	}
	disk := filepath.Join(d.p.o.Root, "containers", string(id))
	for _, dir := range []string{filepath.Join(disk, "upper"), filepath.Join(disk, "work"), filepath.Join(w.runDir(), "containers", string(id))} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	conf := st.Config
	oci, layers, release, err := d.buildContainer(ctx, pod, id, &conf, img, false)
	if err != nil {
		return err
	}
	defer release()
	if err := d.hooks.Adjust(oci, st.Adjustment); err != nil {
		return err
	}
	if err := w.keepProcess(id, oci.Process); err != nil {
		return err
	}
	log := keeper.LogConfig{Path: st.LogPath}
	if log.Path != "" {
		log.Root = pod.rec.Config.LogDir
		if err := makeLogDir(log.Root, log.Path); err != nil {
			return err
		}
	}
	runtime, err := d.p.handlers.runtimeFor(ctx, &box.Config.Spec, oci.Mounts)
	if err != nil {
		return err
	}
	if conf.Security.ReadOnlyRoot {
		oci.Root = &specs.Root{Path: "/", Readonly: true}
	}
	var restore *keeper.Restore
	if st.Checkpoint != "" {
		r := restoring{d: d, st: &st, w: w, layers: layers}
		defer r.forget()
		if runtime, restore, err = r.prepare(ctx); err != nil {
			err = fmt.Errorf("restore container %s: %w", id, err)
			d.failed(c, err)
			return err
		}
	}
	letGo := d.hooks.Hold()
	held := true
	unhold := func() {
		if held {
			letGo()
		}
		held = false
	}
	defer unhold()
	var updates []LimitsUpdate
	if d.hooked {
		if updates, err = d.hooks.Container(ctx, HookStart, d.hookedPod(pod), HookedContainer{st, oci, w.group() + "/" + string(id)}); err != nil {
			return fmt.Errorf("container %s: a plugin refuses its start: %w", id, err)
		}
	}
	started, err := d.p.runtime.run(ctx, keeper.Spec{
		ID: string(id), OCI: oci, Rootfs: executor.Rootfs{Lower: layers, Upper: filepath.Join(disk, "upper"), Work: filepath.Join(disk, "work"), IDMap: w.nsPath(namespace.User) != ""},
		Cgroup: filepath.Join(w.group(), string(id)), Log: log, Stdin: conf.Stdin, StdinOnce: conf.StdinOnce,
		Labels:  map[string]string{"pod": string(pod.rec.ID), "container": conf.Name},
		Runtime: runtime, Restore: restore,
	})
	faultDrivenStarted.Hit()
	if err != nil {
		unhold()
		d.failed(c, err)
		return err
	}
	if err := d.started(c, started); err != nil {
		return err
	}
	if d.hooked {
		more, err := d.hooks.Container(ctx, HookPostStart, d.hookedPod(pod), HookedContainer{c.status(), oci, w.group() + "/" + string(id)})
		if err != nil {
			d.p.log.Error("a plugin failed", "hook", HookPostStart, "container", id, "error", err)
		}
		updates = append(updates, more...)
	}
	unhold()
	if err := d.Apply(ctx, updates); err != nil {
		d.p.log.Error("what a plugin asked for failed", "hook", HookStart, "container", id, "error", err)
	}
	// It may have ended before it was known to run, and its event with it.
	if s, err := d.p.runtime.status(ctx, string(id)); err == nil && s.Exit != nil {
		d.exited(c, *s.Exit)
	}
	return nil
}

// startedUnanswered tells of a container that was started, and of which no client was told so.
func (c *drivenContainer) startedUnanswered() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.rec.StartAnswered && !c.rec.StartedAt.IsZero() && c.rec.Reason != reasonStartError
}

// started records the start that the keeper told, if it was not known.
func (d *Driven) started(c *drivenContainer, s keeper.Started) error {
	c.mu.Lock()
	if c.rec.State != DrivenCreated {
		c.mu.Unlock()
		return nil
	}
	c.rec.State, c.rec.PID, c.rec.StartedAt = DrivenRunning, s.PID, s.At
	rec := c.rec
	err := d.containers.Put(string(rec.ID), rec)
	c.mu.Unlock()
	c.pod.show(&rec.DrivenContainer)
	d.publish(EventStarted, rec.Sandbox, rec.ID)
	return err
}

// reasonStartError is Kubernetes' word for a container whose program could not be executed.
const reasonStartError = "StartError"

// failed records a start that cannot succeed, with the code that a shell would have. One
// that may, because the keeper was lost or the client gave up, leaves the container as it
// was.
func (d *Driven) failed(c *drivenContainer, cause error) {
	code := 128
	switch errs.KindOf(cause) {
	case errs.NotFound:
		code = 127
	case errs.PermissionDenied:
		code = 126
	case errs.Invalid, errs.Unsupported, errs.ResourceExhausted, errs.FailedPrecondition:
	default:
		return
	}
	now := time.Now()
	d.end(c, DrivenCreated, func(r *containerRecord) {
		r.StartedAt, r.FinishedAt, r.ExitCode, r.Reason, r.Message = now, now, code, reasonStartError, cause.Error()
	})
}

// exited records the end that the keeper told.
func (d *Driven) exited(c *drivenContainer, x keeper.Exit) {
	reason := endReason(x)
	if x.At.IsZero() {
		x.At = time.Now()
	}
	d.end(c, DrivenRunning, func(r *containerRecord) { r.FinishedAt, r.ExitCode, r.Reason = x.At, x.Code, reason })
}

func (d *Driven) end(c *drivenContainer, from DrivenState, fn func(*containerRecord)) {
	c.ending.Lock()
	defer c.ending.Unlock()
	if !d.ended(c, from, fn) || !d.hooked {
		return
	}
	defer d.hooks.Hold()()
	d.tell(context.Background(), HookStop, c)
}

// ended records the end, and tells whether it was not known.
func (d *Driven) ended(c *drivenContainer, from DrivenState, fn func(*containerRecord)) bool {
	c.mu.Lock()
	if c.rec.State != from {
		c.mu.Unlock()
		return false
	}
	fn(&c.rec)
	c.rec.State, c.rec.PID = DrivenExited, 0
	rec := c.rec
	if err := d.containers.Put(string(rec.ID), rec); err != nil {
		d.p.log.Error("the end of a container could not be recorded; the keeper still knows it", "container", rec.ID, "error", err)
	}
	c.mu.Unlock()
	faultDrivenExited.Hit()
	c.pod.show(&rec.DrivenContainer)
	d.publish(EventStopped, rec.Sandbox, rec.ID)
	return true
}

// StopContainer sends the stop signal and, when the grace is over, SIGKILL to everything
// in the container. It is idempotent, and succeeds where there is no such container.
func (d *Driven) StopContainer(ctx context.Context, id ContainerID, grace time.Duration) error {
	c, err := d.container(id)
	if errors.Is(err, errs.NotFound) {
		return nil
	}
	st := c.status()
	if st.State == DrivenCreated { // not while it starts
		if ended, err := d.stopCreated(ctx, c); ended || err != nil {
			return err
		}
		st = c.status()
	}
	if st.State != DrivenRunning {
		return nil
	}
	// What the client gives up waiting for is brought to its end all the same.
	graceful, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
	defer cancel()
	var signal unix.Signal
	if grace > 0 {
		signal = c.pod.w.stopSignal(ctx, &st.Config.Container)
	}
	x, err := d.p.runtime.end(graceful, string(id), signal)
	if err != nil {
		return fmt.Errorf("stop container %s: %w", id, err)
	}
	d.exited(c, x)
	return nil
}

// stopCreated ends a container that was not started, as far as anybody was told, and tells
// whether it was one. The keeper may be about to start it for a client that gave up, or for a
// daemon before this one.
func (d *Driven) stopCreated(ctx context.Context, c *drivenContainer) (ended bool, err error) {
	id := string(c.status().ID)
	unlock, err := d.locks.Lock(ctx, id)
	if err != nil {
		return false, err
	}
	defer unlock()
	if c.status().State != DrivenCreated {
		return false, nil
	}
	if err := d.p.runtime.destroy(ctx, id); err != nil {
		return false, fmt.Errorf("stop container %s: %w", id, err)
	}
	now := time.Now()
	d.end(c, DrivenCreated, func(r *containerRecord) { r.FinishedAt, r.ExitCode, r.Reason = now, 137, "Error" })
	return true, nil
}

// RemoveContainer removes a container in whatever state it is. It is idempotent.
func (d *Driven) RemoveContainer(ctx context.Context, id ContainerID) error {
	c, err := d.container(id)
	if errors.Is(err, errs.NotFound) {
		return nil
	}
	unlock, err := d.locks.Lock(ctx, string(id))
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := d.container(id); err != nil {
		return nil
	}
	if st := c.status(); st.State == DrivenRunning {
		x, err := d.p.runtime.end(ctx, string(id), 0)
		if err != nil {
			return err
		}
		d.exited(c, x)
	}
	if err := c.pod.w.removeContainer(ctx, id); err != nil {
		return err
	}
	// An end that is being told of comes first.
	c.ending.Lock()
	defer c.ending.Unlock()
	defer d.hooks.Hold()()
	if d.hooked {
		d.tell(ctx, HookRemove, c)
	}
	if err := d.containers.Delete(string(id)); err != nil {
		return err
	}
	faultDrivenRemoved.Hit()
	st := c.status()
	d.mu.Lock()
	delete(d.all, id)
	c.pod.mu.Lock()
	delete(c.pod.containers, id)
	c.pod.mu.Unlock()
	d.mu.Unlock()
	c.pod.hide(&st)
	d.publish(EventDeleted, st.Sandbox, id)
	return nil
}

// ReopenLog opens a container's log anew, after somebody has moved it.
func (d *Driven) ReopenLog(ctx context.Context, id ContainerID) error {
	c, err := d.Container(id)
	if err != nil {
		return err
	}
	if c.State != DrivenRunning {
		return errs.New(errs.FailedPrecondition, "container %s does not run", id)
	}
	return d.p.runtime.do(ctx, func(k *keeper.Client) error { return k.ReopenLog(ctx, string(id)) })
}
