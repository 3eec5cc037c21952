package image

import (
	"os"

	"golang.org/x/sys/unix"
)

// topDir is EXT4_TOPDIR_FL (chattr +T), which x/sys does not name.
const topDir = 0x00020000

// spread asks ext4 to put each directory made in dir, with all that will be in it,
// into a part of the disk of its own, as it does for directories of the root. Layers
// unpacked at the same time then do not wait for each other's bitmaps, and above
// all not for inodes freed a moment ago: ext4 takes those again only after a minute
// or more (recently_deleted in fs/ext4/ialloc.c), and until then passes over each
// of them at every file that it makes nearby. A pull after an image was removed took
// five times as long. Other filesystems do not know the flag; that is no error.
func spread(dir string) {
	f, err := os.Open(dir)
	if err != nil {
		return
	}
	defer f.Close()
	flags, err := unix.IoctlGetInt(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err != nil || flags&topDir != 0 {
		return
	}
	_ = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, flags|topDir)
}
