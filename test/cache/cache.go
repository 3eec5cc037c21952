// Package cache is where tests keep what is dear to get — a kernel, a kubelet — from one
// run to the next: outside of any source tree, one entry a version.
package cache

import (
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Dir is ORLOP_TEST_CACHE, or /var/cache/orlop-test for root and the user's cache
// directory for others.
func Dir() (string, error) {
	if d := os.Getenv("ORLOP_TEST_CACHE"); d != "" {
		return d, nil
	}
	if os.Getuid() == 0 {
		return "/var/cache/orlop-test", nil
	}
	d, err := os.UserCacheDir()
	return filepath.Join(d, "orlop-test"), err
}

// Lock makes the directory and keeps other processes that fill it away until unlock. An
// entry is made beside its place and renamed: what is there is whole.
func Lock(dir string) (unlock func(), err error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil // and with it the lock
}
