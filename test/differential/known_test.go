package differential

import (
	"fmt"
	"path"
	"strings"
	"sync"
	"testing"
)

// difference is one that is known, with its reason. Patterns are those of path.Match, but
// that * stands for slashes too, and that there may be several, with | between them.
type difference struct {
	cases, finding string
	kind           kind
	reason         string
	chance         bool // it does not occur every time
	v2             bool // it occurs on a host with cgroup v2 alone, and only there
}

type kind string

const (
	design  kind = "By design"
	spec    kind = "As the specification says, not as runc does"
	lenient kind = "Works here, not with runc"
	strict  kind = "Refused here, with a reason"
	ours    kind = "To be done"
)

// ended are the findings that tell whether a container ran.
const ended = "ran|exit|error"

var known = []difference{
	{cases: "*", finding: "cgroup path *", kind: design, reason: "A group has a directory only in the hierarchies in which something is limited or that tell what it uses; in the others a process is in the nearest group above."},
	{cases: "*", finding: "cgroup devices devices.list", kind: design, reason: "On a host with cgroup2 devices are decided by a BPF program there, not by the hierarchy of v1."},
	{cases: "*", finding: "keyring", kind: design, reason: "The session keyring has our name, and a command that is executed later gets one of its own."},
	{cases: "mount-cgroup*|user-namespace-cgroup", finding: "mount /sys/fs/cgroup*|touch /sys/fs/cgroup*|tree /sys/fs/cgroup*", kind: design, reason: "Shown are the hierarchies in which the container has a group, cgroup2 among them; the directory of hierarchies is read-only like them and as small as a page allows."},
	{cases: "*terminal*", finding: "descriptor ?", kind: design, reason: "The container's terminal translates newlines, and the caller's is raw; with runc it is the other way round. What is seen is the same."},
	{cases: "*user*", finding: "descriptor ?", kind: design, reason: "The program has the caller's pipes, of which the owner is changed, not the group; runc copies between them and its own."},
	{cases: "stdin-null", finding: "descriptor 0", kind: design, reason: "The same: /dev/null is /dev/null."},
	{cases: "*user*", finding: "mount /dev/*|mount /proc/*", kind: design, reason: "Device nodes that are bound into a user namespace are mounted nosuid and noexec."},
	{cases: "*user*", finding: "tree /dev/mqueue", kind: design, reason: "The queues' filesystem belongs to the container's root; with runc to nobody."},
	{cases: "seccomp-default*", finding: "call listmount|call statmount", kind: design, reason: "The calls are in the profile; libseccomp 2.5 does not know them."},
	{cases: "tmpfs-ro", finding: "mount /mnt", kind: design, reason: "The filesystem is read-only too, not the mount alone."},
	{cases: "hook-*-poststart", finding: "ran", kind: design, chance: true, reason: "It is chance whether the program has said anything when the failing hook ends it."},
	{cases: "resources-pids-0", finding: ended, kind: design, chance: true, reason: "With no room for another thread it is chance how far one comes."},
	{cases: "flag-preserve-missing", finding: "left behind", kind: design, reason: "runc leaves its directory of state."},
	{cases: "readonly-root", finding: "mount / (2)", kind: design, reason: "The root's own mount is made read-only; runc leaves one over it that nobody sees."},
	{cases: "update-memory-swap-less", finding: "cgroup memory memory.memsw.limit_in_bytes", kind: design, reason: "Of an update that is refused nothing stays; runc leaves the part that was set."},
	{cases: "update-half-refused*|update-json-unified-bad", finding: "cgroup *", kind: design, v2: true, reason: "As above, on cgroup v2."},
	{cases: "bind-tree*|bind-proc|namespace-only-mount", finding: "mount /mnt|mount /host-proc|mount /sys", kind: design, chance: true, reason: "What the source's mount forbids (nosuid, noexec, nodev) stays forbidden where the options do not say otherwise; runc's remount takes it away. It depends on how the host has mounted its /dev, /proc and /sys."},
	{cases: "masked-twice", finding: "mount /etc (2)", kind: design, reason: "A path that is listed twice is masked twice."},

	{cases: "capabilities-absent", finding: "*", kind: spec, reason: "Who asks for no capabilities gets none; runc leaves all that it has."},
	{cases: "seccomp-no-names", finding: ended, kind: spec, reason: "A rule has to name a call."},
	{cases: "personality-flags", finding: ended, kind: spec, reason: "No flags of personalities are supported; runc warns and goes on without."},
	{cases: "masked-relative|device-relative", finding: ended, kind: spec, reason: "Paths are absolute."},
	{cases: "tmpfs-rro", finding: "*/mnt", kind: spec, reason: "rro makes a mount read-only; with runc not that of a tmpfs."},
	{cases: "hook-poststart", finding: "hooks.poststart*", kind: spec, reason: "A container whose program was started is running, not created."},
	{cases: "hook-*", finding: "hooks.*", kind: spec, reason: "A hook has the environment that it asks for; runc hands on its own."},
	{cases: "resources-memory-kernel-tcp", finding: "cgroup memory memory.kmem.tcp.limit_in_bytes", kind: spec, reason: "The limit is set where the kernel has it; runc ignores it."},

	{cases: "capabilities-beyond-the-machine", finding: ended, kind: lenient, reason: "Capabilities that the machine does not have to give are left out, with a warning."},
	{cases: "capabilities-effective-over-permitted", finding: ended, kind: lenient, reason: "What is effective is what of it is permitted."},
	{cases: "root-link", finding: ended, kind: lenient, reason: "The root is opened once, and used by its descriptor."},
	{cases: "propagation-runbindable", finding: ended, kind: lenient, reason: "Propagation is set after read-only paths are."},
	{cases: "bind-no-option", finding: ended, kind: lenient, reason: "A mount of type bind is a bind mount."},
	{cases: "bind-data", finding: ended, kind: lenient, reason: "An option of a filesystem is passed over in a bind mount, as mount(8) does."},
	{cases: "bind-defaults", finding: ended, kind: lenient, reason: "defaults is no option, as in fstab."},
	{cases: "mount-proc-subset|mount-no-proc|mount-none", finding: ended, kind: lenient, reason: "The container's /proc is not needed to start it."},
	{cases: "masked-below-file", finding: ended, kind: lenient, reason: "What is not there needs no mask."},
	{cases: "namespace-host-mount", finding: ended, kind: lenient, reason: "There is always a mount namespace."},
	{cases: "resources-cpu-shares-*", finding: ended, kind: lenient, reason: "Shares beyond what the kernel takes become the nearest that it takes."},
	{cases: "resources-hugepages", finding: ended, kind: lenient, reason: "The limit is set on cgroup2, which has the controller on this kind of host."},
	{cases: "device-default-again", finding: ended, kind: lenient, reason: "A device may be listed that every container has."},
	{cases: "device-default-other", finding: "device zero", kind: lenient, reason: "The rules for default devices hold whatever is listed."},
	{cases: "device-rules-deny-after", finding: ended, kind: lenient, reason: "Rules are a program, in which a later one may take a part of an earlier one away."},
	{cases: "device-rules-access-empty", finding: ended, kind: lenient, reason: "A rule for no access changes nothing."},
	{cases: "user-namespace-devices", finding: ended, kind: lenient, reason: "A device that the host has no node of is bound from a node that is made for it."},
	{cases: "sysctl-kernel.hostname", finding: ended, kind: lenient, reason: "Of a name that is given twice the later counts."},
	{cases: "seccomp-enosys-above|seccomp-default-errno*|seccomp-default-trace", finding: ended, kind: lenient, reason: "A profile has to allow nothing for the runtime's sake."},

	{cases: "invalid-root-empty", finding: "error", kind: strict, reason: "A root has to be named; runc takes the bundle for it."},
	{cases: "bind-copyup", finding: ended, kind: strict, reason: "There is nothing to copy into a bind mount."},
	{cases: "mappings-without-user-namespace", finding: ended, kind: strict, reason: "Who maps ids means a user namespace."},
	{cases: "update-block-weight-bad", finding: "update 0|cgroup blkio *", kind: strict, reason: "A weight that the specification does not have is refused, although the scheduler would take it."},
	{cases: "resources-block-weight-bad", finding: ended, kind: strict, reason: "A weight that cannot be set is not ignored."},
	{cases: "resources-memory-swappiness", finding: ended, kind: strict, v2: true, reason: "cgroup v2 has no swappiness; runc ignores what was asked for."},
	{cases: "resources-memory-kernel-tcp|resources-memory-swappiness-bad|resources-memory-oom-off|resources-cpu-realtime|resources-block-leaf-weight|resources-block-weight-device|resources-network-*", finding: ended, kind: strict, v2: true,
		reason: "cgroup v2, or its kernel, has no such value; runc ignores what was asked for."},
	{cases: "seccomp-listener-without-notify", finding: ended, kind: strict, reason: "A listener that will be told of nothing is a mistake."},
	{cases: "device-on-file", finding: ended, kind: strict, reason: "A file of the image is not taken for the device."},
	{cases: "device-rules-access-bad", finding: ended, kind: strict, reason: "Access is made of r, w and m."},

	{cases: "seccomp-errno-execve|hook-*startContainer|invalid-program-*", finding: "exit", kind: design, reason: "A container that could not be started is exit code 1, whoever found out."},

	{cases: "bind-file-over-file", finding: "env *", kind: lenient, reason: "A line of the file of users that has no fields is no user: HOME is / and not empty."},
	{cases: "env-none", finding: "*", kind: lenient, reason: "HOME is set even if nothing else is."},
}

