package checkpoint

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/criu"
	"github.com/orlop-io/orlop/internal/platform/mount"
)

// A checkpoint has all of a container but what is outside: of that CRIU keeps a name, and a
// restore says what the name means then. The names are those that runc uses, so that one may
// restore what the other saved:
//
//	bind mounts            where they are in the container
//	masked files           /dev/null
//	joined namespaces      extRootNetNS, extRootPidNS
//	standard streams       what /proc/PID/fd tells of them, in descriptors.json beside the images

// maskName is the name of what masked files are covered with.
const maskName = "/dev/null"

// inRoot opens what is at a path of a container, as a process in it would find it.
func inRoot(root int, p string) (int, error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	for try := 0; ; try++ {
		fd, err := unix.Openat2(root, p, &how)
		if err == unix.EINTR || err == unix.EAGAIN && try < 128 { // renamed meanwhile
			continue
		}
		return fd, err
	}
}

// mountTable is a container's, with the ways through it.
type mountTable struct {
	root     int // its root directory, open
	all      []mount.Info
	children map[int][]mount.Info
}

func openMountTable(pid int) (*mountTable, error) {
	proc := "/proc/" + strconv.Itoa(pid)
	f, err := os.Open(proc + "/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("read the container's mounts: %w", err)
	}
	defer f.Close()
	t := &mountTable{children: map[int][]mount.Info{}}
	if t.all, err = mount.Parse(f); err != nil {
		return nil, fmt.Errorf("read the container's mounts: %w", err)
	}
	for _, m := range t.all {
		t.children[m.Parent] = append(t.children[m.Parent], m)
	}
	if t.root, err = unix.Open(proc+"/root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return nil, fmt.Errorf("open the container's root: %w", err)
	}
	return t, nil
}

func (t *mountTable) close() { unix.Close(t.root) }

// at returns the mount whose root is at a path, false where something else is there.
func (t *mountTable) at(p string) (m mount.Info, dir, ok bool, err error) {
	fd, err := inRoot(t.root, p)
	if err == unix.ENOENT || err == unix.ENOTDIR {
		return m, false, false, nil
	}
	if err != nil {
		return m, false, false, fmt.Errorf("look at %s in the container: %w", p, err)
	}
	defer unix.Close(fd)
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID|unix.STATX_TYPE, &st); err != nil {
		return m, false, false, fmt.Errorf("look at %s in the container: %w", p, err)
	}
	if st.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return m, false, false, nil
	}
	i := slices.IndexFunc(t.all, func(m mount.Info) bool { return uint64(m.ID) == st.Mnt_id })
	if i < 0 {
		return m, false, false, nil
	}
	return t.all[i], st.Mode&unix.S_IFMT == unix.S_IFDIR, true, nil
}

// external lists the mounts that come from outside, with the names that CRIU is to know them by.
func (t *mountTable) external(spec *specs.Spec) (list []criu.Pair, err error) {
	claimed := map[int]bool{}
	var binds []mount.Info
	for _, m := range spec.Mounts {
		at, _, ok, err := t.at(path.Join("/", m.Destination))
		if err != nil {
			return nil, err
		}
		if !ok || claimed[at.ID] { // taken away, or mounted over, by the container
			continue
		}
		claimed[at.ID] = true
		switch {
		case isBind(m):
			binds = append(binds, at)
		case isCgroup(m) && !OwnNamespace(spec, specs.CgroupNamespace):
			// The groups' directories, bound: in it, or below it where there are several.
			if at.Root != "/" {
				binds = append(binds, at)
			}
			for _, c := range t.children[at.ID] {
				claimed[c.ID] = true
				binds = append(binds, c)
			}
		}
	}
	add := func(point, name string) { list = append(list, criu.Pair{Key: point, Value: name}) }
	var walk func(m mount.Info)
	walk = func(m mount.Info) {
		add(m.Point, m.Point)
		for _, c := range t.children[m.ID] { // what the host had below it
			if !claimed[c.ID] {
				walk(c)
			}
		}
	}
	for _, m := range binds {
		walk(m)
	}
	if spec.Linux == nil {
		return list, nil
	}
	for _, p := range spec.Linux.MaskedPaths {
		if m, dir, ok, err := t.at(p); err != nil {
			return nil, err
		} else if ok && !dir {
			add(m.Point, maskName)
		}
	}
	for _, p := range devicePaths(spec) {
		if m, dir, ok, err := t.at(p); err != nil {
			return nil, err
		} else if ok && !dir && !claimed[m.ID] {
			add(m.Point, m.Point)
		}
	}
	return list, nil
}

// devicePaths are where a container in a user namespace has devices of the host bound.
func devicePaths(spec *specs.Spec) []string {
	list := []string{"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"}
	for _, d := range spec.Linux.Devices {
		list = append(list, path.Clean(d.Path))
	}
	return list
}

func isBind(m specs.Mount) bool {
	return m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")
}

func isCgroup(m specs.Mount) bool { return m.Type == "cgroup" || m.Type == "cgroup2" }

