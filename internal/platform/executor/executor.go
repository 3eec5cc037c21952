// Package executor starts processes in containers.
//
// It has two halves. This package, the parent's half, does all the thinking: it
// reads an OCI runtime specification, checks it, compiles its seccomp profile, and
// writes a plan (package plan): a flat list of primitive operations. The child's
// half, orlop-init (package child), is a tiny static binary that carries out a plan
// from inside and ends by executing the user's program. What is linked into the
// child is paid for at every start, so it parses nothing and decides nothing.
//
// A start has a gate in it. Create clones the child into its namespaces and cgroup
// and lets it do everything up to, and not including, execve: whatever can fail
// fails there, with the operation and its operand in the error. Start opens the gate;
// with Config.Gate it is a FIFO, the caller may end, and OpenGate opens it.
//
// The child runs from a file that nothing in a container can change (initfile.go); it keeps no descriptor across execve but the three of the standard streams.
// docs/design/executor.md walks through it step by step.
package executor

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/trace"
	"github.com/orlop-io/orlop/internal/platform/cgroup"
	"github.com/orlop-io/orlop/internal/platform/seccomp"
)

// Options are the choices of an Executor.
type Options struct {
	// InitPath is the orlop-init binary. It is read once, by New.
	InitPath string
	// Once tells that few processes are started, and soon: then the binary is not read before
	// one needs it, is not copied where it need not be, and must not be written to meanwhile.
	// Replacing it is no harm.
	Once bool
	// Log gets warnings about what the kernel refused and the start went on without.
	Log *slog.Logger
}

// Rootfs is a container's root filesystem. It is mounted by the child inside the
// container's own mount namespace, so it goes away with the last process there: there is
// nothing to unmount on the host.
type Rootfs struct {
	// Lower are the directories of the overlay, topmost first. Empty: Dir is the root.
	Lower []string
	// Upper and Work are the writable layer, on one filesystem. Both empty: the overlay
	// is read-only. The overlay is mounted with the option volatile where the kernel has
	// it: fsync does not reach the disk, and a layer that a crash of the machine
	// interrupted must be thrown away.
	Upper, Work string
	// Dir is a plain directory that becomes the root, with what is mounted below it. It
	// need not be a mount point. What is mounted there later on the host appears in the
	// container as well, if the host's mount is shared and rootfsPropagation is not
	// private, as with runc; nothing that is mounted in the container appears on the host.
	Dir string
	// IDMap says that the files, in the layers and in Dir, belong to the ids that the
	// container sees: its user 0 is the owner 0 on the disk. They are then mounted id-mapped
	// in a container with a user namespace, and a new file has the container's ids on the
	// disk too. Without it the ids on the disk are the host's, as they are after somebody
	// has shifted them. Dir's filesystems, and the layers', must support it (Linux 5.12 and
	// later: ext4, XFS; btrfs 5.15, overlay 5.19, tmpfs 6.3); Upper and Work must be in one directory.
	IDMap bool
}