var occurred struct {
	sync.Mutex
	known [256]bool
}

// explained tells whether a difference is known, and notes that it has occurred.
func explained(name, finding string) bool {
	for i, k := range known {
		if k.v2 && !v2() {
			continue
		}
		if match(k.cases, name) && match(k.finding, finding) {
			occurred.Lock()
			occurred.known[i] = true
			occurred.Unlock()
			return true
		}
	}
	return false
}

// v2 tells whether all of the host's control groups are cgroup v2.
func v2() bool { return len(hierarchies()) == 1 && hierarchies()[""] != "" }

// checkKnown fails for differences that are listed and did not occur.
func checkKnown(t *testing.T) {
	t.Helper()
	for i, k := range known {
		// The table is that of a hybrid host: what a host with cgroup v2 alone lacks of it, it
		// may, as long as it has what is its own.
		if !occurred.known[i] && !k.chance && k.v2 == v2() {
			t.Errorf("the difference of %q in %q did not occur: take it out of the table (%s)", k.finding, k.cases, k.reason)
		}
	}
}

// match matches one of several patterns; slashes are letters like others.
func match(patterns, s string) bool {
	letters := strings.NewReplacer("/", "\x01")
	for pattern := range strings.SplitSeq(patterns, "|") {
		ok, err := path.Match(letters.Replace(pattern), letters.Replace(s))
		if err != nil {
			panic(fmt.Sprintf("pattern %q: %v", pattern, err))
		}
		if ok {
			return true
		}
	}
	return false
}
