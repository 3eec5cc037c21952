// Package loop makes files block devices (loop(4)), and finds again the devices
// that a process before this one made.
//
// A device is recognised by the file behind it (device and inode number), never
// by its own number: numbers are reused, and other programs have loop devices of their own, which this package never
// changes. Attaching a file that has a device already
// returns that device, because two devices on one file corrupt it.
package loop

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/mount"
	"golang.org/x/sys/unix"
)

// Options of Attach.
type Options struct {
	ReadOnly bool
	// DirectIO reads and writes the file without the page cache, so that data is not cached
	// twice and memory is charged to who uses the volume. Where the
	// filesystem below cannot do it, the kernel goes on without.
	DirectIO bool
	// Autoclear detaches the file when the last opener or mount lets go: a
	// process that dies before it has mounted the device leaves nothing.
	Autoclear bool
	// SectorBytes is the smallest block that can be addressed: 512 (0 means it) or a power of two
	// up to the page. What is on the device may depend on it (XFS, partition tables), so it must be the same
	// whenever a file is attached; left to itself, the kernel takes what direct I/O to the file wants at the time, which
	// changes when the file is first reflinked. Where direct I/O wants more than SectorBytes, the kernel
	// goes on without.
	SectorBytes uint32
}

// Device is an attached loop device, held open by this process.
type Device struct {
	Path     string // /dev/loopN
	ReadOnly bool
	DirectIO bool
	file     *os.File
}

// Close lets go of the device. Without Autoclear, or while it is mounted, it stays attached.
func (d *Device) Close() error { return d.file.Close() }

// attachMu keeps two goroutines of this process from attaching one file twice. Two
// processes are kept apart by the lock of the state file above.
var attachMu sync.Mutex

// Attach returns the device of the file, making it where it has none. A device that exists
// keeps its flags, except that Autoclear is set or cleared as asked.
func Attach(ctx context.Context, path string, o Options) (*Device, error) {
	attachMu.Lock()
	defer attachMu.Unlock()
	for {
		dev, err := adopt(path, o)
		if err != nil || dev != nil {
			return dev, err
		}
		dev, err = configure(path, o)
		// Between asking for a free device and taking it, somebody else took it.
		if errors.Is(err, unix.EBUSY) && ctx.Err() == nil {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("attach %s: %w", path, err)
		}
		return dev, nil
	}
}

// adopt opens the device that the file already has; nil if it has none.
func adopt(path string, o Options) (*Device, error) {
	i, ok, err := Find(path)
	if err != nil || !ok {
		return nil, err
	}
	if i.Broken {
		return nil, errs.New(errs.Unavailable, "attach %s: its device %s fails, as the filesystem below has shut down", path, i.Device)
	}
	f, err := openNode(i.Device)
	if err != nil {
		return nil, err
	}
	info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	if err != nil || info.Device != i.BackingDev || info.Inode != i.BackingInode {
		f.Close() // it went away meanwhile
		return nil, nil
	}
	d := &Device{Path: i.Device, file: f, ReadOnly: info.Flags&unix.LO_FLAGS_READ_ONLY != 0, DirectIO: info.Flags&unix.LO_FLAGS_DIRECT_IO != 0}
	if d.ReadOnly != o.ReadOnly {
		f.Close()
		return nil, errs.New(errs.InUse, "attach %s: %s has it already, read-only %v", path, i.Device, d.ReadOnly)
	}
	if auto := info.Flags&unix.LO_FLAGS_AUTOCLEAR != 0; auto != o.Autoclear {
		info.Flags ^= unix.LO_FLAGS_AUTOCLEAR
		if err := unix.IoctlLoopSetStatus64(int(f.Fd()), info); err != nil {
			f.Close()
			return nil, fmt.Errorf("set autoclear of %s: %w", i.Device, err)
		}
	}
	return d, nil
}

func configure(path string, o Options) (*Device, error) {
	mode := os.O_RDWR
	if o.ReadOnly {
		mode = os.O_RDONLY
	}
	backing, err := os.OpenFile(path, mode|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer backing.Close()
	ctl, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, errs.New(errs.Unsupported, "open loop control device: %w; load the module: modprobe loop", err)
	}
	defer ctl.Close()
	n, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
	if err != nil {
		return nil, fmt.Errorf("get a free loop device: %w", err)
	}
	node := fmt.Sprintf("/dev/loop%d", n)
	f, err := openNode(node)
	if err != nil {
		return nil, err
	}
	c := unix.LoopConfig{Fd: uint32(backing.Fd()), Size: max(512, o.SectorBytes)} // block_size
	if o.ReadOnly {
		c.Info.Flags |= unix.LO_FLAGS_READ_ONLY
	}
	if o.DirectIO && readsDirectly(path) {
		c.Info.Flags |= unix.LO_FLAGS_DIRECT_IO
	}
	if o.Autoclear {
		c.Info.Flags |= unix.LO_FLAGS_AUTOCLEAR
	}
	copy(c.Info.File_name[:len(c.Info.File_name)-1], path)           // for losetup(8)'s sake only
	if err := unix.IoctlLoopConfigure(int(f.Fd()), &c); err != nil { // Linux 5.8
		f.Close()
		return nil, fmt.Errorf("configure %s: %w", node, err)
	}
	d := &Device{Path: node, file: f, ReadOnly: o.ReadOnly}
	if info, err := unix.IoctlLoopGetStatus64(int(f.Fd())); err == nil {
		d.DirectIO = info.Flags&unix.LO_FLAGS_DIRECT_IO != 0
	}
	return d, nil
}