// Config is one container to make.
type Config struct {
	// ID names the container in errors and logs.
	ID string
	// Spec says everything about the container. Namespaces with a path are joined, those
	// without are made; a mount namespace is made if none is joined. In one that is joined
	// the root filesystem and the mounts are set up as in a new one, and stay. Spec.Root.Path is not used (see
	// Rootfs); Spec.Root.Readonly is. Spec.Linux.Resources and CgroupsPath are not used
	// (see Cgroup). Of the hooks, poststart and poststop are the caller's (see RunHooks).
	Spec *specs.Spec
	// Rootfs is the root filesystem. With Pause it may be the zero value, and where a mount
	// namespace is joined, whose root is then the container's.
	Rootfs Rootfs
	// Stdin, Stdout and Stderr become the standard streams; nil is /dev/null. They are
	// not used with Spec.Process.Terminal. They stay the caller's, and are in blocking mode
	// afterwards, as a program expects: whoever wants to poll a FIFO opens it once more.
	Stdin, Stdout, Stderr *os.File
	// ExtraFiles become descriptors 3, 4, … of the program. As the standard streams, they
	// stay the caller's and are in blocking mode afterwards.
	ExtraFiles []*os.File
	// Cgroup is where the process starts; nil: where the caller is.
	Cgroup *cgroup.Group
	// Bundle is the directory of the OCI bundle, which hooks are told of.
	Bundle string
	// Gate is a FIFO (a descriptor made with O_PATH will do) that becomes the gate: the
	// process waits there, also when the caller has ended, until any process opens it with
	// OpenGate. It should be in a directory that no container reaches. Nil: Process.Start
	// is the gate, and the process ends with its caller before.
	Gate *os.File
	// Created is called with a Gate, once the process is ready and before it is let go of:
	// until it returns the process ends with its caller, so what it records of the process
	// is never missing. If it returns an error, Create fails with it. May be nil.
	Created func(*Process) error
	// NoPivot moves the root over the host's instead of pivot_root(2), which hosts whose root
	// is an initramfs refuse. What covers the host's root is then all that hides it from a
	// container with CAP_SYS_ADMIN or CAP_SYS_CHROOT.
	NoPivot bool
	// NoNewKeyring leaves the process the caller's session keyring.
	NoNewKeyring bool
	// Pause makes a process that does nothing but be process 1 of a PID namespace: it
	// reaps what is orphaned to it and ends at SIGTERM or SIGINT. Spec.Process is then not
	// used, and may be nil.
	Pause bool
}

// ExecConfig is one more process in a container that runs.
type ExecConfig struct {
	// PID is a process of the container whose namespaces and root are joined. PIDFD, where
	// it is not nil, makes sure that it is still the same process.
	PID   int
	PIDFD *os.File
	// Process says what to run and as whom.
	Process *specs.Process
	// Stdin, Stdout and Stderr are as in Config.
	Stdin, Stdout, Stderr *os.File
	// ExtraFiles and NoNewKeyring are as in Config.
	ExtraFiles   []*os.File
	NoNewKeyring bool
	// IntelRdt is the container's, with its ID; nil is none.
	IntelRdt *specs.LinuxIntelRdt
	// ID, Bundle and Annotations are the container's, for the listener of Seccomp.
	ID, Bundle  string
	Annotations map[string]string
	// Cgroup is where the process starts; nil: where the caller is.
	Cgroup *cgroup.Group
	// Seccomp is the container's profile; nil is none. Filter is the same compiled, where it
	// is at hand and has no listener; Seccomp is then not used.
	Seccomp *specs.LinuxSeccomp
	Filter  *seccomp.Program
	// Personality and MemoryPolicy are the container's too; nil is the caller's.
	Personality  *specs.LinuxPersonality
	MemoryPolicy *specs.LinuxMemoryPolicy
}

// Executor starts processes. It is safe for concurrent use.
type Executor struct {
	log  *slog.Logger
	init *initFile
	long bool // by orlop-init always, for tests
}

// Process is a process that Create or Exec made. The caller is its parent and waits for
// it, best with waitid(2) on the PIDFD.
type Process struct {
	pid      int
	pidfd    *os.File
	console  *os.File
	warnings []string
	id       string
	gated    bool      // waits at a Gate, not for Start
	straight *straight // what it begins as, nil if that is orlop-init

	mu   sync.Mutex
	sync *channel // nil once started
}

// PID returns the process's id in the caller's PID namespace.
func (p *Process) PID() int { return p.pid }

// PIDFD returns the process's descriptor. It belongs to the Process until Close;
// duplicate it to keep it.
func (p *Process) PIDFD() *os.File { return p.pidfd }

// Console returns the master of the process's terminal, nil if it has none. It is the
// caller's to close.
func (p *Process) Console() *os.File { return p.console }

// Warnings tells what of the specification this machine refused and the start went on
// without, like an rlimit above the hard one. They have been logged as well.
func (p *Process) Warnings() []string { return p.warnings }

// Adopt returns a Process for one that runs already and that something else than Create has
// made, like a restore. The descriptors become its own; console is nil if it has no terminal.
func Adopt(id string, pid int, pidfd, console *os.File) *Process {
	return &Process{id: id, pid: pid, pidfd: pidfd, console: console}
}

