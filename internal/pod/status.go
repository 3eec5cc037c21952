package pod

import (
	"net/netip"
	"slices"
	"time"
)

// Phase is where in its life a pod is, as Kubernetes names it.
type Phase string

const (
	Pending   Phase = "Pending"
	Running   Phase = "Running"
	Succeeded Phase = "Succeeded"
	Failed    Phase = "Failed"
)

// Pod is a pod with what is known of it.
type Pod struct {
	ID         ID
	Spec       Spec
	Phase      Phase
	Ready      bool
	Reason     string // of a phase or of waiting, in Kubernetes' words
	Message    string
	IPs        []netip.Addr
	CreatedAt  time.Time
	StartedAt  time.Time         // when its sandbox was ready
	DeletedAt  time.Time         // when deletion was asked for
	Containers []ContainerStatus // init containers first, in the order of Spec
}

// ContainerState is what a container does.
type ContainerState string

const (
	Waiting    ContainerState = "waiting"
	RunningNow ContainerState = "running"
	Terminated ContainerState = "terminated"
)

// ContainerStatus is what is known of a container.
type ContainerStatus struct {
	Name    string
	Init    bool        // of the pod's init containers, sidecars included
	ID      ContainerID // of the present incarnation; "" before the first
	Image   string      // as asked for
	ImageID string
	State   ContainerState
	Reason  string // ContainerCreating, ImagePullBackOff, CrashLoopBackOff, Completed, Error, OOMKilled, …
	Message string
	Ready   bool
	Started bool // its startup probe, if it has one, has passed
	// HookPending: its postStart hook has not come to its end. A daemon that finds it so
	// runs the hook again.
	HookPending           bool `json:",omitempty"`
	Restarts              int
	PID                   int
	StartedAt, FinishedAt time.Time
	ExitCode, Signal      int
	// Last is how the incarnation before ended.
	Last *Termination `json:",omitempty"`
}

// Termination is the end of one incarnation of a container.
type Termination struct {
	ID                    ContainerID
	Reason, Message       string
	ExitCode, Signal      int
	StartedAt, FinishedAt time.Time
}

// Sidecar tells whether the container is an init container that goes on.
func (c *Container) Sidecar() bool { return c.Restart == RestartAlways }

// sidecar tells whether the init container of that name goes on.
func (s *Spec) sidecar(name string) bool {
	return slices.ContainsFunc(s.Init, func(c Container) bool { return c.Name == name && c.Sidecar() })
}

// Change is what an apply did.
type Change string

const (
	ChangeCreated   Change = "created"
	ChangeUpdated   Change = "configured"
	ChangeUnchanged Change = "unchanged"
)

// Config is a config map or a secret.
type Config struct {
	Namespace, Name string
	Secret          bool
	Type            string `json:",omitempty"` // of a secret: Opaque, kubernetes.io/dockerconfigjson, …
	Data            map[string][]byte
	Immutable       bool              `json:",omitempty"`
	Labels          map[string]string `json:",omitempty"`
	CreatedAt       time.Time
}

// Event is something that happened to a pod, that a user would want to know.
type Event struct {
	Seq       uint64
	At        time.Time
	Warning   bool
	Reason    string // Pulling, Pulled, Started, BackOff, Unhealthy, …
	Message   string
	Pod       Key
	PodID     ID
	Container string `json:",omitempty"`
	Count     int    // times in a row
}

// EventFilter chooses events.
type EventFilter struct {
	Namespace string // "": all
	Pod       string // "": all
	Since     time.Time
	Watch     bool
}

// Stats is what a pod uses.
type Stats struct {
	Pod                         Key
	At                          time.Time
	Containers                  []ContainerStats
	ReceiveBytes, TransmitBytes uint64
}

// ContainerStats is what a container uses.
type ContainerStats struct {
	Name string
	Usage
}

// Usage is what a control group has used, or uses.
type Usage struct {
	CPU                   time.Duration // since the start
	MemoryBytes           uint64        // working set
	MemoryUsageBytes      uint64        // with the page cache
	MemoryLimitBytes      uint64        // 0: none
	Processes             uint64
	ReadBytes, WriteBytes uint64
}
