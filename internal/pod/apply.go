package pod

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// Apply makes the pod be as the spec says. It returns once that is recorded; the
// worker does the rest.
//
// A pod that exists may change its labels, annotations, grace, deadline and its
// containers' images, which restarts those containers; anything else is errs.Invalid.
// A pod that is being deleted is errs.FailedPrecondition.
func (p *Pods) Apply(ctx context.Context, spec Spec) (Change, error) {
	unfit := p.handlers.admit(ctx, &spec) // a runtime may be asked for what it can do: before the lock
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.ctx != nil && p.ctx.Err() != nil {
		return "", errs.New(errs.Unavailable, "the daemon is stopping")
	}
	w := p.workers[spec.Key]
	if w == nil {
		if err := p.checkPorts(&spec); err != nil {
			return "", err
		}
		if unfit != nil {
			return "", fmt.Errorf("pod %s: runtimeClassName: %w", spec.Key, unfit)
		}
		m := manifest{Spec: spec, ID: newID(), CreatedAt: time.Now(), Boot: p.bootMark()}
		if err := p.manifests.Put(spec.Key.String(), m); err != nil {
			return "", err
		}
		faultApplyRecorded.Hit()
		w = newWorker(p, m, newState(&m))
		p.workers[spec.Key] = w
		p.launch(w)
		return ChangeCreated, nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.m.DeletedAt.IsZero() {
		return "", errs.New(errs.FailedPrecondition, "pod %s is being deleted; apply it again when it is gone", spec.Key)
	}
	if reflect.DeepEqual(canonical(w.m.Spec), canonical(spec)) {
		return ChangeUnchanged, nil
	}
	if field := immutable(w.m.Spec, spec); field != "" {
		return "", errs.New(errs.Invalid, "pod %s: %s cannot be changed while the pod exists; delete it first: orlop delete pod %s -n %s", spec.Key, field, spec.Name, spec.Namespace)
	}
	m := w.m
	m.Spec = spec
	if err := p.manifests.Put(spec.Key.String(), m); err != nil {
		return "", err
	}
	faultApplyRecorded.Hit()
	w.m, w.stale = m, true // labels and annotations may be seen in volumes
	w.poke()
	return ChangeUpdated, nil
}

// canonical makes nil and empty the same.
func canonical(s Spec) string {
	raw, _ := json.Marshal(s)
	return string(raw)
}

// immutable names the first field that differs and may not.
func immutable(old, new Spec) string {
	blank := func(s Spec) Spec {
		s.Labels, s.Annotations, s.TerminationGrace, s.ActiveDeadline = nil, nil, 0, 0
		s.Containers, s.Init = slices.Clone(s.Containers), slices.Clone(s.Init)
		for _, l := range [][]Container{s.Containers, s.Init} {
			for i := range l {
				l[i].Image, l[i].PullPolicy = "", ""
			}
		}
		return s
	}
	a, b := reflect.ValueOf(blank(old)), reflect.ValueOf(blank(new))
	for i := range a.NumField() {
		if !a.Type().Field(i).IsExported() { // not of the manifest
			continue
		}
		x, _ := json.Marshal(a.Field(i).Interface())
		y, _ := json.Marshal(b.Field(i).Interface())
		if string(x) != string(y) {
			name := a.Type().Field(i).Name
			return strings.ToLower(name[:1]) + name[1:]
		}
	}
	return ""
}

// checkPorts refuses a host port that another pod has. It is called with mu held.
func (p *Pods) checkPorts(spec *Spec) error {
	for _, c := range append(slices.Clone(spec.Init), spec.Containers...) {
		for _, port := range c.Ports {
			if port.HostPort == 0 {
				continue
			}
			for k, other := range p.workers {
				held, ended := other.wanted()
				if ended {
					continue
				}
				for _, oc := range append(slices.Clone(held.Init), held.Containers...) {
					for _, op := range oc.Ports {
						same := op.HostPort == port.HostPort && op.Protocol == port.Protocol &&
							(op.HostIP == port.HostIP || !op.HostIP.IsValid() || !port.HostIP.IsValid() || op.HostIP.IsUnspecified() || port.HostIP.IsUnspecified())
						if same {
							return errs.New(errs.InUse, "pod %s: host port %d/%s is taken by pod %s; choose another or delete that pod", spec.Key, port.HostPort, port.Protocol, k)
						}
					}
				}
			}
		}
	}
	return nil
}

// grace is how long the pod's containers have to end when it is deleted.
func (m *manifest) grace() time.Duration {
	if m.Grace != nil {
		return *m.Grace
	}
	return m.Spec.TerminationGrace
}

// Delete stops the pod and removes everything of it; claims stay. With Wait it
// returns when the pod is gone; without, once the deletion is recorded.
func (p *Pods) Delete(ctx context.Context, k Key, o DeleteOptions) error {
	w, err := p.worker(k)
	if err != nil {
		return err
	}
	if w.driven {
		return errs.New(errs.FailedPrecondition, "pod %s belongs to a client of the CRI; delete it there (kubectl delete pod, or crictl rmp)", k)
	}
	w.mu.Lock()
	first := w.m.DeletedAt.IsZero()
	// Who asks again may shorten the grace, never prolong it.
	shorter := o.Grace != nil && *o.Grace < w.m.grace()
	if first || shorter {
		m := w.m
		if first {
			m.DeletedAt = time.Now()
		}
		m.Grace = o.Grace
		if err := p.manifests.Put(k.String(), m); err != nil {
			w.mu.Unlock()
			return err
		}
		faultDeleteRecorded.Hit()
		w.m = m
	}
	w.mu.Unlock()
	if first || shorter {
		w.interrupt()
	}
	if !o.Wait {
		return nil
	}
	select {
	case <-w.gone:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-p.stopped():
		return errs.New(errs.Unavailable, "the daemon is stopping; the deletion goes on when it is back")
	}
}

// snapshot returns every pod.
func (p *Pods) snapshot() []Pod {
	p.mu.Lock()
	all := make([]*worker, 0, len(p.workers))
	for _, w := range p.workers {
		all = append(all, w)
	}
	p.mu.Unlock()
	all = append(all, p.driven.workers()...)
	list := make([]Pod, 0, len(all))
	for _, w := range all {
		list = append(list, w.status())
	}
	slices.SortFunc(list, func(a, b Pod) int { return strings.Compare(a.Spec.Key.String(), b.Spec.Key.String()) })
	return list
}

// List returns every pod, by namespace and name.
func (p *Pods) List(ctx context.Context) ([]Pod, error) { return p.snapshot(), nil }

// Get returns one pod.
func (p *Pods) Get(ctx context.Context, k Key) (Pod, error) {
	w, err := p.worker(k)
	if err != nil {
		return Pod{}, err
	}
	return w.status(), nil
}

func configKey(secret bool, namespace, name string) string {
	if secret {
		return "secret/" + namespace + "/" + name
	}
	return "configmap/" + namespace + "/" + name
}

// ApplyConfig makes a config map or secret be as given. Running containers see the
// change in their volumes at once, but for mounts with a subPath; in their environment
// when they start again.
func (p *Pods) ApplyConfig(ctx context.Context, c Config) (Change, error) {
	k := configKey(c.Secret, c.Namespace, c.Name)
	old, err := p.configs.Get(k)
	if err != nil && !errors.Is(err, errs.NotFound) {
		return "", err
	}
	change := ChangeCreated
	if c.CreatedAt = time.Now(); err == nil {
		c.CreatedAt = old.CreatedAt
		x, _ := json.Marshal(old)
		y, _ := json.Marshal(c)
		if c.CreatedAt.Equal(old.CreatedAt) && string(x) == string(y) {
			return ChangeUnchanged, nil
		}
		if old.Immutable {
			return "", errs.New(errs.Invalid, "%s is immutable; delete it first", k)
		}
		if old.Type != c.Type {
			return "", errs.New(errs.Invalid, "%s: the type cannot be changed from %s to %s; delete it first", k, old.Type, c.Type)
		}
		change = ChangeUpdated
	}
	if err := p.configs.Put(k, c); err != nil {
		return "", err
	}
	p.configChanged(c)
	return change, nil
}

// configChanged wakes the pods of its namespace: those that show it, and those that
// wait for it.
func (p *Pods) configChanged(c Config) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for k, w := range p.workers {
		if k.Namespace != c.Namespace {
			continue
		}
		w.mu.Lock()
		w.stale = w.stale || slices.ContainsFunc(w.m.Spec.Volumes, func(v Volume) bool { return v.shows(c.Secret, c.Name) })
		w.mu.Unlock()
		w.poke()
	}
}

// DeleteConfig removes a config map or secret. Pods that need it go on with what
// they have, and cannot start again.
func (p *Pods) DeleteConfig(ctx context.Context, secret bool, namespace, name string) error {
	if _, err := p.Config(ctx, secret, namespace, name); err != nil {
		return err
	}
	return p.configs.Delete(configKey(secret, namespace, name))
}

// Config returns one.
func (p *Pods) Config(ctx context.Context, secret bool, namespace, name string) (Config, error) {
	c, err := p.configs.Get(configKey(secret, namespace, name))
	if errors.Is(err, errs.NotFound) {
		return c, errs.New(errs.NotFound, "%s does not exist", configKey(secret, namespace, name))
	}
	return c, err
}

// Configs returns all config maps, or all secrets.
func (p *Pods) Configs(ctx context.Context, secret bool) ([]Config, error) {
	all, err := p.configs.All()
	if err != nil {
		return nil, err
	}
	var list []Config
	for _, c := range all {
		if c.Secret == secret {
			list = append(list, c)
		}
	}
	slices.SortFunc(list, func(a, b Config) int {
		return strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name)
	})
	return list, nil
}
