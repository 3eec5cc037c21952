package mount

import (
	"os"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// RemoveTree removes a directory and everything in it, like os.RemoveAll, unless
// something is mounted there: what is mounted is somebody's data, of which the
// directory is only the place. That is an errs.InUse error, and nothing is removed.
func RemoveTree(dir string) error {
	if _, err := os.Lstat(dir); os.IsNotExist(err) {
		return nil
	}
	all, err := Below(dir)
	if err != nil {
		return err
	}
	if len(all) > 0 {
		return errs.New(errs.InUse, "remove %s: %s is mounted at %s; unmount it first", dir, all[0].Source, all[0].Point)
	}
	return os.RemoveAll(dir)
}