// Close closes the pidfd and, if the process has not been started, what Start would have
// opened: init then ends with status plan.NotExecuted. A process that waits at a Gate goes
// on waiting. Close neither kills nor reaps.
func (p *Process) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.sync != nil {
		p.sync.close()
		p.sync = nil
	}
	return p.pidfd.Close()
}

// New makes sure of orlop-init by reading it into a sealed memfd, but with Once, and returns an
// Executor.
func New(o Options) (*Executor, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	x, err := newInitFile(o.InitPath, o.Once)
	if err != nil {
		return nil, fmt.Errorf("executor: load init: %w", err)
	}
	return &Executor{log: o.Log, init: x}, nil
}

// Close lets go of the init binary. Processes are not touched.
func (e *Executor) Close() error { return e.init.close() }

// Create makes a container's first process and returns with it waiting at the gate: its
// namespaces, mounts, identity and limits are made, and the program has been found.
// On error the process has been reaped and nothing is left.
func (e *Executor) Create(ctx context.Context, c Config) (*Process, error) {
	b := newBuilder(c.Cgroup, c.Stdin, c.Stdout, c.Stderr)
	b.extra, b.noKeyring, b.created = c.ExtraFiles, c.NoNewKeyring, c.Created
	defer b.close()
	stdio := [3]*os.File{c.Stdin, c.Stdout, c.Stderr}
	if c.Pause || c.Spec != nil && c.Spec.Process != nil && c.Spec.Process.Terminal {
		stdio = [3]*os.File{}
	}
	_, step := trace.Start(ctx, "executor plan")
	b.traced, b.work = step != nil, c.Rootfs.Work
	err := b.hold(c.Gate)
	if err == nil {
		err = b.container(&c)
	}
	if err == nil && b.rdt != nil {
		err = b.rdt.prepare()
	}
	step.End(&err)
	if err == nil {
		var p *Process
		if p, err = e.launch(ctx, c.ID, b, stdio); err == nil {
			return p, nil
		}
	}
	if b.rdt != nil {
		b.rdt.undo()
	}
	return nil, fmt.Errorf("create %s: %w", c.ID, err)
}

// Exec makes a process in a container that runs, and returns with it waiting at the
// gate. On error the process has been reaped. A container whose process has ended is
// errs.NotFound, one that is paused errs.FailedPrecondition.
func (e *Executor) Exec(ctx context.Context, c ExecConfig) (*Process, error) {
	id := fmt.Sprintf("process in %d", c.PID)
	b := newBuilder(c.Cgroup, c.Stdin, c.Stdout, c.Stderr)
	b.extra, b.noKeyring = c.ExtraFiles, c.NoNewKeyring
	defer b.close()
	stdio := [3]*os.File{c.Stdin, c.Stdout, c.Stderr}
	if c.Process != nil && c.Process.Terminal {
		stdio = [3]*os.File{}
	}
	pidfd := c.PIDFD
	if pidfd == nil {
		fd, err := unix.PidfdOpen(c.PID, 0)
		if err != nil {
			return nil, kinded(fmt.Errorf("create %s: %w", id, err), err)
		}
		pidfd = os.NewFile(uintptr(fd), "pidfd")
		defer pidfd.Close()
	}
	_, step := trace.Start(ctx, "executor plan")
	err := awake(c.Cgroup)
	if err == nil {
		err = b.join(&c, pidfd)
	}
	step.End(&err)
	if err == nil {
		var p *Process
		if p, err = e.launch(ctx, id, b, stdio); err == nil {
			return p, nil
		}
	}
	return nil, fmt.Errorf("create %s: %w", id, err)
}

// awake refuses a group that is frozen: what is started there would stand still, and not
// even be killed until it is thawed (cgroup-v1/freezer-subsystem.rst).
func awake(g *cgroup.Group) error {
	if g == nil {
		return nil
	}
	frozen, err := g.Frozen()
	if err != nil {
		return err
	}
	if frozen {
		return errs.New(errs.FailedPrecondition, "the container is paused; resume it first")
	}
	return nil
}
