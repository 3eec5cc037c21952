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
	// Broken: the filesystem that holds the file has shut down, so the file's numbers cannot be
	// asked for. Only Device, Backing and SizeBytes are set.
	Broken bool
}

// Find returns the device of the file, if it has one.
func Find(path string) (i Info, ok bool, err error) {
	name := filepath.Base(path)
	all, err := List(func(backing string) bool { return filepath.Base(backing) == name })
	if err != nil || len(all) == 0 {
		return i, false, err
	}
	return Match(path, all)
}

// Match returns which of the devices is the file's.
func Match(path string, devices []Info) (i Info, ok bool, err error) {
	var st unix.Stat_t
	broken := false
	switch err := unix.Stat(path, &st); {
	case errors.Is(err, unix.ENOENT):
		return i, false, nil
	case errors.Is(err, unix.EIO):
		broken = true // its filesystem has shut down; only names are left
	case err != nil:
		return i, false, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	full := path
	if dir, err := filepath.EvalSymlinks(filepath.Dir(path)); err == nil {
		full = filepath.Join(dir, filepath.Base(path))
	}
	for _, d := range devices {
		same := d.BackingDev == st.Dev && d.BackingInode == st.Ino
		if broken || d.Broken {
			same = d.Backing == full
		}
		if same {
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
		backing, err := backingFile(dir)
		if err != nil {
			continue // detached meanwhile
		}
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

// backingFile returns the path of the file as sysfs shows it below /sys/block/loopN/loop.
func backingFile(dir string) (string, error) {
	raw, err := os.ReadFile(filepath.Join(dir, "backing_file"))
	return strings.TrimSuffix(strings.TrimSuffix(string(raw), "\n"), " (deleted)"), err
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
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return i, false, fmt.Errorf("size of %s: %w", node, err)
	}
	s, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	switch {
	case errors.Is(err, unix.ENXIO):
		return i, false, nil // detached meanwhile
	case errors.Is(err, unix.EIO):
		return Info{Device: node, SizeBytes: size, Broken: true}, true, nil
	case err != nil:
		return i, false, fmt.Errorf("status of %s: %w", node, err)
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
