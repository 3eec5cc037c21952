package loop

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Info describes an attached device.
type Info struct {
	Device       string // /dev/loopN
	Backing      string // path of the file as the kernel shows it; "(deleted)" cut off
	BackingDev   uint64 // device and inode number of the file: what identifies it
	BackingInode uint64
	DirectIO     bool
	Autoclear    bool
	ReadOnly     bool
	SizeBytes    int64
}

// Find returns the device of the file, if it has one.
func Find(path string) (i Info, ok bool, err error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		if errors.Is(err, unix.ENOENT) {
			return i, false, nil
		}
		return i, false, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	name := filepath.Base(path)
	all, err := List(func(backing string) bool { return filepath.Base(backing) == name })
	if err != nil {
		return i, false, err
	}
	for _, d := range all {
		if d.BackingDev == st.Dev && d.BackingInode == st.Ino {
			return d, true, nil
		}
	}
	return i, false, nil
}

// List returns the attached devices whose file's path is accepted; nil accepts all. Only
// those are opened, and none is changed. The path is relative to where
// the file's filesystem was mounted; it may be wrong for one that is mounted no more:
// compare BackingDev and BackingInode before doing anything to a device.
func List(accept func(backing string) bool) ([]Info, error) {
	dirs, err := filepath.Glob("/sys/block/loop*/loop")
	if err != nil {
		return nil, err
	}
	var all []Info
	for _, dir := range dirs { // the directory is there only while a file is attached
		raw, err := os.ReadFile(filepath.Join(dir, "backing_file"))
		if err != nil {
			continue // detached meanwhile
		}
		backing := strings.TrimSuffix(strings.TrimSuffix(string(raw), "\n"), " (deleted)")
		if accept != nil && !accept(backing) {
			continue
		}
		i, ok, err := status("/dev/" + filepath.Base(filepath.Dir(dir)))
		if err != nil {
			return nil, err
		}
		if ok {
			i.Backing = backing
			all = append(all, i)
		}
	}
	return all, nil
}

func status(node string) (i Info, ok bool, err error) {
	f, err := os.OpenFile(node, os.O_RDONLY|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV):
		return i, false, nil
	case err != nil:
		return i, false, err
	}
	defer f.Close()
	s, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	if errors.Is(err, unix.ENXIO) {
		return i, false, nil // detached meanwhile
	}
	if err != nil {
		return i, false, fmt.Errorf("status of %s: %w", node, err)
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return i, false, fmt.Errorf("size of %s: %w", node, err)
	}
	return Info{
		Device: node, BackingDev: s.Device, BackingInode: s.Inode, SizeBytes: size,
		DirectIO:  s.Flags&unix.LO_FLAGS_DIRECT_IO != 0,
		Autoclear: s.Flags&unix.LO_FLAGS_AUTOCLEAR != 0,
		ReadOnly:  s.Flags&unix.LO_FLAGS_READ_ONLY != 0,
	}, true, nil
}

// sysDev reads a block device's number.
func sysDev(name string) (major, minor uint32, err error) {
	raw, err := os.ReadFile("/sys/class/block/" + name + "/dev")
	if err != nil {
		return 0, 0, err
	}
	if _, err := fmt.Sscanf(string(raw), "%d:%d", &major, &minor); err != nil {
		return 0, 0, fmt.Errorf("parse device number %q of %s: %w", raw, name, err)
	}
	return major, minor, nil
}
