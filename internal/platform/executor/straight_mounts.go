package executor

import (
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/platform/executor/guards"
	"github.com/orlop-io/orlop/internal/platform/executor/plan"
	"github.com/orlop-io/orlop/internal/platform/executor/tiny"
)

// Mounts: see child/root.go, child/mount.go, child/cover.go and child/pivot.go.

// slot is a mount, or tree of mounts, that is attached nowhere.
type slot struct {
	fd   uint64
	kind kind // of its mount point
	proc bool // may be mounted on /proc
}

// kernelMount is a filesystem that was mounted on /proc or /sys.
type kernelMount struct {
	path, fstype string
	fd           uint64
}

func itoa(n uint64) string { return strconv.FormatUint(n, 10) }

func (s *straight) put(i uint64, sl slot) {
	for uint64(len(s.slots)) <= i {
		s.slots = append(s.slots, slot{})
	}
	s.slots[i] = sl
}

// loUp brings up the loopback interface of a network namespace, which is down in a new one.
func (s *straight) loUp() {
	p := &s.program
	fd := s.opens(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	lo := make([]byte, 40) // struct ifreq of netdevice(7)
	copy(lo, "lo")
	lo[unix.IFNAMSIZ] = unix.IFF_UP
	p.Call(unix.SYS_IOCTL, fd, unix.SIOCSIFFLAGS, p.Data(lo))
	s.closes(fd)
}

// tree clones the mount at a path of the host. The parent does not look at that: it may be of a
// server that does not answer.
func (s *straight) tree(i uint64, recursive bool, path string) {
	flags := uint64(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	fd := s.opens(unix.SYS_OPEN_TREE, here, s.program.String(path), flags)
	s.put(i, slot{fd: fd, kind: kind{like: fd}})
}

// config adds a word to a filesystem context (fsconfig(2)).
func (s *straight) config(fs uint64, key, value string) {
	p := &s.program
	p.Call(unix.SYS_FSCONFIG, fs, unix.FSCONFIG_SET_STRING, p.String(key), p.String(value), 0)
}

func (s *straight) flag(fs uint64, key string) {
	p := &s.program
	p.Call(unix.SYS_FSCONFIG, fs, unix.FSCONFIG_SET_FLAG, p.String(key), 0, 0)
}

// create makes the filesystem of a context.
func (s *straight) create(fs uint64) {
	s.program.Call(unix.SYS_FSCONFIG, fs, unix.FSCONFIG_CMD_CREATE, 0, 0, 0)
}

// mounted makes a mount of a context's filesystem, in the context's place.
func (s *straight) mounted(fs, attr uint64) (fd uint64) {
	fd = s.opens(unix.SYS_FSMOUNT, fs, unix.FSMOUNT_CLOEXEC, attr)
	s.closes(fs)
	return fd
}

// newFS makes a mount of a new filesystem that is attached nowhere.
func (s *straight) newFS(fstype, source string, opts []string, attr uint64) (fd uint64) {
	fs := s.opens(unix.SYS_FSOPEN, s.program.String(fstype), unix.FSOPEN_CLOEXEC)
	if source != "" {
		s.config(fs, "source", source)
	}
	for _, o := range opts {
		if key, value, ok := strings.Cut(o, "="); ok {
			s.config(fs, key, value)
		} else {
			s.flag(fs, o)
		}
	}
	s.create(fs)
	return s.mounted(fs, attr)
}

// overlay mounts the root's layers. One that is mounted inside of a user namespace is
// orlop-init's.
func (s *straight) overlay(o *plan.Op) bool {
	p := &s.program
	i, volatile, inside, uid, gid, old := o.N[0], o.N[1] != 0, o.N[2] != 0, o.N[3], o.N[4], o.N[5] != 0
	upper, work, lower, at := o.S[0], o.S[1], o.S[2:len(o.S)-1], o.S[len(o.S)-1]
	if inside {
		return false
	}
	create := func(make func()) bool {
		if uid == 0 && gid == 0 {
			make()
			return true
		}
		if !s.as(uid, gid) {
			return false
		}
		make()
		return s.as(0, 0)
	}
	byFD := func(path string) string {
		return "/proc/self/fd/" + itoa(s.opens(unix.SYS_OPENAT, here, p.String(path), unix.O_PATH|unix.O_CLOEXEC, 0))
	}
	if old {
		var opts strings.Builder
		for n, dir := range lower {
			opts.WriteString([]string{"lowerdir=", ":"}[min(n, 1)] + byFD(dir))
		}
		flags := uint64(unix.MS_RDONLY)
		if upper != "" {
			opts.WriteString(",upperdir=" + byFD(upper) + ",workdir=" + byFD(work))
			flags = 0
			if volatile {
				opts.WriteString(",volatile")
			}
		}
		if opts.Len() > unix.Getpagesize()-16 {
			return false
		}
		overlay := p.String("overlay")
		if !create(func() { p.Call(unix.SYS_MOUNT, overlay, p.String(at), overlay, flags, p.String(opts.String())) }) {
			return false
		}
		s.put(i, slot{fd: s.opens(unix.SYS_OPEN_TREE, here, p.String(at), unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC), kind: directory})
		return true
	}
	short := func(path string) string {
		if plan.Short(path) {
			return path
		}
		return byFD(path)
	}
	fs := s.opens(unix.SYS_FSOPEN, p.String("overlay"), unix.FSOPEN_CLOEXEC)
	s.config(fs, "source", "overlay")
	for _, dir := range lower {
		s.config(fs, "lowerdir+", short(dir))
	}
	attr := uint64(unix.MOUNT_ATTR_RDONLY)
	if upper != "" {
		s.config(fs, "upperdir", short(upper))
		s.config(fs, "workdir", short(work))
		if volatile {
			s.flag(fs, "volatile")
		}
		attr = 0
	}
	if !create(func() { s.create(fs) }) {
		return false
	}
	s.put(i, slot{fd: s.mounted(fs, attr), kind: directory})
	return true
}

// setattr is mount_setattr(2) on an open mount.
func (s *straight) setattr(fd uint64, recursive bool, a unix.MountAttr) {
	p := &s.program
	flags := uint64(unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	attr := p.Words(a.Attr_set, a.Attr_clr, a.Propagation, a.Userns_fd)
	p.Call(unix.SYS_MOUNT_SETATTR, fd, p.String(""), flags, attr, uint64(unsafe.Sizeof(a)))
}

// propagate changes the propagation of a mount by its path.
func (s *straight) propagate(flags uint64, path string) {
	p := &s.program
	none := p.String("")
	p.Call(unix.SYS_MOUNT, none, p.String(path), none, flags, none)
}

// enterRoot attaches the root to a directory of the host.
func (s *straight) enterRoot(i uint64, at string) {
	p := &s.program
	if s.crosses { // whose root may not be able to go there
		at = "/proc"
	}
	s.root, s.at = s.slots[i].fd, at
	p.Call(unix.SYS_MOVE_MOUNT, s.root, p.String(""), here, p.String(at), unix.MOVE_MOUNT_F_EMPTY_PATH)
	whole := s.where(s.root)
	s.rootAt = func(said []byte) string {
		// Longer than the directory it was called, it could take the room of what is asked below.
		if path, ok := whole(said); ok && len(path) <= len(at)+8 {
			return path
		}
		return ""
	}
	s.check(func(said []byte) bool { return s.rootAt(said) != "" })
}

// place attaches a mount to what a path was found to be.
func (s *straight) place(fd, at uint64, path string) {
	p := &s.program
	s.window(guards.ByDescriptor)
	none := p.String("")
	if !guards.ByDescriptor.On() {
		p.Call(unix.SYS_MOVE_MOUNT, fd, none, here, p.String(s.at+path), unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_SYMLINKS)
		return
	}
	p.Call(unix.SYS_MOVE_MOUNT, fd, none, at, none, unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}

// mayCover has the parent judge whether something may be mounted there: not over the root,
// not over /proc but by a proc filesystem, nor over what is in it but for some files.
func (s *straight) mayCover(at uint64, proc bool) {
	where, whereProc := s.where(at), s.whereProc()
	s.check(func(said []byte) bool {
		path, whole := where(said)
		root := s.rootAt(said)
		if path == root {
			return false
		}
		below, in := strings.CutPrefix(path, whereProc(said, strings.TrimSuffix(root, "/")))
		if !in || !guards.ProcUncovered.On() {
			return true
		}
		return below == "" && proc || below != "" && below[0] != '/' || whole && plan.Coverable(below)
	})
}

// whereProc has the parent know where /proc is. Where its filesystem is mounted that is on a
// directory of the root. Otherwise an image may have a link there, which leads somewhere or, so
// far, nowhere.
func (s *straight) whereProc() (told func(said []byte, root string) string) {
	if s.ownProc {
		return func(said []byte, root string) string { return root + "/proc" }
	}
	fd := s.take()
	s.program.On(tiny.Results{Error: tiny.Skip(2)}, unix.SYS_OPENAT2, s.inRoot("/proc", unix.O_PATH, 0)...)
	where := s.where(fd)
	s.closes(fd)
	return func(said []byte, root string) string {
		if path, _ := where(said); path != "" {
			return path
		}
		return root + "/proc"
	}
}

// mount mounts a new filesystem: see plan.Mount.
func (s *straight) mount(attr, flags, propagation uint64, args []string) bool {
	path, fstype, source, opts := args[0], args[1], args[2], args[3:]
	mode := false
	for _, o := range opts {
		mode = mode || strings.HasPrefix(o, "mode=")
	}
	// A tmpfs without a mode has that of the directory which it covers.
	if flags&plan.MountCopyUp != 0 || fstype == "tmpfs" && !mode {
		return false
	}
	strict := flags&plan.MountStrict != 0
	var resolve uint64
	if strict && guards.RealProc.On() {
		resolve = unix.RESOLVE_NO_SYMLINKS
	}
	at, ok := s.makePath(path, directory, resolve)
	if !ok {
		return false
	}
	fd := s.newFS(fstype, source, opts, attr)
	s.mayCover(at, fstype == "proc")
	s.place(fd, at, path)
	if propagation != 0 {
		s.setattr(fd, true, unix.MountAttr{Propagation: propagation})
	}
	s.closes(at)
	if strict {
		s.kernel = append(s.kernel, kernelMount{path, fstype, fd})
	} else {
		s.closes(fd)
	}
	return true
}

// attach puts the mount in a slot at a path.
func (s *straight) attach(i uint64, path string, propagation uint64, recursive bool) bool {
	sl := s.slots[i]
	at, ok := s.makePath(path, sl.kind, 0)
	if !ok {
		return false
	}
	s.mayCover(at, sl.proc)
	s.place(sl.fd, at, path)
	if propagation != 0 {
		s.setattr(sl.fd, recursive, unix.MountAttr{Propagation: propagation})
	}
	s.closes(at)
	s.closes(sl.fd)
	return true
}

func (s *straight) pathAttr(path string, set, clear uint64, recursive bool) {
	fd := s.open(path, unix.O_PATH)
	s.setattr(fd, recursive, unix.MountAttr{Attr_set: set, Attr_clr: clear})
	s.closes(fd)
}

// device makes a device node. Something that is there is for orlop-init to look at.
func (s *straight) device(path string, mode, dev, uid, gid uint64) bool {
	dir, name, ok := s.parent(path)
	if !ok {
		return false
	}
	p := &s.program
	at := p.String(name)
	p.Call(unix.SYS_MKNODAT, dir, at, mode, dev)
	if uid != 0 || gid != 0 {
		p.Call(unix.SYS_FCHOWNAT, dir, at, uid, gid, unix.AT_SYMLINK_NOFOLLOW)
	}
	return true
}

func (s *straight) symlink(target, path string) bool {
	dir, name, ok := s.parent(path)
	if !ok {
		return false
	}
	p := &s.program
	p.On(tiny.Results{Error: tiny.Report, But: unix.EEXIST}, unix.SYS_SYMLINKAT, p.String(target), dir, p.String(name))
	return true
}

// pivot makes the container's root the process's.
func (s *straight) pivot() {
	p := &s.program
	if guards.NamespaceRoot.On() {
		ns := s.opens(unix.SYS_OPENAT, s.proc, p.String("self/ns/mnt"), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		p.Call(unix.SYS_SETNS, ns, unix.CLONE_NEWNS)
		s.closes(ns)
	}
	dot := p.String(".")
	p.Call(unix.SYS_FCHDIR, s.root)
	p.Call(unix.SYS_PIVOT_ROOT, dot, dot)
	if guards.OldRoot.On() {
		p.Call(unix.SYS_UMOUNT2, dot, unix.MNT_DETACH)
	}
	s.at = ""
	p.Call(unix.SYS_CHDIR, p.String("/"))
}

// clone clones the single mount that a descriptor is on, or all that is mounted there.
func (s *straight) clone(fd, recursive uint64) uint64 {
	return s.opens(unix.SYS_OPEN_TREE, fd, s.program.String(""), unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH|recursive)
}

// openNull opens the container's null device, and has the parent make sure that it is it.
func (s *straight) openNull(flags uint64) uint64 {
	if !guards.NullChecked.On() {
		return s.open("/dev/null", flags)
	}
	null := s.open("/dev/null", flags|unix.O_NOFOLLOW)
	s.window(guards.NullChecked)
	file := s.stat(null)
	s.check(func(said []byte) bool { return isDevice(statAt(said, file), 1, 3) })
	return null
}
