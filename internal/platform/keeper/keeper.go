// Package keeper is the client's side of the keeper: the process that is the parent
// of every container of the node, holds their streams, writes their logs and
// records how they ended (docs/design/keeper.md). Package server is the process itself.
package keeper

import (
	"encoding/json"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/orlop-io/orlop/internal/platform/executor"
	"github.com/orlop-io/orlop/internal/platform/ociruntime"
)

// Spec is a container that the keeper is asked to run.
type Spec struct {
	ID string
	// OCI is the runtime specification; its root path, hooks, cgroups path are not used.
	OCI    *specs.Spec
	Rootfs executor.Rootfs
	// Cgroup is the control group's path, below the root of the hierarchies.
	Cgroup string
	Log    LogConfig
	// Stdin: the container has a standard input that StdinWriter writes to; with
	// StdinOnce it ends when the first writer closes it.
	Stdin, StdinOnce bool
	// Pause: process 1 of a shared PID namespace, that does nothing but reap.
	Pause bool `json:",omitempty"`
	// Labels mean nothing to the keeper; Status returns them.
	Labels map[string]string `json:",omitempty"`
	// Runtime is who makes the container; nil is the keeper's own executor.
	Runtime *ociruntime.Runtime `json:",omitempty"`
	// Restore, which needs a Runtime, makes it of a checkpoint instead of OCI.Process.
	Restore *Restore `json:",omitempty"`
}

// Restore says what a container is restored from.
type Restore struct {
	Images string // directory of CRIU's images
	Work   string // directory of CRIU's log, which is made
}

// LogConfig says where a container's output goes, in the CRI log format.
type LogConfig struct {
	Path string // "": nowhere
	// Root, where given, is a directory above Path that no symlink between the two leads
	// out of: others than the daemon may write there.
	Root     string `json:",omitempty"`
	MaxBytes int64  // of one file; 0: no rotation
	MaxFiles int    // the current one included
}

// State is where in its life a container is.
type State string

const (
	Creating State = "creating" // not complete; a keeper that starts removes it
	Created  State = "created"  // waits at the gate
	Starting State = "starting" // the gate is being opened: whether the program was executed is not known yet
	Running  State = "running"
	Paused   State = "paused"
	Stopped  State = "stopped"
)

// Status is what the keeper knows of a container.
type Status struct {
	ID        string
	State     State
	PID       int `json:",omitempty"`
	Cgroup    string
	CreatedAt time.Time
	StartedAt time.Time         `json:",omitzero"`  // once its program was executed
	Exit      *Exit             `json:",omitempty"` // of a stopped one
	Labels    map[string]string `json:",omitempty"`
}

// Exit is how a process ended.
type Exit struct {
	Code      int  // 128+Signal for one that a signal ended
	Signal    int  `json:",omitempty"`
	OOMKilled bool `json:",omitempty"`
	// Known is false where nobody saw the end: the keeper was dead, and this kernel
	// does not keep exit codes (PIDFD_INFO_EXIT, Linux 6.15) or nobody held a pidfd.
	// Code is then 255.
	Known bool
	At    time.Time
}

// Started is the answer to a start.
type Started struct {
	PID int
	At  time.Time
}

// Event is something that happened to a container.
type Event struct {
	Type string // started, exited
	ID   string
	PID  int   `json:",omitempty"`
	Exit *Exit `json:",omitempty"`
}

// Requests and answers that only the two halves of the keeper use.
type (
	// Hello is the first request of a connection.
	Hello struct {
		Version int
	}
	// HelloReply tells who answers.
	HelloReply struct {
		Version int
		PID     int
		Build   string
	}
	// MakeRequest asks for a container. Its seccomp profile is beside the specification and
	// not in it, so that the keeper, which has seen the same one before, need not decode
	// it again: it is most of a specification.
	MakeRequest struct {
		Spec
		Seccomp json.RawMessage `json:",omitempty"`
	}
	// IDRequest names a container.
	IDRequest struct{ ID string }
	// SignalRequest sends a signal to a container's first process, or to all.
	SignalRequest struct {
		ID     string
		Signal int
		All    bool
	}
	// ExecRequest runs a process; the files of the frame are its streams, in order,
	// those that Streams names (i, o, e).
	ExecRequest struct {
		ID      string
		Process *specs.Process
		Streams string
	}
	// ExecReply names the process; the frame brings its pidfd and, with a terminal, the
	// terminal's master.
	ExecReply struct {
		Exec    uint64
		PID     int
		Started uint64 // pidfd.StartTime
	}
	// ExecRef names a process that Exec started on the same connection.
	ExecRef struct{ Exec uint64 }
	// AttachRequest brings write ends for the streams that Streams names (o, e).
	AttachRequest struct {
		ID      string
		Streams string
	}
	// ResizeRequest sets a terminal's size.
	ResizeRequest struct {
		ID         string
		Cols, Rows uint16
	}
	// UpdateRequest changes limits.
	UpdateRequest struct {
		ID        string
		Resources *specs.LinuxResources
	}
	// Held says which descriptors of a container come with the frame: p (pidfd),
	// i, o, e (FIFOs), t (terminal's master). None: what was held may be closed.
	Held struct {
		ID   string
		What string
	}
	// UpgradeRequest names the binary to become.
	UpgradeRequest struct{ Binary string }
)
