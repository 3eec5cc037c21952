package pod

import (
	"net/netip"
	"time"

	"github.com/orlop-io/orlop/internal/platform/namespace"
)

// The types of this file are what a client asks for: they mirror the meaning of
// the Kubernetes v1 types that Orlop supports, without their wire format. They are
// stored as JSON. Quantities are plain numbers whose unit is in the name.

// Key names a pod as a user does.
type Key struct {
	Namespace string
	Name      string
}

func (k Key) String() string { return k.Namespace + "/" + k.Name }

// ID names one incarnation of a pod: a pod deleted and applied again has another.
// It is a UUID; it names the pod's directories, cgroup and addresses.
type ID string

// ContainerID names one incarnation of a container (a restart makes another).
// It is 64 hexadecimal digits.
type ContainerID string

// Spec is a pod as it was asked for. Configuration (config maps, secrets, claims)
// is referred to by name and resolved when the pod, or a container, starts.
type Spec struct {
	Key
	Labels      map[string]string `json:",omitempty"`
	Annotations map[string]string `json:",omitempty"`

	Init       []Container `json:",omitempty"` // in order; a sidecar has RestartPolicy Always
	Containers []Container
	Volumes    []Volume `json:",omitempty"`

	RestartPolicy    RestartPolicy
	TerminationGrace time.Duration // 30 s where the manifest says nothing
	ActiveDeadline   time.Duration `json:",omitempty"` // 0: none

	Hostname   string   `json:",omitempty"` // "": the pod's name
	Subdomain  string   `json:",omitempty"`
	HostAlias  []Alias  `json:",omitempty"`
	DNSPolicy  string   `json:",omitempty"` // Default, ClusterFirst (= Default here), None
	DNS        DNS      `json:",omitzero"`
	ImagePulls []string `json:",omitempty"` // names of secrets of docker config type

	HostNetwork bool `json:",omitempty"`
	HostPID     bool `json:",omitempty"`
	HostIPC     bool `json:",omitempty"`
	// OwnUsers gives the pod a user namespace of its own; Users are its ids, which the client gives, or which are
	// chosen when the sandbox is made. Without either the pod has the host's.
	OwnUsers bool              `json:",omitempty"`
	Users    *namespace.IDMaps `json:",omitempty"`
	SharePID bool              `json:",omitempty"`

	// Handler is the runtime handler that makes the containers; "" is DefaultHandler.
	Handler string `json:",omitempty"`

	Security PodSecurity `json:",omitzero"`
	// Resources is the limit of the pod as a whole; zero fields are unlimited.
	Resources Resources `json:",omitzero"`

	hostPorts []Port // besides those of the containers
}

// Alias is a line of the pod's hosts file.
type Alias struct {
	IP    netip.Addr
	Names []string
}

// DNS is the pod's resolver configuration, merged over the host's unless
// DNSPolicy is None.
type DNS struct {
	Servers  []netip.Addr `json:",omitempty"`
	Searches []string     `json:",omitempty"`
	Options  []string     `json:",omitempty"` // name or name:value
}

// RestartPolicy says when a container that ended starts again.
type RestartPolicy string

const (
	RestartAlways    RestartPolicy = "Always"
	RestartOnFailure RestartPolicy = "OnFailure"
	RestartNever     RestartPolicy = "Never"
)

// Container is one container of a pod as it was asked for.
type Container struct {
	Name       string
	Image      string
	PullPolicy PullPolicy
	Command    []string `json:",omitempty"` // replaces the image's entrypoint
	Args       []string `json:",omitempty"` // replaces the image's command
	WorkingDir string   `json:",omitempty"`

	Env     []EnvVar    `json:",omitempty"` // later entries win; $(NAME) is expanded
	EnvFrom []EnvSource `json:",omitempty"`
	Ports   []Port      `json:",omitempty"`
	Mounts  []Mount     `json:",omitempty"`
	Devices []Device    `json:",omitempty"` // block volumes

	Resources Resources         `json:",omitzero"`
	Security  ContainerSecurity `json:",omitzero"`

	// Restart is the container's own policy; "" follows the pod's. Always on an
	// init container makes it a sidecar.
	Restart RestartPolicy `json:",omitempty"`

	Startup   *Probe `json:",omitempty"`
	Readiness *Probe `json:",omitempty"`
	Liveness  *Probe `json:",omitempty"`
	PostStart *Hook  `json:",omitempty"`
	PreStop   *Hook  `json:",omitempty"`

	Stdin     bool `json:",omitempty"`
	StdinOnce bool `json:",omitempty"`
	TTY       bool `json:",omitempty"`

	TerminationMessagePath   string `json:",omitempty"` // "": /dev/termination-log
	TerminationMessagePolicy string `json:",omitempty"` // File, FallbackToLogsOnError
	StopSignal               string `json:",omitempty"` // "": the image's, else SIGTERM
}

