package executor

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/executor/plan"
	"github.com/orlop-io/orlop/internal/platform/seccomp"
)

// listener is whom a seccomp profile hands calls to (OCI config-linux.md, "The Container
// Process State"). Init connects to its socket when the container is started, not
// before: a listener may serve one connection after the other.
type listener struct {
	state specs.ContainerProcessState
	own   bool // the state's process is the one that is made
}

// listen puts the sending of the filter's descriptor into the plan.
func (b *builder) listen(sc *specs.LinuxSeccomp, filter *seccomp.Program, exec bool) error {
	if sc == nil || filter == nil {
		return nil
	}
	switch {
	case filter.Notify && sc.ListenerPath == "":
		return errs.New(errs.Invalid, "linux.seccomp.listenerPath: a profile with SCMP_ACT_NOTIFY needs one")
	case !filter.Notify && sc.ListenerPath != "":
		return errs.New(errs.Invalid, "linux.seccomp.listenerPath: nothing in the profile has the action SCMP_ACT_NOTIFY")
	case sc.ListenerPath == "" && sc.ListenerMetadata != "":
		return errs.New(errs.Invalid, "linux.seccomp.listenerMetadata: there is no listenerPath")
	case !filter.Notify:
		return nil
	}
	var st unix.Stat_t
	fd, err := unix.Open(sc.ListenerPath, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err == nil {
		b.opened = append(b.opened, os.NewFile(uintptr(fd), sc.ListenerPath))
		err = unix.Fstat(fd, &st)
	}
	if err != nil {
		return kinded(fmt.Errorf("linux.seccomp.listenerPath: %s: %w", sc.ListenerPath, err), err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return errs.New(errs.Invalid, "linux.seccomp.listenerPath: %s is not a socket", sc.ListenerPath)
	}
	target := b.opened[len(b.opened)-1]
	// Root of another user namespace is nobody to the socket.
	if b.foreign {
		conn, err := net.Dial("unix", sc.ListenerPath)
		if err != nil {
			return kinded(fmt.Errorf("linux.seccomp.listenerPath: %w", err), err)
		}
		defer conn.Close()
		if target, err = conn.(*net.UnixConn).File(); err != nil {
			return fmt.Errorf("linux.seccomp.listenerPath: %w", err)
		}
		b.opened = append(b.opened, target)
	}
	state := b.hook.state
	if !exec {
		state.Status = specs.StateCreated
	}
	b.listener = &listener{own: !exec, state: specs.ContainerProcessState{
		Version: state.Version, Fds: []string{specs.SeccompFdName}, Metadata: sc.ListenerMetadata, State: state,
	}}
	b.plan.Add(plan.Listen, plan.N(b.give(target), flag(b.foreign)), sc.ListenerPath, "")
	return nil
}

// made fills in what is known of the process only when it is there.
func (b *builder) made(pid int) error {
	if b.rdt != nil {
		if err := b.rdt.assign(pid); err != nil {
			return err
		}
	}
	l := b.listener
	if l == nil {
		return nil
	}
	l.state.Pid = pid
	if l.own {
		l.state.State.Pid = pid
	}
	data, err := json.Marshal(l.state)
	if err != nil {
		return fmt.Errorf("encode the process's state: %w", err)
	}
	for i := range b.plan.Ops {
		if op := &b.plan.Ops[i]; op.Code == plan.Listen {
			op.S[1] = string(data)
		}
	}
	return nil
}

// ownUsers tells whether a container has a user namespace that is not the caller's.
func ownUsers(l *specs.Linux) bool {
	return slices.ContainsFunc(l.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.UserNamespace })
}
