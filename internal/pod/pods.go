package pod

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/fault"
	"github.com/orlop-io/orlop/internal/base/store"
	"github.com/orlop-io/orlop/internal/platform/cgroup"
	"github.com/orlop-io/orlop/internal/platform/ext4"
	"github.com/orlop-io/orlop/internal/platform/keeper"
	"github.com/orlop-io/orlop/internal/platform/mount"
	"github.com/orlop-io/orlop/internal/platform/ociruntime"
)

// Options say where pods live and who provides for them.
type Options struct {
	Root, Run string // durable and volatile directories
	Durable   *store.DB
	Volatile  *store.DB
	Images    Images
	Network   Network
	Volumes   Volumes

	Keeper       keeper.SpawnOptions
	CgroupParent string
	CgroupDriver cgroup.Driver
	SeccompDir   string
	CDIDirs      []string // of specifications of devices
	// Runtimes are the runtime handlers besides DefaultHandler.
	Runtimes    map[string]ociruntime.Runtime
	LogMaxBytes int64
	LogMaxFiles int
	MaxPIDs     int64 // per container; 0: no limit
	// FirstID is the host's first id of those for user namespaces of applied pods, of which there can be so many.
	FirstID        uint32
	UserNamespaces int
	Log            *slog.Logger
}

// Pods is every pod of this host. One goroutine, its worker, looks after each: it
// compares what should be with what is, and does the next thing. Events of the
// keeper, probes and requests only wake it; it is correct without them.
//
// What should be (manifests, with the pod's identity) is in the durable state before
// an apply is acknowledged. What is (containers, their ids and restarts) is in the
// volatile state, and what really runs is what the keeper says.
type Pods struct {
	o   Options
	log *slog.Logger

	manifests store.Bucket[manifest] // durable, by Key
	configs   store.Bucket[Config]   // durable, by kind/namespace/name
	states    store.Bucket[state]    // volatile, by Key
	events    *events
	driven    *Driven
	runtime   *link
	handlers  handlers
	cgroups   *cgroup.Host

	users sync.Mutex // held while ids for a user namespace are chosen

	mu      sync.Mutex
	workers map[Key]*worker
	ctx     context.Context // of all workers; nil before Run
	group   sync.WaitGroup
}

// manifest is what is to be: the durable record of a pod.
type manifest struct {
	Spec      Spec
	ID        ID
	CreatedAt time.Time
	Boot      string    // the boot during which this incarnation came to be
	DeletedAt time.Time `json:",omitzero"` // deletion was asked for; Grace goes with it
	Grace     *time.Duration
	// Done is set once the pod has come to its end by itself: it never starts again.
	Done *Pod `json:",omitempty"`
}

var (
	faultApplyRecorded  = fault.New("pod.apply.manifest-recorded")
	faultDeleteRecorded = fault.New("pod.delete.tombstone-recorded")
	faultDeleteForgot   = fault.New("pod.delete.manifest-removed")
)

// Open reads the state. Nothing is started before Reconcile and Run.
func Open(ctx context.Context, o Options) (*Pods, error) {
	p := &Pods{o: o, log: o.Log, workers: make(map[Key]*worker), handlers: handlers{runtimes: o.Runtimes, log: o.Log}}
	var err error
	if p.manifests, err = store.NewBucket[manifest](o.Durable, "pod.manifests"); err != nil {
		return nil, err
	}
	if p.configs, err = store.NewBucket[Config](o.Durable, "pod.configs"); err != nil {
		return nil, err
	}
	if p.states, err = store.NewBucket[state](o.Volatile, "pod.states"); err != nil {
		return nil, err
	}
	if p.events, err = openEvents(o.Volatile); err != nil {
		return nil, err
	}
	if p.cgroups, err = cgroup.Open(cgroup.Options{Driver: o.CgroupDriver}); err != nil {
		return nil, err
	}
	containers := filepath.Join(o.Root, "containers")
	if err := os.MkdirAll(containers, 0o755); err != nil {
		return nil, err
	}
	if bare, err := ext4.NoJournal(containers); err == nil && bare {
		if err := ext4.Spread(containers); err != nil {
			o.Log.Warn("starts of containers are slowed down by what was deleted shortly before", "error", err)
		}
	}
	if p.driven, err = openDriven(p); err != nil {
		return nil, err
	}
	p.runtime = &link{o: o.Keeper, log: o.Log, wake: p.wakeContainer, wakeAll: p.wakeAll, event: p.driven.onKeeper, found: p.driven.onFound}
	return p, nil
}

