package child

import (
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/platform/executor/guards"
	"github.com/orlop-io/orlop/internal/platform/executor/plan"
)

const emptyPaths = unix.MOVE_MOUNT_F_EMPTY_PATH | unix.MOVE_MOUNT_T_EMPTY_PATH

// fsFailed adds what the kernel has to say about a filesystem context (fsopen(2)).
func (s *state) fsFailed(fs int, err error, operand string) *fail {
	f := failed(err, operand)
	var buf [1024]byte
	for len(f.hint) < 2048 {
		n, err := unix.Read(fs, buf[:])
		if err != nil || n <= 2 {
			break
		}
		if f.hint != "" {
			f.hint += "; "
		}
		f.hint += string(buf[2:n]) // after "e ", "w " or "i "
	}
	return f
}

// newFS makes a mount of a new filesystem that is attached nowhere.
func (s *state) newFS(fstype, source string, opts []string, attr uint64) (int, *fail) {
	fs, err := unix.Fsopen(fstype, unix.FSOPEN_CLOEXEC)
	if err == unix.ENODEV {
		return -1, &fail{unix.ENODEV, fstype, "the kernel does not have this filesystem"}
	}
	if err != nil {
		return -1, failed(err, fstype)
	}
	defer unix.Close(fs)
	if source != "" {
		if err := unix.FsconfigSetString(fs, "source", source); err != nil {
			return -1, s.fsFailed(fs, err, source)
		}
	}
	for _, o := range opts {
		if err := setOption(fs, o); err != nil {
			return -1, s.fsFailed(fs, err, fstype+" option "+o)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, s.fsFailed(fs, err, fstype)
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, int(attr))
	if err != nil {
		return -1, s.fsFailed(fs, err, fstype)
	}
	return fd, nil
}

func setOption(fs int, o string) error {
	for i := range len(o) {
		if o[i] == '=' {
			return unix.FsconfigSetString(fs, o[:i], o[i+1:])
		}
	}
	return unix.FsconfigSetFlag(fs, o)
}

// mount mounts a new filesystem: args are path, type, source, options. A tmpfs that is not
// given a mode takes it from the directory that it covers, if the image has one.
func (s *state) mount(attr, flags, propagation uint64, args []string) *fail {
	path, fstype, source, opts := args[0], args[1], args[2], args[3:]
	var resolve uint64
	if flags&plan.MountStrict != 0 {
		resolve = unix.RESOLVE_NO_SYMLINKS
	}
	if !guards.RealProc.On() {
		resolve = 0
	}
	at, f := s.makePath(path, true, 0o755, resolve)
	if f != nil {
		return f
	}
	defer unix.Close(at)
	mode := option(opts, "mode=")
	if fstype == "tmpfs" && !mode && !s.made {
		var st unix.Stat_t
		if err := unix.Fstat(at, &st); err != nil {
			return failed(err, path)
		}
		opts = append(opts[:len(opts):len(opts)], "mode="+octal(st.Mode&0o7777))
	}
	first := attr
	if flags&plan.MountCopyUp != 0 {
		first &^= unix.MOUNT_ATTR_RDONLY
	}
	fd, f := s.newFS(fstype, source, opts, first)
	if f != nil {
		f.operand += " at " + path
		return f
	}
	if flags&plan.MountStrict != 0 {
		s.kernel = append(s.kernel, kernelMount{path, fd})
	} else {
		defer unix.Close(fd)
	}
	if flags&plan.MountCopyUp != 0 {
		if f := copyUp(at, fd, path, mode); f != nil {
			return f
		}
		if first != attr {
			if err := setattr(fd, unix.MOUNT_ATTR_RDONLY, 0, 0, false); err != nil {
				return failed(err, path)
			}
		}
	}
	if f := s.mayCover(at, fd, path); f != nil {
		return f
	}
	if err := s.place(fd, at, path); err != nil {
		return failed(err, path)
	}
	if propagation != 0 {
		return failed(setattr(fd, 0, 0, propagation, true), path)
	}
	return nil
}

// option tells whether one of the options begins so.
func option(opts []string, prefix string) bool {
	for _, o := range opts {
		if len(o) >= len(prefix) && o[:len(prefix)] == prefix {
			return true
		}
	}
	return false
}

// octal writes permission bits.
func octal(mode uint32) string {
	return string([]byte{'0' + byte(mode>>9&7), '0' + byte(mode>>6&7), '0' + byte(mode>>3&7), '0' + byte(mode&7)})
}

// attach puts the mount in slot i at path. Its propagation, if one is asked for, is set once
// it is there: what is put on a shared mount becomes shared, and what is unbindable cannot
// be put on one (mount_namespaces(7); sharedsubtree of the kernel's documentation).
func (s *state) attach(i int, path string, propagation uint64, recursive bool) *fail {
	sl := s.slots[i]
	mode := uint32(0o644)
	if sl.dir {
		mode = 0o755
	}
	at, f := s.makePath(path, sl.dir, mode, 0)
	if f != nil {
		return f
	}
	f = s.mayCover(at, sl.fd, path)
	if f == nil {
		f = failed(s.place(sl.fd, at, path), path)
	}
	if f == nil && propagation != 0 {
		f = failed(setattr(sl.fd, 0, 0, propagation, recursive), path)
	}
	unix.Close(at)
	unix.Close(sl.fd)
	return f
}

// slotAttr changes a mount that is not attached yet.
func (s *state) slotAttr(i int, set, clear, propagation uint64, recursive bool) *fail {
	err := setattr(s.slots[i].fd, set, clear, propagation, recursive)
	f := failed(err, s.slots[i].source)
	if err == unix.EPERM && clear != 0 {
		f.hint = "an option of the host's mount (ro, nosuid, nodev, noexec or atime) may not be taken away in a user namespace"
	}
	return f
}

// place attaches the mount fd to at, which is what path was found to be.
func (s *state) place(fd, at int, path string) error {
	guards.ByDescriptor.Window()
	if !guards.ByDescriptor.On() {
		return unix.MoveMount(fd, "", unix.AT_FDCWD, s.at+path, unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_SYMLINKS)
	}
	return unix.MoveMount(fd, "", at, "", emptyPaths)
}

// kernelMount is a filesystem that was mounted on /proc or /sys.
type kernelMount struct {
	path string
	fd   int
}

// openKernel opens what is to be masked. In /proc and /sys it goes from the mounts that
// were made there: the directory that they are on may have been renamed by somebody who
// shares the root filesystem, and then the path leads to something else while the mount
// goes along with the directory (rename(2) of a mount point of another mount namespace).
func (s *state) openKernel(path string) (int, error) {
	guards.MasksByMount.Window()
	for i := len(s.kernel) - 1; i >= 0 && guards.MasksByMount.On(); i-- {
		m := s.kernel[i]
		if len(path) > len(m.path) && path[:len(m.path)] == m.path && path[len(m.path)] == '/' {
			return openAt(m.fd, path[len(m.path)+1:], unix.O_PATH, 0, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_MAGICLINKS)
		}
	}
	return s.open(path, unix.O_PATH, 0)
}

// setattr is mount_setattr(2) on an open mount.
func setattr(fd int, set, clear, propagation uint64, recursive bool) error {
	flags := uint(unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	return unix.MountSetattr(fd, "", flags, &unix.MountAttr{Attr_set: set, Attr_clr: clear, Propagation: propagation})
}

func (s *state) pathAttr(path string, set, clear uint64, recursive bool) *fail {
	fd, err := s.open(path, unix.O_PATH, 0)
	if err != nil {
		return failed(err, path)
	}
	defer unix.Close(fd)
	return failed(setattr(fd, set, clear, 0, recursive), path)
}

// cloneMount clones the single mount that fd is on.
func cloneMount(fd int) (int, error) {
	return unix.OpenTree(fd, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
}

// mask hides what is at the paths: a file under the null device, a directory under an
// empty read-only filesystem. All directories share one.
func (s *state) mask(paths []string) *fail {
	if !guards.Masked.On() {
		return nil
	}
	null, empty := -1, -1
	for _, path := range paths {
		at, err := s.openKernel(path)
		if err == unix.ENOENT || err == unix.ENOTDIR {
			continue
		}
		if err != nil {
			return failed(err, path)
		}
		dir, err := isDir(at)
		if err != nil {
			return failed(err, path)
		}
		var m int
		switch {
		case !dir:
			if null < 0 {
				// The container's own /dev/null, proven to be it: an image could have
				// put anything there to have it shown in place of what is masked.
				var f *fail
				if null, f = s.openNull(unix.O_PATH); f != nil {
					return f
				}
			}
			m, err = cloneMount(null)
		case empty < 0:
			var f *fail
			if empty, f = s.newFS("tmpfs", "tmpfs", []string{"ro", "nr_blocks=1", "nr_inodes=1"}, unix.MOUNT_ATTR_RDONLY); f != nil {
				return f
			}
			m = empty
		default:
			m, err = cloneMount(empty)
		}
		if err != nil {
			return failed(err, path)
		}
		if err := s.place(m, at, path); err != nil {
			return failed(err, path)
		}
		unix.Close(at)
		if m != empty {
			unix.Close(m)
		}
	}
	if null >= 0 {
		unix.Close(null)
	}
	if empty >= 0 {
		unix.Close(empty)
	}
	return nil
}

// readOnly binds each path over itself, read-only. The root is made so itself: a mount over
// it would lie above what processes have as their root.
func (s *state) readOnly(paths []string) *fail {
	if !guards.ReadOnly.On() {
		return nil
	}
	for _, path := range paths {
		at, err := s.openKernel(path)
		if err == unix.ENOENT || err == unix.ENOTDIR {
			continue
		}
		if err != nil {
			return failed(err, path)
		}
		root, err := s.isRoot(at)
		if err == nil && root {
			err = setattr(at, unix.MOUNT_ATTR_RDONLY, 0, 0, false)
		}
		if err != nil {
			return failed(err, path)
		}
		if root {
			unix.Close(at)
			continue
		}
		m, err := unix.OpenTree(at, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH|unix.AT_RECURSIVE)
		if err != nil {
			return failed(err, path)
		}
		if err := setattr(m, unix.MOUNT_ATTR_RDONLY, 0, 0, false); err != nil {
			return failed(err, path)
		}
		if err := s.place(m, at, path); err != nil {
			return failed(err, path)
		}
		unix.Close(at)
		unix.Close(m)
	}
	return nil
}
