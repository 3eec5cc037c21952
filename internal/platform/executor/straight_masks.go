package executor

import (
	"strings"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/platform/executor/guards"
	"github.com/orlop-io/orlop/internal/platform/executor/tiny"
)

// Masked and read-only paths: see child/mount.go.

// hidden is a path of a specification's masked and read-only ones.
type hidden struct {
	path   string
	exists bool
	dir    bool
	fd     uint64 // of the filesystem of the kernel that is mounted above it, and
	below  string // the path from there, "" if there is none
}

// hidden tells what to expect at a path. The container's /proc and /sys are of the same kernel
// as the host's, which are looked at, and elsewhere there is nothing as a rule. Whether that is
// so is seen when it is opened.
func (s *straight) hidden(path string) (h hidden, ok bool) {
	for i := len(s.kernel) - 1; i >= 0; i-- {
		m := s.kernel[i]
		below, in := strings.CutPrefix(path, m.path+"/")
		if !in || below == "" {
			continue
		}
		h = hidden{path: path, fd: m.fd, below: below}
		host := "/sys"
		if m.fstype == "proc" {
			host = "/proc"
		}
		var st unix.Stat_t
		err := unix.Stat(host+"/"+below, &st)
		h.exists, h.dir = err == nil, st.Mode&unix.S_IFMT == unix.S_IFDIR
		return h, err == nil || err == unix.ENOENT
	}
	return hidden{path: path}, true
}

// openHidden opens what is to be hidden; there must be nothing where nothing was expected.
func (s *straight) openHidden(h hidden) (at uint64) {
	s.window(guards.MasksByMount)
	args := s.inRoot(h.path, unix.O_PATH, 0)
	if h.below != "" && guards.MasksByMount.On() {
		args = append([]uint64{h.fd}, s.how(h.below, unix.O_PATH, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_MAGICLINKS)...)
	}
	if h.exists {
		return s.opens(unix.SYS_OPENAT2, args...)
	}
	s.program.On(tiny.Results{Error: tiny.Report, But: unix.ENOENT, More: tiny.Report}, unix.SYS_OPENAT2, args...)
	return 0
}

// over attaches to each of the paths at which there is something what mount returns.
func (s *straight) over(paths []string, mount func(at uint64, dir bool) (m uint64, shared bool)) bool {
	for _, path := range paths {
		h, ok := s.hidden(path)
		if !ok {
			return false
		}
		at := s.openHidden(h)
		if !h.exists {
			continue
		}
		m, shared := mount(at, h.dir)
		s.place(m, at, path)
		s.closes(at)
		if !shared {
			s.closes(m)
		}
	}
	return true
}

// mask hides files under the null device, directories under an empty filesystem, of which
// there is one.
func (s *straight) mask(paths []string) bool {
	if !guards.Masked.On() {
		return true
	}
	var null, empty uint64
	ok := s.over(paths, func(_ uint64, dir bool) (uint64, bool) {
		switch {
		case !dir:
			if null == 0 {
				null = s.openNull(unix.O_PATH)
			}
			return s.clone(null, 0), false
		case empty == 0:
			empty = s.newFS("tmpfs", "tmpfs", []string{"ro", "nr_blocks=1", "nr_inodes=1"}, unix.MOUNT_ATTR_RDONLY)
			return empty, true
		}
		return s.clone(empty, 0), false
	})
	for _, fd := range []uint64{null, empty} {
		if fd != 0 {
			s.closes(fd)
		}
	}
	return ok
}

// readOnly binds each path over itself, read-only.
func (s *straight) readOnly(paths []string) bool {
	if !guards.ReadOnly.On() {
		return true
	}
	return s.over(paths, func(at uint64, _ bool) (uint64, bool) {
		m := s.clone(at, unix.AT_RECURSIVE)
		s.setattr(m, false, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
		return m, false
	})
}