// Close lets go of the keeper. Containers go on.
func (p *Pods) Close() error {
	p.runtime.close()
	return nil
}

func bootID() string {
	raw, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(raw))
}

// Reconcile makes what is agree with what should be, before anything new is done:
// pods of an earlier boot begin anew or are marked lost, what belongs to no pod is
// removed, what runs is left alone.
func (p *Pods) Reconcile(ctx context.Context) error {
	all, err := p.manifests.All()
	if err != nil {
		return err
	}
	boot := p.bootMark()
	live := make(map[string]bool)
	for _, m := range all {
		if m.Boot != boot && m.Done == nil && m.DeletedAt.IsZero() {
			if m, err = p.reboot(m, boot); err != nil {
				return err
			}
		}
		st, err := p.states.Get(m.Spec.Key.String())
		if errors.Is(err, errs.NotFound) || err == nil && st.ID != m.ID {
			st = newState(&m)
		} else if err != nil {
			return err
		}
		live[string(m.ID)] = true
		w := newWorker(p, m, st)
		w.stale = true // what was applied when the daemon before us died may not have been shown
		p.mu.Lock()
		p.workers[m.Spec.Key] = w
		p.mu.Unlock()
	}
	if err := p.runtime.connect(ctx); err != nil {
		return err
	}
	if err := p.driven.reconcile(ctx); err != nil {
		return err
	}
	if err := p.driven.sweepCheckpoints(ctx); err != nil {
		return err
	}
	if err := p.sweep(ctx, live); err != nil {
		return err
	}
	if err := p.o.Network.Reconcile(ctx, live); err != nil {
		return fmt.Errorf("reconcile the network: %w", err)
	}
	if err := p.o.Volumes.Reconcile(ctx, live); err != nil {
		return fmt.Errorf("reconcile volumes: %w", err)
	}
	return nil
}

// bootMark is the kernel's boot id, with the volatile state's own mark: a volatile
// state that is new means the same as a new boot.
func (p *Pods) bootMark() string {
	path := filepath.Join(p.o.Run, "boot-mark")
	if raw, err := os.ReadFile(path); err == nil && strings.HasPrefix(string(raw), bootID()) {
		return string(raw)
	}
	mark := bootID() + "." + uuid.NewString()
	if err := os.WriteFile(path, []byte(mark), 0o600); err != nil {
		p.log.Error("the mark of this boot could not be written", "error", err)
	}
	return mark
}

// reboot decides what becomes of a pod of an earlier boot.
func (p *Pods) reboot(m manifest, boot string) (manifest, error) {
	m.Boot = boot
	if m.Spec.RestartPolicy == RestartNever {
		m.Done = &Pod{ID: m.ID, Spec: m.Spec, Phase: Failed, Reason: "NodeRestart", CreatedAt: m.CreatedAt,
			Message: "the machine restarted while the pod ran, and its restartPolicy is Never"}
	} else {
		old := m.ID
		m.ID = newID()
		p.log.Info("the pod starts again after the machine did", "pod", m.Spec.Key, "id", m.ID, "before", old)
	}
	return m, p.manifests.Put(m.Spec.Key.String(), m)
}

func newID() ID { return ID(uuid.NewString()) }

// sweep removes what belongs to no pod: containers, directories, mounts, namespaces.
func (p *Pods) sweep(ctx context.Context, live map[string]bool) error {
	owned := make(map[string]bool)
	p.mu.Lock()
	for _, w := range p.workers {
		for _, c := range w.st.Containers {
			owned[string(c.ID)] = true
		}
		owned[w.pauseID()] = true
	}
	p.mu.Unlock()
	p.driven.owned(live, owned)
	list, err := p.runtime.list(ctx)
	if err != nil {
		return err
	}
	for _, c := range list {
		if !owned[c.ID] {
			p.log.Info("a container that belongs to no pod is removed", "container", c.ID)
			if err := p.runtime.destroy(ctx, c.ID); err != nil {
				return err
			}
		}
	}
	for _, dir := range []struct {
		path string
		keep map[string]bool
	}{{filepath.Join(p.o.Run, "pods"), live}, {filepath.Join(p.o.Root, "pods"), live}, {filepath.Join(p.o.Root, "containers"), owned}} {
		ents, err := os.ReadDir(dir.path)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		for _, e := range ents {
			if dir.keep[e.Name()] {
				continue
			}
			if err := removeTree(ctx, filepath.Join(dir.path, e.Name())); err != nil {
				return err
			}
		}
	}
	return p.sweepGroups(ctx, live)
}

