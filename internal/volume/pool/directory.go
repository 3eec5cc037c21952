package pool

import (
	"errors"
	"os"

	"github.com/orlop-io/orlop/internal/base/atomicfile"
	"golang.org/x/sys/unix"
)

// openDirectory makes the pool's directory.
func (p *Pool) openDirectory() error {
	if err := os.Mkdir(p.root, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return atomicfile.SyncDir(p.o.Dir)
}

// makeVolumesDir makes the directory of images. On btrfs it is marked so that files
// made in it are written in place unless they are shared: copying on every write
// would scatter an image over the disk.
func (p *Pool) makeVolumesDir() error {
	err := os.Mkdir(p.volumes, 0o700)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(p.volumes, &st); err == nil && int64(st.Type) == unix.BTRFS_SUPER_MAGIC {
		if err := setNoCOW(p.volumes); err != nil {
			p.o.Log.Warn("volumes will be copied on every write", "dir", p.volumes, "error", err)
		}
	}
	return atomicfile.SyncDir(p.root)
}

// fsNoCOW is FS_NOCOW_FL (linux/fs.h).
const fsNoCOW = 0x00800000

func setNoCOW(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil {
		return err
	}
	return unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags|fsNoCOW)
}
