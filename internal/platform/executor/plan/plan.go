// Package plan is what the executor's two halves share: the primitive operations that
// orlop-init knows, and the binary form in which they and their results travel.
//
// A plan is a list of operations, carried out in order; the first that fails ends the
// child. An operation is a code, some numbers and some strings. What the numbers and
// strings of each are is said at its code. Both halves come from one build, so the
// format has no version.
//
// The package is linked into orlop-init: it must not import fmt, os or encoding/json.
package plan

// Code names a primitive operation.
type Code uint8

// In the comments, N and S are the operation's numbers and strings. A "slot" is an index
// into the child's table of mounts that are not attached anywhere yet. Paths "on the
// host" are the host's; all others are resolved inside the container's root, which no
// symbolic link and no magic link of /proc leaves.
const (
	Invalid Code = iota

	// Namespaces.
	Setns     // N: fd, CLONE_NEW* mask. S: what it is, for errors. fd is a namespace or a pidfd
	Unshare   // N: CLONE_NEW* mask
	Cross     // N: fd of a program that enters namespaces, fd of the first slot afterwards. Executes it
	TimeClock // S: "monotonic 5 0", a line for timens_offsets
	LoUp      // brings the loopback interface up

	// Mounts before the pivot.
	Take      // N: slot, fd. What Cross has handed on
	Idmap     // N: slot, fd of a user namespace, recursive
	Cover     // N: fd of a user namespace. S: path on the host. Attaches an id-mapped clone of the mount over itself
	Tree      // N: slot, recursive. S: path on the host. Clones the mount tree there
	Overlay   // N: slot, volatile, in a user namespace, uid and gid of its owner, old kernel (lowerdir+ is not known). S: upper, work, lowers topmost first, a directory on the host to mount on with old kernels
	NewFS     // N: slot, attr flags. S: fstype, source, options…
	Propagate // N: MS_* flags. S: path
	Root      // N: slot. S: directory on the host that the root is mounted on until the pivot
	EnterRoot // takes the current root as it is (exec)

	// Mounts in the container's root.
	SlotAttr // N: slot, attr set, attr clear, propagation, recursive
	Attach   // N: slot, propagation, of the mounts below too. S: path, made if missing
	Mount    // N: attr flags, Mount* flags, propagation. S: path, fstype, source, options…
	PathAttr // N: attr set, attr clear, recursive. S: path
	MakeCwd  // S: path. Makes the working directory if it is missing; Chdir tells if it could not
	Symlink  // S: target, path. What exists there stays
	Device   // N: mode with type, dev, uid, gid. S: path
	Mask     // S: paths… Those that do not exist are left out
	ReadOnly // S: paths… likewise
	Sync     // tells the parent that its hooks can run, and waits
	Hook     // N: of the start, timeout in seconds or 0, argc. S: what it is, path, state, argv…, env…. Runs in the present root
	Pivot    // makes the container's root the process's
	MoveRoot // the same where the host's root cannot be pivoted away from

	// What belongs to the namespaces.
	Hostname   // S: name
	Domainname // S: name
	Sysctl     // S: name with slashes, value

	// What belongs to the process.
	Session      // setsid
	Console      // N: rows, columns, uid, bind /dev/console. Sends the master to the parent
	NullStreams  // N: bit mask of the streams to connect to the container's /dev/null
	OwnStreams   // N: uid. Gives FIFOs among the standard streams to the user
	OOMScore     // N: adjustment (int32)
	Rlimit       // N: resource, soft, hard. S: name
	RaiseLimit   // likewise; only raises the hard limit
	Keyring      // S: name. A new session keyring
	Personality  // N: persona. S: its name
	Scheduler    // N: policy, flags, nice (int32), priority, runtime, deadline, period. S: policy
	IOPriority   // N: value for ioprio_set. S: class and priority
	Affinity     // N: words of the CPU mask. S: CPUs
	MemoryPolicy // N: mode with flags, words of the node mask. S: what it is
	Attribute    // S: value, what it is, paths in the host's /proc, of which the first that exists is written to
	Home         // N: uid. Adds HOME to the environment of the exec that follows, from the container's /etc/passwd
	Umask        // N: mask
	Bounding     // N: mask of capabilities to keep
	User         // N: uid, gid, additional gids…
	Caps         // N: effective, permitted, inheritable, ambient
	Chdir        // N: make it if missing, it is the last try. S: path
	NoNewPrivs
	Lookup  // S: file, PATH, for the exec that follows
	Clock   // N: a number. Tells the parent the time, with the number; only before the gate
	Files   // N: fds that become 3, 4, … of the program
	Gate    // N: fd of a FIFO, or nothing. Tells the parent that all is ready, and waits
	Listen  // N: fd of a socket's name, or of a connected socket, which. S: path for errors, what goes with the listener's descriptor
	Seccomp // N: flags, it may end a thread alone. S: filter, as sock_filter structures
	Exec    // N: argc. S: argv…, env…
	Pause   // is process 1 until a signal
)