// PullPolicy says when an image is fetched.
type PullPolicy string

const (
	PullAlways       PullPolicy = "Always"
	PullIfNotPresent PullPolicy = "IfNotPresent"
	PullNever        PullPolicy = "Never"
)

// EnvVar sets one variable. At most one of the sources is set; otherwise Value counts.
type EnvVar struct {
	Name      string
	Value     string       `json:",omitempty"`
	ConfigMap *KeyRef      `json:",omitempty"`
	Secret    *KeyRef      `json:",omitempty"`
	Field     string       `json:",omitempty"` // downward API: metadata.name, status.podIP, …
	Resource  *ResourceRef `json:",omitempty"` // downward API: limits.cpu, …
}

// KeyRef names one key of a config map or secret of the pod's namespace.
type KeyRef struct {
	Name     string
	Key      string
	Optional bool `json:",omitempty"`
}

// ResourceRef names a container's request or limit. Divisor is in the resource's
// base unit times 1000 (so 1 CPU is 1000 and 1Mi is 1048576000); 0 means 1.
type ResourceRef struct {
	Container    string `json:",omitempty"` // "": the same
	Resource     string // limits.cpu, requests.memory, …
	DivisorMilli int64  `json:",omitempty"`
}

// EnvSource takes every key of a config map or secret as a variable.
type EnvSource struct {
	Prefix    string `json:",omitempty"`
	ConfigMap string `json:",omitempty"`
	Secret    string `json:",omitempty"`
	Optional  bool   `json:",omitempty"`
}

// Port is a port that a container listens on.
type Port struct {
	Name     string     `json:",omitempty"`
	Port     uint16     // in the pod
	HostPort uint16     `json:",omitempty"` // 0: not on the host
	HostIP   netip.Addr `json:",omitzero"`  // zero: every address
	Protocol string     // TCP, UDP, SCTP
}

// Mount puts a volume of the pod into a container.
type Mount struct {
	Volume            string
	Path              string // absolute, in the container
	SubPath           string `json:",omitempty"` // below the volume's root; cannot escape
	SubPathExpr       string `json:",omitempty"` // SubPath with $(VAR) expanded
	ReadOnly          bool   `json:",omitempty"`
	RecursiveReadOnly string `json:",omitempty"` // Disabled, IfPossible, Enabled
	Propagation       string `json:",omitempty"` // None, HostToContainer, Bidirectional
}

// Device puts a block volume of the pod into a container.
type Device struct {
	Volume string
	Path   string
}

// Volume is storage that the containers of a pod share. Exactly one source is set.
type Volume struct {
	Name      string
	EmptyDir  *EmptyDir       `json:",omitempty"`
	HostPath  *HostPath       `json:",omitempty"`
	ConfigMap *FileSource     `json:",omitempty"`
	Secret    *FileSource     `json:",omitempty"`
	Downward  *DownwardSource `json:",omitempty"`
	Projected *Projected      `json:",omitempty"`
	Claim     *ClaimRef       `json:",omitempty"`
}

// EmptyDir lives as long as the pod.
type EmptyDir struct {
	Memory    bool  `json:",omitempty"` // tmpfs instead of the disk
	SizeBytes int64 `json:",omitempty"` // 0: no limit
}

// HostPath is a path of the host. Type is Kubernetes' ("", Directory, FileOrCreate, …).
type HostPath struct {
	Path string
	Type string `json:",omitempty"`
}

// FileSource shows keys of a config map or secret as files.
type FileSource struct {
	Name     string
	Items    []FileItem `json:",omitempty"` // none: every key, under its own name
	Mode     uint32     `json:",omitempty"` // 0: 0644
	Optional bool       `json:",omitempty"`
}

// FileItem shows one key at a relative path.
type FileItem struct {
	Key  string
	Path string
	Mode uint32 `json:",omitempty"` // 0: the source's
}

// DownwardSource shows fields of the pod as files.
type DownwardSource struct {
	Items []DownwardItem
	Mode  uint32 `json:",omitempty"`
}

// DownwardItem shows one field or resource at a relative path.
type DownwardItem struct {
	Path     string
	Field    string       `json:",omitempty"`
	Resource *ResourceRef `json:",omitempty"`
	Mode     uint32       `json:",omitempty"`
}

// Projected shows several sources in one directory.
type Projected struct {
	Sources []ProjectedSource
	Mode    uint32 `json:",omitempty"`
}

// ProjectedSource is one of them; exactly one field is set.
type ProjectedSource struct {
	ConfigMap *FileSource     `json:",omitempty"`
	Secret    *FileSource     `json:",omitempty"`
	Downward  *DownwardSource `json:",omitempty"`
}

