package container

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/cgroup"
	"github.com/orlop-io/orlop/internal/platform/criu"
	"github.com/orlop-io/orlop/internal/platform/mount"
	"github.com/orlop-io/orlop/internal/platform/namespace"
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
		case isCgroup(m) && !ownNamespace(spec, specs.CgroupNamespace):
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

// privately runs fn on a thread with a mount namespace of its own, which is gone with what
// is mounted in it once fn has returned and what it started there has ended.
func privately(fn func() error) error {
	return namespace.OnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("make a mount namespace: %w", err)
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
			return fmt.Errorf("keep mounts from the host: %w", err)
		}
		return fn()
	})
}

// sources makes the mount points that a specification needs and a root filesystem lacks, as a
// create does, and returns what CRIU is to mount by each name.
//
// Everything is mounted for it, in a namespace that ends with the call, as a mount point may be
// in another mount: of filesystems that are restored with what is in them there is an
// empty one in their place.
func sources(spec *specs.Spec, bundle, rootfs string, g *cgroup.Group) (list []criu.Pair, err error) {
	add := func(name, source string) { list = append(list, criu.Pair{Key: name, Value: source}) }
	err = privately(func() error {
		root, err := unix.Open(rootfs, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open root filesystem %s: %w", rootfs, err)
		}
		defer unix.Close(root)
		for _, m := range spec.Mounts {
			dest, source := path.Join("/", m.Destination), m.Source
			if !isBind(m) {
				source = ""
			} else if !filepath.IsAbs(source) {
				source = filepath.Join(bundle, source)
			}
			if err := place(root, dest, source, func(at string, below []string) {
				name, _ := strings.CutPrefix(at, rootfs)
				if isCgroup(m) && !ownNamespace(spec, specs.CgroupNamespace) {
					dirs := g.Dirs()
					for _, dir := range dirs {
						add(name, dir)
						if len(dirs) > 1 {
							hierarchy := strings.TrimSuffix(dir, g.Path())
							list[len(list)-1].Key += "/" + path.Base(hierarchy)
						}
					}
				}
				if source == "" {
					return
				}
				add(name, source)
				for _, b := range below {
					add(name+b, source+b)
				}
			}); err != nil {
				return fmt.Errorf("mount on %s: %w", dest, err)
			}
		}
		return nil
	})
	if err != nil || spec.Linux == nil {
		return list, err
	}
	if len(spec.Linux.MaskedPaths) > 0 {
		add(maskName, "/dev/null")
	}
	for _, p := range devicePaths(spec) {
		if _, err := os.Stat(p); err == nil && p != maskName {
			add(p, p)
		}
	}
	return list, nil
}

// place mounts a source at a path of the root, or where there is none an empty filesystem, and tells
// where that is, and what is mounted below it.
func place(root int, dest, source string, tell func(at string, below []string)) error {
	dir := true
	if source != "" {
		st, err := os.Stat(source)
		if err != nil {
			return errs.New(errs.NotFound, "the source: %w", err)
		}
		dir = st.IsDir()
	}
	fd, err := mountPoint(root, dest, dir)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	self := "/proc/self/fd/" + strconv.Itoa(fd)
	at, err := os.Readlink(self)
	if err != nil {
		return err
	}
	if source == "" {
		return unix.Mount("tmpfs", self, "tmpfs", 0, "mode=755")
	}
	if err := unix.Mount(source, self, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind %s: %w", source, err)
	}
	f, err := os.Open("/proc/thread-self/mountinfo")
	if err != nil {
		return err
	}
	defer f.Close()
	all, err := mount.Parse(f)
	if err != nil {
		return err
	}
	var below []string
	for _, m := range all {
		if rest, ok := strings.CutPrefix(m.Point, at+"/"); ok {
			below = append(below, "/"+rest)
		}
	}
	tell(at, below)
	return nil
}

// mountPoint opens what is at a path of the root, and makes it, and the directories above,
// where it is missing.
func mountPoint(root int, p string, dir bool) (int, error) {
	fd, err := inRoot(root, p)
	if err != unix.ENOENT || p == "/" {
		return fd, err
	}
	above, err := mountPoint(root, path.Dir(p), true)
	if err != nil {
		return -1, err
	}
	defer unix.Close(above)
	if dir {
		err = unix.Mkdirat(above, path.Base(p), 0o755)
	} else if fd, err = unix.Openat(above, path.Base(p), unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o644); err == nil {
		unix.Close(fd)
	}
	if err == unix.EEXIST {
		return -1, errs.New(errs.Invalid, "%s is a symbolic link that leads nowhere in the root filesystem", p)
	}
	if err != nil {
		return -1, fmt.Errorf("make mount point %s: %w", p, err)
	}
	return inRoot(root, p)
}

// joined returns the path of a namespace that a container has joined, "" for one of its own
// and for one that is the caller's.
func joined(spec *specs.Spec, kind specs.LinuxNamespaceType, file string) (string, error) {
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

// externalNamespaces are those that CRIU can leave out: they are there before a restore.
var externalNamespaces = []struct {
	kind       specs.LinuxNamespaceType
	file, name string
}{{specs.NetworkNamespace, "net", "extRootNetNS"}, {specs.PIDNamespace, "pid", "extRootPidNS"}}

// joinedNamespaces are those that CRIU can restore into.
var joinedNamespaces = []struct {
	kind specs.LinuxNamespaceType
	file string
}{{specs.IPCNamespace, "ipc"}, {specs.UTSNamespace, "uts"}, {specs.UserNamespace, "user"}}

// savable refuses what would not come back as it was.
func savable(spec *specs.Spec) error {
	for _, m := range spec.Mounts {
		if len(m.UIDMappings)+len(m.GIDMappings) > 0 || slices.Contains(m.Options, "idmap") || slices.Contains(m.Options, "ridmap") {
			return errs.New(errs.Unsupported, "mount on %s: CRIU does not save id-mapped mounts", m.Destination)
		}
	}
	if spec.Linux == nil {
		return nil
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

// isExternal tells whether a stream is one that a restore gives anew.
func isExternal(stream string) bool {
	return strings.HasPrefix(stream, "pipe:") || strings.HasPrefix(stream, "file[")
}