// Flags of Mount.
const (
	// MountStrict: the path must have no symbolic link in it. /proc and /sys are mounted
	// so, because what is masked and written there later is found by path.
	MountStrict = 1 << iota
	// MountCopyUp: what is at the path before is copied into the new filesystem.
	MountCopyUp
)

// Names are what errors call the operations.
var Names = [...]string{
	Setns: "join namespace", Unshare: "make namespace", Cross: "enter user namespace", Take: "take mount", Idmap: "map ids of", Cover: "map ids of layer", TimeClock: "set clock offset", LoUp: "bring up loopback interface",
	Tree: "open mount source", Overlay: "mount overlay root", NewFS: "make filesystem", Propagate: "set mount propagation of",
	Root: "mount root on", EnterRoot: "enter root", SlotAttr: "set mount attributes", Attach: "bind to", Mount: "mount",
	PathAttr: "set mount attributes of", MakeCwd: "make working directory", Symlink: "make symbolic link", Device: "make device", Mask: "mask path", ReadOnly: "make path read-only",
	Sync: "wait for the runtime's hooks", Hook: "run",
	Pivot: "change root", MoveRoot: "move root",
	Hostname: "set host name", Domainname: "set domain name", Sysctl: "set sysctl",
	Session: "start session", Console: "open terminal", NullStreams: "open /dev/null", OwnStreams: "own standard streams",
	OOMScore: "set oom_score_adj", Rlimit: "set rlimit", RaiseLimit: "raise rlimit", Keyring: "join session keyring", Personality: "set personality",
	Scheduler: "set scheduler", IOPriority: "set I/O priority", Affinity: "set CPU affinity to", MemoryPolicy: "set memory policy", Attribute: "apply", Home: "look up home directory", Umask: "set umask",
	Bounding: "drop capabilities from the bounding set", User: "change user", Caps: "set capabilities", Chdir: "change to working directory",
	NoNewPrivs: "set no_new_privs", Lookup: "find executable", Clock: "tell the time", Files: "pass extra files", Gate: "wait at the gate", Listen: "connect to seccomp listener", Seccomp: "install seccomp filter",
	Exec: "execute", Pause: "pause",
}

// Op is one operation.
type Op struct {
	Code Code
	N    []uint64
	S    []string
}

// Plan is a list of operations.
type Plan struct{ Ops []Op }

// Add appends an operation.
func (p *Plan) Add(c Code, n []uint64, s ...string) {
	p.Ops = append(p.Ops, Op{c, n, s})
}

// N is shorthand for the numbers of an operation.
func N(n ...uint64) []uint64 { return n }

// Size is at least the length of the plan's binary form.
func (p *Plan) Size() int {
	size := 0
	for i := range p.Ops {
		size += 16 + 10*len(p.Ops[i].N)
		for _, s := range p.Ops[i].S {
			size += len(s) + 5
		}
	}
	return size
}

// Encode returns the plan's binary form.
func (p *Plan) Encode() []byte {
	b := make([]byte, 0, p.Size())
	for _, o := range p.Ops {
		b = append(b, byte(o.Code))
		b = uvarint(b, uint64(len(o.N)))
		for _, n := range o.N {
			b = uvarint(b, n)
		}
		b = uvarint(b, uint64(len(o.S)))
		for _, s := range o.S {
			b = uvarint(b, uint64(len(s)))
			b = append(b, s...)
		}
	}
	return b
}

func uvarint(b []byte, n uint64) []byte {
	for ; n >= 0x80; n >>= 7 {
		b = append(b, byte(n)|0x80)
	}
	return append(b, byte(n))
}

// Reader takes a plan apart, operation by operation. It never reads beyond its input;
// Bad is set when the input is not a plan.
type Reader struct {
	B   []byte
	Bad bool
}

// Next returns the next operation, and false at the end or when the input is bad.
func (r *Reader) Next() (Op, bool) {
	if len(r.B) == 0 || r.Bad {
		return Op{}, false
	}
	o := Op{Code: Code(r.B[0])}
	r.B = r.B[1:]
	if n := r.count(); n > 0 {
		o.N = make([]uint64, n)
		for i := range o.N {
			o.N[i] = r.number()
		}
	}
	if n := r.count(); n > 0 {
		o.S = make([]string, n)
		for i := range o.S {
			l := r.count()
			if r.Bad {
				break
			}
			o.S[i] = string(r.B[:l])
			r.B = r.B[l:]
		}
	}
	if o.Code == Invalid || int(o.Code) >= len(Names) {
		r.Bad = true
	}
	return o, !r.Bad
}

// count reads a number of things of which each takes at least one byte.
func (r *Reader) count() int {
	n := r.number()
	if n > uint64(len(r.B)) {
		r.Bad = true
		return 0
	}
	return int(n)
}

func (r *Reader) number() uint64 {
	var n uint64
	for shift := uint(0); shift < 64; shift += 7 {
		if len(r.B) == 0 {
			break
		}
		c := r.B[0]
		r.B = r.B[1:]
		n |= uint64(c&0x7f) << shift
		if c < 0x80 {
			return n
		}
	}
	r.Bad = true
	return 0
}
