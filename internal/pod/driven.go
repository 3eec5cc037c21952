package pod

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/fault"
	"github.com/orlop-io/orlop/internal/base/keylock"
	"github.com/orlop-io/orlop/internal/base/store"
	"github.com/orlop-io/orlop/internal/platform/namespace"
)

// Driven is the pods that a client drives step by step, as kubelet does over the CRI: it
// makes a sandbox, makes and starts containers in it, and decides about their restarts.
// Inside, such a pod is the same as an applied one — sandbox, network, specification,
// keeper — without a worker's goroutine: nothing happens but what is asked for.
//
// Records are volatile: they die with the machine, as the containers do. What is to be
// is recorded before it is made, and each step is idempotent, so that a request repeated
// after a deadline, or after the daemon died, goes on where the one before ended.
//
// Every method is safe for concurrent use; those on one pod or container wait for each
// other where they would get in each other's way.
type Driven struct {
	p          *Pods
	sandboxes  store.Bucket[sandboxRecord]   // volatile, by ID
	containers store.Bucket[containerRecord] // volatile, by ContainerID
	hooks      Hooks
	hooked     bool          // hooks are more than none
	locks      keylock.Locks // by the name that a client gives, or by id

	spareOutput atomic.Int64 // how much more of commands' output may be kept

	mu   sync.Mutex
	pods map[ID]*drivenPod
	all  map[ContainerID]*drivenContainer
	subs map[chan DrivenEvent]bool
}

// SandboxConfig is what a client asks of a sandbox. Of Spec the containers are not used.
type SandboxConfig struct {
	Spec
	UID     string // the client's id of the pod; Key, UID and Attempt name the sandbox
	Attempt uint32
	Ports   []Port `json:",omitempty"`
	// LogDir is where log paths of containers begin; "": they have no logs.
	LogDir string `json:",omitempty"`
	// CgroupParent is the client's group for the pod, which is the client's to remove;
	// "": one of our own.
	CgroupParent string `json:",omitempty"`
}

func (c *SandboxConfig) lockName() string {
	return fmt.Sprintf("sandbox/%s/%s/%d", c.Key, c.UID, c.Attempt)
}

// SandboxState is where in its life a sandbox is.
type SandboxState string

const (
	SandboxCreating SandboxState = "creating" // not complete; asked for again it goes on
	SandboxReady    SandboxState = "ready"
	SandboxStopped  SandboxState = "stopped"
)

// Sandbox is a sandbox with what is known of it.
type Sandbox struct {
	ID        ID
	Config    SandboxConfig
	State     SandboxState
	IPs       []netip.Addr
	CreatedAt time.Time
}

// PIDMode says whose PID namespace a container is in.
type PIDMode string

const (
	PIDContainer PIDMode = "container"
	PIDPod       PIDMode = "pod"
	PIDNode      PIDMode = "node"
	PIDTarget    PIDMode = "target" // another container's
)

// ContainerConfig is what a client asks of a container. Of Container are used: Name,
// Image, Command, Args, WorkingDir, Security, Stdin, StdinOnce, TTY, StopSignal.
type ContainerConfig struct {
	Container
	Attempt     uint32
	Labels      map[string]string `json:",omitempty"`
	Annotations map[string]string `json:",omitempty"`
	LogPath     string            `json:",omitempty"` // below the sandbox's LogDir; "": no log
	Variables   []string          `json:",omitempty"` // NAME=value
	Binds       []Bind            `json:",omitempty"`
	Nodes       []DeviceNode      `json:",omitempty"`
	CDI         []string          `json:",omitempty"` // devices by their vendors' names
	Limits      *specs.LinuxResources
	OOMScoreAdj int
	PID         PIDMode     `json:",omitempty"`
	Target      ContainerID `json:",omitempty"`
	NoNewPrivs  bool        `json:",omitempty"`
	// Groups are supplemental, beside those of the image's user unless StrictGroups.
	Groups       []int64 `json:",omitempty"`
	StrictGroups bool    `json:",omitempty"`
	// Ambient capabilities are in all five sets.
	Ambient []string `json:",omitempty"`
	// MaskedPaths and ReadonlyPaths are as they are; a privileged container has none.
	MaskedPaths, ReadonlyPaths []string `json:",omitempty"`
	// Users, where given, are those of the pod's user namespace: it is checked that they are.
	Users *namespace.IDMaps `json:",omitempty"`
}

// Bind is a path of the host, or an image, in a container.
type Bind struct {
	HostPath      string
	Image         string `json:",omitempty"` // an image's files instead; read-only
	SubPath       string `json:",omitempty"` // below the image's root
	ContainerPath string
	ReadOnly      bool   `json:",omitempty"`
	Recursive     bool   `json:",omitempty"` // read-only with everything below
	Propagation   string `json:",omitempty"` // "", HostToContainer, Bidirectional
	// Users map the ids of its files, so that a volume is the same in every user namespace.
	Users *namespace.IDMaps `json:",omitempty"`
}

// DeviceNode is a device of the host, or a directory of devices, in a container.
type DeviceNode struct {
	HostPath, ContainerPath string
	Access                  string // of r, w, m
}

