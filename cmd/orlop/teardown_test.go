package main

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// What --purge removes when the durable directory is a directory, and when it is a disk.
func TestPurgeRoot(t *testing.T) {
	for _, disk := range []bool{false, true} {
		root := filepath.Join(t.TempDir(), "root")
		if err := os.MkdirAll(root, 0o700); err != nil {
			t.Fatal(err)
		}
		if disk {
			if err := unix.Mount("tmpfs", root, "tmpfs", 0, ""); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { unix.Unmount(root, unix.MNT_DETACH) })
			if err := os.Mkdir(root+"/lost+found", 0o700); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.MkdirAll(root+"/volume/mnt", 0o700); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", root+"/volume/mnt", "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(root+"/state.db", nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := purgeRoot(t.Context(), root); err != nil {
			t.Fatal(err)
		}
		entries, err := os.ReadDir(root)
		if disk && (err != nil || len(entries) != 1 || entries[0].Name() != "lost+found") || !disk && !os.IsNotExist(err) {
			t.Errorf("disk %t: %v, %v", disk, entries, err)
		}
		if disk {
			if err := unix.Unmount(root, 0); err != nil {
				t.Errorf("the disk is not mounted any more: %v", err)
			}
		}
		if err := purgeRoot(t.Context(), filepath.Join(root, "none")); err != nil {
			t.Errorf("nothing to purge: %v", err)
		}
	}
}
