// Package namespace makes namespaces that no process has to stay in, and enters them.
package namespace

import "errors"

// Kind is a kind of namespace that can be pinned. A PID namespace cannot: it ends with
// its first process. Neither are mount and user namespaces, which nothing here shares.
type Kind string

const (
	Net Kind = "net"
	IPC Kind = "ipc"
	UTS Kind = "uts"
)

// Options say what new namespaces begin with.
type Options struct {
	// Hostname is that of a new UTS namespace; "" leaves the host's.
	Hostname string
	// Sysctls, like net.ipv4.ip_unprivileged_port_start, are written inside the
	// namespaces. Only those that belong to a pinned kind are allowed.
	Sysctls map[string]string
}

var errNotYet = errors.New("not built yet")

// Pin makes the namespaces of those kinds and mounts each at dir/<kind>. It is
// idempotent: those that are pinned already are kept.
func Pin(dir string, kinds []Kind, o Options) error { return errNotYet }

// Unpin takes away what Pin made at dir, and dir itself. It is idempotent.
func Unpin(dir string) error { return errNotYet }

// Do runs fn inside the network namespace at path, on a thread of its own.
func Do(path string, fn func() error) error { return errNotYet }