// DrivenState is where in its life a driven container is.
type DrivenState string

const (
	DrivenCreated DrivenState = "created"
	DrivenRunning DrivenState = "running"
	DrivenExited  DrivenState = "exited"
)

// DrivenContainer is a container with what is known of it.
type DrivenContainer struct {
	ID                               ContainerID
	Sandbox                          ID
	Config                           ContainerConfig
	ImageID                          string
	State                            DrivenState
	PID                              int
	CreatedAt, StartedAt, FinishedAt time.Time
	ExitCode                         int
	Reason, Message                  string
	User                             specs.User
	LogPath                          string // absolute; "": none
	Adjustment                       []byte `json:",omitempty"` // what plugins have made of it
	// Checkpoint is the archive that it is restored from when it starts; "": none.
	Checkpoint string `json:",omitempty"`
}

type sandboxRecord struct {
	Sandbox
	Kernel   state
	Answered bool // the client knows the id
	Hooked   bool // plugins know it
}

type containerRecord struct {
	DrivenContainer
	Answered      bool // the client knows the id
	StartAnswered bool // the client knows that it was started
}

// drivenPod is a sandbox in memory. Its worker has the parts that applied pods have; it
// does not run.
type drivenPod struct {
	w *worker

	mu         sync.Mutex
	making     bool // a request is at it, which alone can see it
	rec        sandboxRecord
	containers map[ContainerID]*drivenContainer
}

type drivenContainer struct {
	pod *drivenPod

	ending sync.Mutex // held until everybody is told of its end
	mu     sync.Mutex
	rec    containerRecord
}

var (
	faultDrivenRecorded  = fault.New("pod.driven.sandbox-recorded")
	faultDrivenReady     = fault.New("pod.driven.sandbox-ready")
	faultDrivenStopped   = fault.New("pod.driven.sandbox-stopped")
	faultDrivenForgot    = fault.New("pod.driven.sandbox-forgotten")
	faultDrivenContainer = fault.New("pod.driven.container-recorded")
	faultDrivenStarted   = fault.New("pod.driven.container-started")
	faultDrivenExited    = fault.New("pod.driven.container-exited")
	faultDrivenRemoved   = fault.New("pod.driven.container-removed")
)

// openDriven reads the records.
func openDriven(p *Pods) (*Driven, error) {
	d := &Driven{p: p, hooks: noHooks{}, pods: make(map[ID]*drivenPod), all: make(map[ContainerID]*drivenContainer), subs: make(map[chan DrivenEvent]bool)}
	d.spareOutput.Store(sharedOutput)
	var err error
	if d.sandboxes, err = store.NewBucket[sandboxRecord](p.o.Volatile, "pod.driven.sandboxes"); err != nil {
		return nil, err
	}
	if d.containers, err = store.NewBucket[containerRecord](p.o.Volatile, "pod.driven.containers"); err != nil {
		return nil, err
	}
	pods, err := d.sandboxes.All()
	if err != nil {
		return nil, err
	}
	for _, r := range pods {
		d.pods[r.ID] = d.newPod(r)
	}
	all, err := d.containers.All()
	if err != nil {
		return nil, err
	}
	for id, r := range all {
		pod := d.pods[r.Sandbox]
		if pod == nil { // removed with its sandbox, whose record goes first
			if err := d.containers.Delete(id); err != nil {
				return nil, err
			}
			continue
		}
		c := &drivenContainer{pod: pod, rec: r}
		pod.containers[r.ID], d.all[r.ID] = c, c
		pod.show(&r.DrivenContainer)
	}
	return d, nil
}

// Driven returns the pods that a client drives.
func (p *Pods) Driven() *Driven { return p.driven }

func (d *Driven) newPod(r sandboxRecord) *drivenPod {
	pod := &drivenPod{rec: r, containers: make(map[ContainerID]*drivenContainer)}
	r.Kernel.ID = r.ID
	pod.w = newWorker(d.p, manifest{Spec: r.Config.Spec, ID: r.ID, CreatedAt: r.CreatedAt}, r.Kernel)
	pod.w.m.Spec.hostPorts = r.Config.Ports
	pod.w.driven, pod.w.cgroup = true, r.Config.CgroupParent
	pod.w.save = func(st state) error {
		pod.mu.Lock()
		defer pod.mu.Unlock()
		pod.rec.Kernel, pod.rec.IPs = st, st.IPs
		return d.sandboxes.Put(string(pod.rec.ID), pod.rec)
	}
	return pod
}

// setState changes the sandbox's state and records it.
func (d *Driven) setState(pod *drivenPod, s SandboxState) error {
	pod.mu.Lock()
	defer pod.mu.Unlock()
	pod.rec.State = s
	return d.sandboxes.Put(string(pod.rec.ID), pod.rec)
}

func (pod *drivenPod) isHooked() bool {
	pod.mu.Lock()
	defer pod.mu.Unlock()
	return pod.rec.Hooked
}

func (pod *drivenPod) sandbox() Sandbox {
	pod.mu.Lock()
	defer pod.mu.Unlock()
	return pod.rec.Sandbox
}