// readsDirectly tells whether direct I/O to the file works. The kernel goes by what the
// filesystem says, and overlayfs up to Linux 6.5 says yes whatever is below: over a tmpfs
// the device then fails with every read.
func readsDirectly(path string) bool {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECT|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	page, err := unix.Mmap(-1, 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS) // aligned
	if err != nil {
		return false
	}
	defer unix.Munmap(page)
	_, err = unix.Pread(fd, page, 0)
	return err == nil
}

// openNode opens a loop device's node. devtmpfs makes it a moment after the device on
// some hosts (udev renames and permissions), never on others; where /dev is not devtmpfs the
// node is made here.
func openNode(node string) (*os.File, error) {
	f, err := os.OpenFile(node, os.O_RDWR|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.EROFS) || errors.Is(err, unix.EACCES) { // a read-only device
		f, err = os.OpenFile(node, os.O_RDONLY|unix.O_CLOEXEC, 0)
	}
	if !errors.Is(err, os.ErrNotExist) {
		return f, err
	}
	var n int
	if _, err := fmt.Sscanf(filepath.Base(node), "loop%d", &n); err != nil {
		return nil, fmt.Errorf("%s is not a loop device", node)
	}
	major, minor, err := sysDev(filepath.Base(node))
	if err != nil {
		return nil, err
	}
	if err := unix.Mknod(node, unix.S_IFBLK|0o600, int(unix.Mkdev(major, minor))); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, &os.PathError{Op: "mknod", Path: node, Err: err}
	}
	return os.OpenFile(node, os.O_RDWR|unix.O_CLOEXEC, 0)
}

// Refresh gives the device of the file the file's present size. It is for a
// file that has grown; a file without a device is no error.
func Refresh(path string) error {
	i, ok, err := Find(path)
	if err != nil || !ok {
		return err
	}
	f, err := openNode(i.Device)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.IoctlSetInt(int(f.Fd()), unix.LOOP_SET_CAPACITY, 0); err != nil {
		return fmt.Errorf("set capacity of %s: %w", i.Device, err)
	}
	return nil
}

// Detach takes the file's device away and waits until it is gone. While something
// uses it, it is marked to go by itself with its last user, and waited for
// until the context ends; then the error is an errs.InUse. A file without a
// device is no error.
func Detach(ctx context.Context, path string) error {
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		i, ok, err := Find(path)
		if err != nil || !ok {
			return err
		}
		if err := clear(i); err != nil {
			return fmt.Errorf("detach %s from %s: %w", i.Device, path, err)
		}
		if wait == time.Millisecond { // usually it is gone at once
			if _, ok, err := Find(path); err != nil || !ok {
				return err
			}
		}
		select {
		case <-ctx.Done():
			if u := mount.DeviceUsers(i.Device); len(u) > 0 {
				return errs.New(errs.InUse, "detach %s from %s: the device is open, or mounted in the mount namespace, of %s; end that first", i.Device, path, strings.Join(u, ", "))
			}
			return errs.New(errs.InUse, "detach %s from %s: the device is still open or mounted, perhaps in another mount namespace", i.Device, path)
		case <-time.After(wait):
		}
	}
}

// clear asks for the detachment of exactly the device and file in i.
func clear(i Info) error {
	f, err := openNode(i.Device)
	if errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	// While it is open here it cannot become another file's.
	info, err := unix.IoctlLoopGetStatus64(int(f.Fd()))
	same := err == nil && info.Device == i.BackingDev && info.Inode == i.BackingInode
	if i.Broken {
		backing, err := backingFile("/sys/block/" + filepath.Base(i.Device) + "/loop")
		same = err == nil && backing == i.Backing
	}
	if !same {
		return nil
	}
	// With other openers this sets autoclear and succeeds (loop(4), LOOP_CLR_FD).
	err = unix.IoctlSetInt(int(f.Fd()), unix.LOOP_CLR_FD, 0)
	if errors.Is(err, unix.ENXIO) || errors.Is(err, unix.EBUSY) {
		return nil
	}
	return err
}
