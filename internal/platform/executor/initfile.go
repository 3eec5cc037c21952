package executor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/platform/executor/guards"
	"github.com/orlop-io/orlop/internal/platform/overlay"
)

// initFile is what init runs from: something that nobody in a container can write to, though
// /proc/PID/exe leads there (CVE-2019-5736).
//
// A sealed memfd is a copy that not even its owner can change, which is what a process wants
// that starts containers for months. Making it takes a tenth of a start: for a command that
// starts one process and ends there is a second way, a read-only overlay that nothing but
// this process's descriptor leads to. Without an upper layer overlayfs has nowhere to write,
// and refuses to be made writable (ovl_reconfigure in the kernel): the file has no contents of
// its own that could be changed, whatever capabilities whoever reaches it has.
//
// What the overlay does not give is the memfd's mode: the file is as readable as the one on
// the disk. Starts in another user namespace rely on that and take the memfd (sealed), and so
// do those that wait at a gate of their own, which others tell from the program by the
// memfd's name.
type initFile struct {
	path string
	once bool // for few processes: read when the first needs it, and by the overlay if that can be

	mu      sync.Mutex
	overlay *os.File // nil: not needed yet, or not to be had
	copy    *os.File // the memfd, once it was needed
}

func newInitFile(path string, once bool) (*initFile, error) {
	x := &initFile{path: path, once: once && guards.Sealed.On()}
	if !x.once {
		if _, err := x.memfd(); err != nil {
			return nil, err
		}
	}
	return x, nil
}

// file is what the process of that plan executes.
func (x *initFile) file(b *builder) (*os.File, error) {
	if x.once && !b.crosses() && b.gate == nil {
		if f := x.readOnly(); f != nil {
			return f, nil
		}
	}
	f, err := x.memfd()
	if err != nil {
		return nil, fmt.Errorf("load init: %w", err)
	}
	return f, nil
}

func (x *initFile) readOnly() *os.File {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.overlay == nil {
		x.overlay = readOnly(x.path)
	}
	return x.overlay
}

func (x *initFile) memfd() (_ *os.File, err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.copy == nil {
		x.copy, err = sealed(x.path)
	}
	return x.copy, err
}

func (x *initFile) close() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	var err error
	for _, f := range []*os.File{x.overlay, x.copy} {
		if f != nil {
			err = errors.Join(err, f.Close())
		}
	}
	return err
}

// beside are directories for an overlay's second layer, which one without an upper layer has
// to have. It shows nothing of them: what is opened is in the first. They must not have the
// binary below them, so there are two.
var beside = [...]string{"/run", "/dev"}

// readOnly opens the file at path by an overlay of its directory. It returns nil where that
// cannot be, for whatever reason: on kernels before 6.7, without the privileges, in a user
// namespace, on an overlay that is upon another.
func readOnly(path string) *os.File {
	if inUserNS() {
		return nil
	}
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return nil
	}
	path, err = filepath.Abs(path)
	if err != nil {
		return nil
	}
	for _, second := range beside {
		root, err := overlay.Mount(overlay.Layers{Lower: []string{filepath.Dir(path), second}})
		if err != nil {
			continue
		}
		fd, err := unix.Openat2(int(root.Fd()), filepath.Base(path), &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS})
		root.Close()
		var st unix.Stat_t
		if err != nil {
			return nil
		}
		if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Mode&0o111 == 0 {
			unix.Close(fd)
			return nil
		}
		return os.NewFile(uintptr(fd), "orlop-init")
	}
	return nil
}