// sweepGroups removes control groups of pods that are no more.
func (p *Pods) sweepGroups(ctx context.Context, live map[string]bool) error {
	kids, err := p.cgroups.Children(p.o.CgroupParent)
	if err != nil {
		return nil // there are none
	}
	for _, k := range kids {
		if live[strings.TrimPrefix(filepath.Base(k), "pod")] {
			continue
		}
		g, err := p.cgroups.Load(filepath.Join(p.o.CgroupParent, filepath.Base(k)))
		if err != nil {
			continue
		}
		if err := g.Kill(9); err != nil && !errors.Is(err, errs.NotFound) {
			return err
		}
		if err := g.Remove(ctx); err != nil {
			return err
		}
	}
	return nil
}

// removeTree unmounts whatever is mounted below the directory and removes it.
func removeTree(ctx context.Context, dir string) error {
	if err := mount.UnmountBelow(ctx, dir, 5*time.Second); err != nil {
		return err
	}
	return mount.RemoveTree(dir)
}

// Run runs the workers until ctx ends. Containers go on afterwards.
func (p *Pods) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p.mu.Lock()
	p.ctx = ctx
	for _, w := range p.workers {
		p.launch(w)
	}
	p.mu.Unlock()
	p.runtime.keepConnected(ctx)
	p.group.Wait()
	return nil
}

// launch is called with mu held.
func (p *Pods) launch(w *worker) {
	if p.ctx == nil || p.ctx.Err() != nil {
		return
	}
	p.group.Go(func() { w.run(p.ctx) })
}

// StopAll stops and removes every running pod, and keeps the manifests: they start
// again when the daemon does. It is for taking the host down, after Reconcile and
// without Run.
func (p *Pods) StopAll(ctx context.Context) error {
	p.mu.Lock()
	var all []*worker
	for _, w := range p.workers {
		all = append(all, w)
	}
	p.mu.Unlock()
	var wg sync.WaitGroup
	bad := make([]error, len(all))
	for i, w := range all {
		wg.Go(func() {
			spec := w.spec()
			if bad[i] = w.stopContainers(ctx, min(spec.TerminationGrace, 10*time.Second)); bad[i] == nil {
				bad[i] = w.teardown(ctx)
			}
		})
	}
	wg.Wait()
	for _, s := range p.driven.Sandboxes() { // their client makes them anew
		bad = append(bad, p.driven.RemoveSandbox(ctx, s.ID))
	}
	if err := errors.Join(bad...); err != nil {
		return err
	}
	return p.runtime.shutdown(ctx)
}

func (p *Pods) worker(k Key) (*worker, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	w := p.workers[k]
	if w == nil {
		w = p.driven.worker(k)
	}
	if w == nil {
		return nil, errs.New(errs.NotFound, "pod %s does not exist; orlop ps -A shows those that do", k)
	}
	return w, nil
}

// wakeContainer wakes the pod that has the container: hundreds of others have nothing
// to look for when one starts.
func (p *Pods) wakeContainer(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, w := range p.workers {
		if w.has(id) {
			w.poke()
			return
		}
	}
}

func (p *Pods) wakeAll() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, w := range p.workers {
		w.poke()
	}
}

// UsedImages returns the ids of images that a container of any pod uses.
func (p *Pods) UsedImages() map[string]bool {
	used := make(map[string]bool)
	for _, pod := range p.snapshot() {
		for _, c := range pod.Containers {
			if c.ImageID != "" && c.ID != "" {
				used[c.ImageID] = true
			}
		}
	}
	return used
}

// Cgroups tells which control groups the machine has and who makes ours.
func (p *Pods) Cgroups() cgroup.Layout { return p.cgroups.Layout() }

// Keeper describes the keeper's process.
func (p *Pods) Keeper(ctx context.Context) (string, error) {
	c, err := p.runtime.get(ctx)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("process %d", c.PID()), nil
}

// UpgradeKeeper makes the keeper become the binary at the path. Containers do not notice.
func (p *Pods) UpgradeKeeper(ctx context.Context, path string) (string, error) {
	c, err := p.runtime.get(ctx)
	if err != nil {
		return "", err
	}
	if err := c.Upgrade(ctx, path); err != nil {
		return "", err
	}
	select {
	case <-c.Done():
	case <-ctx.Done():
		return "", ctx.Err()
	}
	return p.Keeper(ctx)
}
