package pod

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// RunSandbox makes a sandbox and returns its id once it is ready. Asked again for one that
// the client before was not told of, because its deadline passed, it goes on with that;
// for one that exists it is errs.AlreadyExists.
func (d *Driven) RunSandbox(ctx context.Context, c SandboxConfig) (ID, error) {
	if err := c.check(); err != nil {
		return "", err
	}
	if err := d.p.handlers.admit(ctx, &c.Spec); err != nil {
		return "", fmt.Errorf("pod %s: %w", c.Key, err)
	}
	unlock, err := d.locks.Lock(ctx, c.lockName())
	if err != nil {
		return "", err
	}
	defer unlock()
	pod, err := d.claimSandbox(c)
	if err != nil {
		return "", err
	}
	id := pod.rec.ID
	defer pod.made()
	if pod.sandbox().State == SandboxCreating {
		spec := pod.w.spec()
		err := pod.w.ensureSandbox(ctx, &spec)
		if err == nil {
			err = d.admitSandbox(ctx, pod)
		}
		if err != nil {
			if ctx.Err() == nil { // nobody will go on with it
				if rerr := d.removePod(context.WithoutCancel(ctx), pod); rerr != nil {
					d.p.log.Error("what is left of a sandbox could not be removed; it is tried again at its removal", "pod", c.Key, "error", rerr)
				}
			}
			return "", fmt.Errorf("pod %s: %w", c.Key, err)
		}
	}
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	pod.mu.Lock()
	pod.rec.Answered = true
	pod.mu.Unlock()
	return id, nil
}

// admitSandbox asks plugins and, if they let it, shows the sandbox.
func (d *Driven) admitSandbox(ctx context.Context, pod *drivenPod) error {
	defer d.hooks.Hold()()
	pod.mu.Lock()
	pod.rec.Hooked = d.hooked
	err := d.sandboxes.Put(string(pod.rec.ID), pod.rec)
	pod.mu.Unlock()
	if err != nil {
		return err
	}
	if err := d.hooks.Pod(ctx, HookRun, d.hookedPod(pod)); err != nil {
		return fmt.Errorf("a plugin refuses it: %w", err)
	}
	if err := d.setState(pod, SandboxReady); err != nil {
		return err
	}
	pod.made()
	faultDrivenReady.Hit()
	d.publish(EventCreated, pod.rec.ID, "")
	d.publish(EventStarted, pod.rec.ID, "")
	return nil
}

// made shows the sandbox in lists, in whatever state it is: one that was given up is there
// to be removed.
func (pod *drivenPod) made() {
	pod.mu.Lock()
	defer pod.mu.Unlock()
	pod.making = false
}

// claimSandbox finds the sandbox that a request before has begun, or records a new one.
func (d *Driven) claimSandbox(c SandboxConfig) (*drivenPod, error) {
	d.mu.Lock()
	for _, pod := range d.pods {
		pod.mu.Lock()
		r := pod.rec
		pod.mu.Unlock()
		if r.Config.Key != c.Key || r.Config.UID != c.UID || r.Config.Attempt != c.Attempt {
			continue
		}
		d.mu.Unlock()
		if r.State == SandboxStopped || r.Answered {
			return nil, errs.New(errs.AlreadyExists, "pod %s has a sandbox of attempt %d already: %s (remove it, or ask for another attempt)", c.Key, c.Attempt, r.ID)
		}
		pod.mu.Lock()
		pod.making = r.State == SandboxCreating
		pod.mu.Unlock()
		return pod, nil
	}
	d.mu.Unlock()
	r := sandboxRecord{Sandbox: Sandbox{ID: ID(newContainerID()), Config: c, State: SandboxCreating, CreatedAt: time.Now()}}
	pod := d.newPod(r)
	pod.making = true
	if err := d.sandboxes.Put(string(r.ID), r); err != nil {
		return nil, err
	}
	faultDrivenRecorded.Hit()
	d.mu.Lock()
	d.pods[r.ID] = pod
	d.mu.Unlock()
	return pod, nil
}

// StopSandbox ends every container of the sandbox, and lets go of its network. It is
// idempotent, and succeeds where there is no such sandbox.
func (d *Driven) StopSandbox(ctx context.Context, id ID) error {
	pod, err := d.pod(id)
	if errors.Is(err, errs.NotFound) {
		return nil
	}
	unlock, err := d.locks.Lock(ctx, pod.rec.Config.lockName())
	if err != nil {
		return err
	}
	defer unlock()
	return d.stopPod(ctx, pod)
}

func (d *Driven) stopPod(ctx context.Context, pod *drivenPod) error {
	if pod.sandbox().State == SandboxStopped {
		return nil
	}
	var wg sync.WaitGroup
	list := d.Containers(pod.rec.ID)
	bad := make([]error, len(list))
	for i, c := range list {
		wg.Go(func() { bad[i] = d.StopContainer(ctx, c.ID, 0) })
	}
	wg.Wait()
	if err := errors.Join(bad...); err != nil {
		return err
	}
	if pod.isHooked() {
		release := d.hooks.Hold()
		d.tellPod(ctx, HookStop, pod)
		release()
	}
	// What containers still need to be looked at afterwards — layers, logs — stays until
	// they are removed.
	if err := pod.w.releaseSandbox(ctx); err != nil {
		return err
	}
	if err := d.setState(pod, SandboxStopped); err != nil {
		return err
	}
	faultDrivenStopped.Hit()
	d.publish(EventStopped, pod.rec.ID, "")
	return nil
}

// RemoveSandbox removes the sandbox with everything in it. It is idempotent.
func (d *Driven) RemoveSandbox(ctx context.Context, id ID) error {
	pod, err := d.pod(id)
	if errors.Is(err, errs.NotFound) {
		return nil
	}
	unlock, err := d.locks.Lock(ctx, pod.rec.Config.lockName())
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := d.pod(id); err != nil {
		return nil // somebody else was faster
	}
	return d.removePod(ctx, pod)
}

func (d *Driven) removePod(ctx context.Context, pod *drivenPod) error {
	if err := d.stopPod(ctx, pod); err != nil {
		return err
	}
	for _, c := range d.Containers(pod.rec.ID) {
		if err := d.RemoveContainer(ctx, c.ID); err != nil {
			return err
		}
	}
	if err := pod.w.teardown(ctx); err != nil {
		return err
	}
	defer d.hooks.Hold()()
	if pod.isHooked() {
		d.tellPod(ctx, HookRemove, pod)
	}
	if err := d.sandboxes.Delete(string(pod.rec.ID)); err != nil {
		return err
	}
	faultDrivenForgot.Hit()
	d.mu.Lock()
	delete(d.pods, pod.rec.ID)
	d.mu.Unlock()
	close(pod.w.gone)
	d.publish(EventDeleted, pod.rec.ID, "")
	return nil
}