// ClaimRef mounts a claim of the pod's namespace.
type ClaimRef struct {
	Name     string
	ReadOnly bool `json:",omitempty"`
}

// Resources are requests and limits. Zero is unset.
type Resources struct {
	CPURequestMilli    int64            `json:",omitempty"` // thousandths of a CPU
	CPULimitMilli      int64            `json:",omitempty"`
	MemoryRequestBytes int64            `json:",omitempty"`
	MemoryLimitBytes   int64            `json:",omitempty"`
	EphemeralBytes     int64            `json:",omitempty"` // limit of the writable layer; 0: none
	HugepageBytes      map[string]int64 `json:",omitempty"` // limit by page size: "2Mi", "1Gi"
	PIDs               int64            `json:",omitempty"`
}

// PodSecurity holds the settings of a pod that containers inherit.
type PodSecurity struct {
	RunAsUser      *int64           `json:",omitempty"`
	RunAsGroup     *int64           `json:",omitempty"`
	RunAsNonRoot   *bool            `json:",omitempty"`
	Groups         []int64          `json:",omitempty"` // supplemental
	GroupsPolicy   string           `json:",omitempty"` // Merge, Strict
	FSGroup        *int64           `json:",omitempty"`
	FSGroupPolicy  string           `json:",omitempty"` // Always, OnRootMismatch
	Sysctls        []Sysctl         `json:",omitempty"`
	Seccomp        *SecurityProfile `json:",omitempty"`
	AppArmor       *SecurityProfile `json:",omitempty"`
	SELinuxOptions *SELinux         `json:",omitempty"`
}

// Sysctl is a namespaced kernel setting of the pod.
type Sysctl struct{ Name, Value string }

// SecurityProfile names a seccomp or AppArmor profile.
type SecurityProfile struct {
	Type string // RuntimeDefault, Localhost, Unconfined; from a client that drives its pods: File
	Path string `json:",omitempty"` // Localhost: below the configured profile directory; File: absolute
}

// SELinux is a context; empty parts are the default.
type SELinux struct{ User, Role, Type, Level string }

// ContainerSecurity holds the settings of one container; nil follows the pod.
type ContainerSecurity struct {
	RunAsUser                *int64           `json:",omitempty"`
	RunAsGroup               *int64           `json:",omitempty"`
	RunAsNonRoot             *bool            `json:",omitempty"`
	RunAsUserName            string           `json:",omitempty"` // of the image's /etc/passwd; instead of RunAsUser
	Privileged               bool             `json:",omitempty"`
	ReadOnlyRoot             bool             `json:",omitempty"`
	AllowPrivilegeEscalation *bool            `json:",omitempty"` // nil: allowed
	AddCapabilities          []string         `json:",omitempty"` // without CAP_; ALL
	DropCapabilities         []string         `json:",omitempty"`
	Seccomp                  *SecurityProfile `json:",omitempty"`
	AppArmor                 *SecurityProfile `json:",omitempty"`
	SELinuxOptions           *SELinux         `json:",omitempty"`
	ProcMount                string           `json:",omitempty"` // Default, Unmasked
}

// Action is what a probe or a hook does. Exactly one field is set.
type Action struct {
	Exec  []string      `json:",omitempty"`
	HTTP  *HTTPAction   `json:",omitempty"`
	TCP   *TCPAction    `json:",omitempty"`
	GRPC  *GRPCAction   `json:",omitempty"`
	Sleep time.Duration `json:",omitempty"` // hooks only
}

// PortRef is a port number, or the name of a port of the container.
type PortRef struct {
	Number uint16 `json:",omitempty"`
	Name   string `json:",omitempty"`
}

// HTTPAction is a GET that succeeds with 200–399.
type HTTPAction struct {
	Host    string `json:",omitempty"` // "": the pod's address
	Port    PortRef
	Path    string
	TLS     bool        `json:",omitempty"` // certificates are not verified, as in Kubernetes
	Headers [][2]string `json:",omitempty"`
}

// TCPAction succeeds if a connection is accepted.
type TCPAction struct {
	Host string `json:",omitempty"`
	Port PortRef
}

// GRPCAction calls grpc.health.v1.Health/Check.
type GRPCAction struct {
	Port    PortRef
	Service string `json:",omitempty"`
}

// Probe asks a container how it is.
type Probe struct {
	Action
	InitialDelay     time.Duration `json:",omitempty"`
	Period           time.Duration // 10 s where the manifest says nothing
	Timeout          time.Duration // 1 s
	SuccessThreshold int           // 1
	FailureThreshold int           // 3
	TerminationGrace time.Duration `json:",omitempty"` // 0: the pod's
}

// Hook runs at a point of a container's life.
type Hook struct{ Action }
