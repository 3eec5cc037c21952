package ext4

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Spread tells ext4 that the subdirectories of dir have nothing to do with each other,
// so that it puts each into another block group (EXT4_TOPDIR_FL, chattr(1) +T). It does
// so only where that pays: without a journal ext4 passes, at every new file, over each
// inode of the group that was freed in the last five seconds (kernel commit
// 19883bd9658d), so that making and removing containers in one group costs more the
// faster it goes. With a journal it does not look, and groups apart cost writes.
//
// On another filesystem it does nothing.
func Spread(dir string) error {
	bare, err := journalless(dir)
	if err != nil || !bare {
		return err
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

// journalless tells whether dir is on an ext4 without a journal.
func journalless(dir string) (bool, error) {
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