// OwnNamespace tells whether a container has a namespace of its own.
func OwnNamespace(spec *specs.Spec, kind specs.LinuxNamespaceType) bool {
	return spec.Linux != nil && slices.ContainsFunc(spec.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == kind && n.Path == "" })
}

// Joined returns the path of a namespace that a container has joined, "" for one of its own
// and for one that is the caller's.
func Joined(spec *specs.Spec, kind specs.LinuxNamespaceType, file string) (string, error) {
	if spec.Linux == nil {
		return "", nil
	}
	for _, n := range spec.Linux.Namespaces {
		if n.Type != kind || n.Path == "" {
			continue
		}
		var own, its unix.Stat_t
		if err := unix.Stat(n.Path, &its); err != nil {
			return "", errs.New(errs.NotFound, "%s namespace: %w", kind, &fs.PathError{Op: "stat", Path: n.Path, Err: err})
		}
		if err := unix.Stat("/proc/self/ns/"+file, &own); err == nil && own.Dev == its.Dev && own.Ino == its.Ino {
			return "", nil
		}
		return n.Path, nil
	}
	return "", nil
}

// ExternalNamespaces are those that CRIU can leave out: they are there before a restore.
var ExternalNamespaces = []struct {
	Kind       specs.LinuxNamespaceType
	File, Name string
}{{specs.NetworkNamespace, "net", "extRootNetNS"}, {specs.PIDNamespace, "pid", "extRootPidNS"}}

// JoinedNamespaces are those that CRIU can restore into.
var JoinedNamespaces = []struct {
	Kind specs.LinuxNamespaceType
	File string
}{{specs.IPCNamespace, "ipc"}, {specs.UTSNamespace, "uts"}, {specs.UserNamespace, "user"}}

// Savable refuses what would not come back as it was.
func Savable(spec *specs.Spec) error {
	for _, m := range spec.Mounts {
		if len(m.UIDMappings)+len(m.GIDMappings) > 0 || slices.Contains(m.Options, "idmap") || slices.Contains(m.Options, "ridmap") {
			return errs.New(errs.Unsupported, "mount on %s: CRIU does not save id-mapped mounts", m.Destination)
		}
	}
	if spec.Linux == nil {
		return nil
	}
	if len(spec.Linux.NetDevices) > 0 {
		return errs.New(errs.Unsupported, "linux.netDevices: CRIU does not save network devices; have a hook give the container its interfaces")
	}
	if spec.Linux.IntelRdt != nil {
		return errs.New(errs.Unsupported, "linux.intelRdt: CRIU does not save classes of Intel RDT")
	}
	for _, n := range spec.Linux.Namespaces {
		if n.Path != "" && (n.Type == specs.MountNamespace || n.Type == specs.CgroupNamespace || n.Type == specs.TimeNamespace) {
			return errs.New(errs.Unsupported, "CRIU cannot restore into the %s namespace that is joined (%s)", n.Type, n.Path)
		}
	}
	if s := spec.Linux.Seccomp; s != nil {
		if s.DefaultAction == specs.ActNotify || slices.ContainsFunc(s.Syscalls, func(r specs.LinuxSyscall) bool { return r.Action == specs.ActNotify }) {
			return errs.New(errs.Unsupported, "CRIU does not save seccomp filters that ask a listener (SCMP_ACT_NOTIFY)")
		}
	}
	return nil
}

// stream is what a standard stream of a container is, as descriptors.json has it: what
// /proc/PID/fd tells; for a file of outside, the key by which CRIU leaves it out, file[mount:inode].
func stream(pid, fd int, table *mountTable) (string, error) {
	p := fmt.Sprintf("/proc/%d/fd/%d", pid, fd)
	link, err := os.Readlink(p)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil // closed
	}
	if err != nil {
		return "", fmt.Errorf("look at the container's descriptors: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Stat(p, &st); err != nil {
		return link, nil
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
	case unix.S_IFIFO: // one of the filesystem is as a file
		if strings.HasPrefix(link, "pipe:") {
			return link, nil
		}
	case unix.S_IFCHR:
		if unix.Major(st.Rdev) != 1 { // terminals are --shell-job's business
			return link, nil
		}
	default:
		return link, nil
	}
	info, err := os.ReadFile(fmt.Sprintf("/proc/%d/fdinfo/%d", pid, fd))
	if err != nil {
		return "", fmt.Errorf("look at the container's descriptors: %w", err)
	}
	for line := range strings.Lines(string(info)) {
		if v, ok := strings.CutPrefix(line, "mnt_id:"); ok {
			id, err := strconv.Atoi(strings.TrimSpace(v))
			if err == nil && !slices.ContainsFunc(table.all, func(m mount.Info) bool { return m.ID == id }) {
				return fmt.Sprintf("file[%x:%x]", id, st.Ino), nil
			}
		}
	}
	return link, nil
}

// IsExternal tells whether a stream is one that a restore gives anew.
func IsExternal(stream string) bool {
	return strings.HasPrefix(stream, "pipe:") || strings.HasPrefix(stream, "file[")
}
