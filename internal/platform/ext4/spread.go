package ext4

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Spread asks ext4 to put each directory made in dir, with all that will be in it, into a
// part of the disk of its own, as it does for directories of the root (EXT4_TOPDIR_FL,
// chattr(1) +T). What is written to several of them at a time does not wait for each
// other's bitmaps, and without a journal (NoJournal) not for inodes freed a moment ago.
// On another filesystem it does nothing.
func Spread(dir string) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return fmt.Errorf("look at the filesystem of %s: %w", dir, err)
	}
	if fs.Type != unix.EXT4_SUPER_MAGIC {
		return nil
	}
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
	if err == nil && flags&topDir == 0 {
		err = unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, int(flags|topDir))
	}
	if err != nil {
		return fmt.Errorf("spread the directories of %s: %w", dir, err)
	}
	return nil
}

const topDir = 0x20000 // EXT4_TOPDIR_FL, which unix does not have

// NoJournal tells whether dir is on an ext4 without a journal. There a new file costs a look
// at every inode of its block group that was freed in the last five seconds, or as long as
// it was not written (recently_deleted in fs/ext4/ialloc.c, kernel commit 19883bd9658d): the
// faster containers come and go, the more.
func NoJournal(dir string) (bool, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return false, fmt.Errorf("look at the filesystem of %s: %w", dir, err)
	}
	if fs.Type != unix.EXT4_SUPER_MAGIC {
		return false, nil
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return false, fmt.Errorf("look at %s: %w", dir, err)
	}
	device, err := os.Readlink(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev)))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil // ext2 by another driver, or no sysfs
	}
	if err != nil {
		return false, err
	}
	// The task that writes the journal, or "<none>".
	raw, err := os.ReadFile("/sys/fs/ext4/" + device[strings.LastIndexByte(device, '/')+1:] + "/journal_task")
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return strings.TrimSpace(string(raw)) == "<none>", err
}
