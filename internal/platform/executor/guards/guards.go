// Package guards names the protections of a container's start, in both halves of the
// executor. Each has at least one attack in the executor's tests (attack_test.go) that
// succeeds when it is off; docs/design/executor-security.md is the table of them.
//
// They are nothing in an ordinary build: see package guard.
package guards

import "github.com/orlop-io/orlop/internal/base/guard"

// Of the init process itself.
var (
	// Sealed: init runs from a memfd that nobody can write. Without: from its file.
	Sealed = guard.New("init.sealed")
	// Undumpable: nobody without CAP_SYS_PTRACE on the host looks into init or reaches its
	// descriptors through /proc.
	Undumpable = guard.New("init.undumpable")
	// Unreadable: init's binary may not be read by the root of a user namespace, so that who
	// has every capability there cannot look into init either.
	Unreadable = guard.New("init.unreadable")
	// LetGo: init has closed what it had of the host when it looks for the program, so no
	// path of the program, of a script's interpreter or of a loader leads through it.
	LetGo = guard.New("init.lets-go")
	// CloseOnExec: nothing above the standard streams survives execve.
	CloseOnExec = guard.New("init.close-on-exec")
)

// Of paths in a container.
var (
	// InRoot: a path is resolved in the container's root, and through no link of /proc that
	// is a reference, like /proc/self/fd/4.
	InRoot = guard.New("paths.in-root")
	// Walk: what is missing on the way to a mount point is made descriptor by descriptor.
	// Without: by its path, as mkdir -p does.
	Walk = guard.New("paths.walk")
	// ByDescriptor: mounts go to what was looked at. Without: to its path, looked up again.
	ByDescriptor = guard.New("paths.by-descriptor")
	// CwdChecked: the working directory lies inside the root.
	CwdChecked = guard.New("paths.cwd-checked")
)

// Of what is mounted.
var (
	// OldRoot: the host's mounts are not below the container's root.
	OldRoot = guard.New("mounts.old-root-detached")
	// NamespaceRoot: the container's root is that of its mount namespace, so that who joins it stands there
	// too, when the caller is in a chroot(2).
	NamespaceRoot = guard.New("mounts.namespace-root")
	// Slave: no mount of the container reaches the host.
	Slave = guard.New("mounts.slave")
	// RealProc: /proc and /sys are mounted on real directories, not where a link leads.
	RealProc = guard.New("mounts.real-proc")
	// ProcUncovered: no mount hides the container's /proc, or what is in it but for a few
	// files that tell of resources.
	ProcUncovered = guard.New("mounts.proc-uncovered")
	// MasksByMount: what is masked in /proc and /sys is found from the mounts that were made
	// there. Without: by path.
	MasksByMount = guard.New("mounts.masks-by-mount")
	// Masked and ReadOnly: the lists of the specification.
	Masked   = guard.New("mounts.masked-paths")
	ReadOnly = guard.New("mounts.read-only-paths")
	// NullChecked: what masks files is the null device.
	NullChecked = guard.New("mounts.null-checked")
	// CopyUpChecked: what is copied into a tmpfs is opened once, and is a file.
	CopyUpChecked = guard.New("mounts.copy-up-checked")
	// CgroupReadOnly: the view of the control groups is as read-only as the mount asks.
	CgroupReadOnly = guard.New("mounts.cgroup-read-only")
	// HostProc: sysctls and attributes of the process are written to the host's own /proc.
	// Without: to the container's.
	HostProc = guard.New("proc.host")
	// SysctlNames: a sysctl's name does not lead out of its namespace's.
	SysctlNames = guard.New("proc.sysctl-names")
)

// Of terminals and streams.
var (
	// ConsolePeer: /dev/console is the slave that the terminal's master names.
	ConsolePeer = guard.New("terminal.peer")
	// Session: the container is in a session of its own, without the caller's terminal.
	Session = guard.New("terminal.session")
	// OwnNull: a stream that leads nowhere does not lead to the host's /dev/null.
	OwnNull = guard.New("streams.own-null")
)

// HookEnvironment: a hook gets the environment of the specification, not the caller's.
var HookEnvironment = guard.New("hooks.environment")

// Of the program's credentials.
var (
	Keyring      = guard.New("credentials.keyring")
	Inheritable  = guard.New("credentials.inheritable")
	Bounding     = guard.New("credentials.bounding")
	NoNewPrivs   = guard.New("credentials.no-new-privs")
	NoSUID       = guard.New("credentials.nosuid")
	Supplemental = guard.New("credentials.groups")
	Seccomp      = guard.New("credentials.seccomp")
)