func (c *drivenContainer) status() DrivenContainer {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rec.DrivenContainer
}

// show makes the container visible in what `orlop ps` and `orlop exec` look at.
func (pod *drivenPod) show(c *DrivenContainer) {
	st := ContainerStatus{Name: c.Config.Name, ID: c.ID, Image: c.Config.Image, ImageID: c.ImageID, Restarts: int(c.Config.Attempt), PID: c.PID,
		StartedAt: c.StartedAt, FinishedAt: c.FinishedAt, ExitCode: c.ExitCode, Reason: c.Reason, Message: c.Message}
	switch c.State {
	case DrivenCreated:
		st.State, st.Reason = Waiting, "ContainerCreating"
	case DrivenRunning:
		st.State, st.Ready, st.Started = RunningNow, true, true
	case DrivenExited:
		st.State = Terminated
	}
	w := pod.w
	w.mu.Lock()
	defer w.mu.Unlock()
	w.st.Phase = Running
	if i := slices.IndexFunc(w.st.Containers, func(s ContainerStatus) bool { return s.Name == st.Name }); i < 0 {
		w.st.Containers = append(w.st.Containers, st)
	} else if w.st.Containers[i].Restarts <= st.Restarts || w.st.Containers[i].ID == st.ID {
		w.st.Containers[i] = st
	}
	containers := slices.DeleteFunc(slices.Clone(w.m.Spec.Containers), func(o Container) bool { return o.Name == st.Name })
	w.m.Spec.Containers = append(containers, c.Config.Container)
}

// hide takes it out again.
func (pod *drivenPod) hide(c *DrivenContainer) {
	w := pod.w
	w.mu.Lock()
	defer w.mu.Unlock()
	before := len(w.st.Containers)
	w.st.Containers = slices.DeleteFunc(slices.Clone(w.st.Containers), func(s ContainerStatus) bool { return s.ID == c.ID })
	if len(w.st.Containers) < before {
		w.m.Spec.Containers = slices.DeleteFunc(slices.Clone(w.m.Spec.Containers), func(o Container) bool { return o.Name == c.Config.Name })
	}
}

// worker finds the newest driven pod of that name.
func (d *Driven) worker(k Key) *worker {
	d.mu.Lock()
	defer d.mu.Unlock()
	var best *drivenPod
	for _, pod := range d.pods {
		if pod.rec.Config.Key == k && (best == nil || best.rec.CreatedAt.Before(pod.rec.CreatedAt)) {
			best = pod
		}
	}
	if best == nil {
		return nil
	}
	return best.w
}

func (d *Driven) workers() (list []*worker) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, pod := range d.pods {
		list = append(list, pod.w)
	}
	return list
}

func (d *Driven) pod(id ID) (*drivenPod, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if pod := d.pods[id]; pod != nil {
		return pod, nil
	}
	return nil, errs.New(errs.NotFound, "there is no pod sandbox %q", id)
}

func (d *Driven) container(id ContainerID) (*drivenContainer, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if c := d.all[id]; c != nil {
		return c, nil
	}
	return nil, errs.New(errs.NotFound, "there is no container %q", id)
}

// Sandbox returns one, or errs.NotFound.
func (d *Driven) Sandbox(id ID) (Sandbox, error) {
	pod, err := d.pod(id)
	if err != nil {
		return Sandbox{}, err
	}
	return pod.sandbox(), nil
}

// Sandboxes returns all, in the order in which they were made.
func (d *Driven) Sandboxes() []Sandbox {
	d.mu.Lock()
	pods := make([]*drivenPod, 0, len(d.pods))
	for _, pod := range d.pods {
		pods = append(pods, pod)
	}
	d.mu.Unlock()
	list := make([]Sandbox, 0, len(pods))
	for _, pod := range pods {
		pod.mu.Lock()
		if !pod.making {
			list = append(list, pod.rec.Sandbox)
		}
		pod.mu.Unlock()
	}
	slices.SortFunc(list, func(a, b Sandbox) int { return a.CreatedAt.Compare(b.CreatedAt) })
	return list
}

// Container returns one, or errs.NotFound.
func (d *Driven) Container(id ContainerID) (DrivenContainer, error) {
	c, err := d.container(id)
	if err != nil {
		return DrivenContainer{}, err
	}
	return c.status(), nil
}

// Containers returns all, those of one sandbox where it is given, in the order in which
// they were made.
func (d *Driven) Containers(sandbox ID) []DrivenContainer {
	d.mu.Lock()
	var found []*drivenContainer
	if sandbox == "" {
		found = make([]*drivenContainer, 0, len(d.all))
		for _, c := range d.all {
			found = append(found, c)
		}
	} else if pod := d.pods[sandbox]; pod != nil {
		pod.mu.Lock()
		for _, c := range pod.containers {
			found = append(found, c)
		}
		pod.mu.Unlock()
	}
	d.mu.Unlock()
	list := make([]DrivenContainer, 0, len(found))
	for _, c := range found {
		list = append(list, c.status())
	}
	slices.SortFunc(list, func(a, b DrivenContainer) int { return a.CreatedAt.Compare(b.CreatedAt) })
	return list
}
