// Package checkpoint saves containers that run, by CRIU, and says what a restore needs to know: what of a
// container is outside of it, and is not saved.
//
// Callers have containers of their own making: orlop-oci by a directory of state, the daemon by the
// keeper.
package checkpoint

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/criu"
)

// Images say where a checkpoint is, and how CRIU treats what a container shares with outside.
type Images struct {
	// CRIU is the binary: a path, or a name that is looked for in PATH.
	CRIU string
	// Dir is the directory of the images. Work, where it is not empty, is that of logs and
	// statistics.
	Dir, Work string
	// Cgroups is what CRIU does with control groups: soft, full, strict or ignore. "" is soft
	// where a container has made groups below its own, else ignore, and for a restore what the
	// checkpoint was made with. The container's own is made by a restore in any case, with the
	// limits of the specification.
	Cgroups string

	TCPEstablished, TCPClose bool
	ExtUnixSockets           bool
	ShellJob                 bool // what has its terminal from outside
	FileLocks                bool
	AutoDedup                bool
	LazyPages                bool
	LSMProfile, LSMContext   string
}

// descriptors is the file beside the images that tells what the standard streams were.
const descriptors = "descriptors.json"

// Open finds CRIU, and refuses what it cannot do before anything is touched.
func (i *Images) Open(ctx context.Context) (*criu.CRIU, error) {
	if os.Geteuid() != 0 {
		return nil, errs.New(errs.PermissionDenied, "checkpoint and restore need root: CRIU does")
	}
	if _, err := i.mode(); i.Cgroups != "" && err != nil {
		return nil, err
	}
	tool, err := criu.Open(ctx, i.CRIU)
	if err != nil {
		return nil, err
	}
	if i.LSMProfile+i.LSMContext != "" && tool.Version() < criu.LSM {
		return nil, errs.New(errs.Unsupported, "--lsm-profile and --lsm-mount-context need CRIU %s, and this one is %s", criu.LSM, tool.Version())
	}
	return tool, nil
}

func (i *Images) mode() (criu.CgroupMode, error) {
	switch i.Cgroups {
	case "soft":
		return criu.CgroupsSoft, nil
	case "full":
		return criu.CgroupsFull, nil
	case "strict":
		return criu.CgroupsStrict, nil
	case "ignore":
		return criu.CgroupsIgnore, nil
	}
	return 0, errs.New(errs.Invalid, "manage-cgroups-mode %q: use soft, full, strict or ignore", i.Cgroups)
}

// Options are those that saving and restoring have in common.
func (i *Images) Options(log string) (o *criu.Options, err error) {
	o = &criu.Options{
		LogFile: log, TCPEstablished: i.TCPEstablished, TCPClose: i.TCPClose, ExtUnixSockets: i.ExtUnixSockets, ShellJob: i.ShellJob,
		FileLocks: i.FileLocks, AutoDedup: i.AutoDedup, LazyPages: i.LazyPages, LSMProfile: i.LSMProfile, LSMContext: i.LSMContext,
		OrphanPtsMaster: true,
		// Interfaces are whoever's that made them, as at a create.
		EmptyNamespaces: unix.CLONE_NEWNET,
	}
	o.Cgroups, err = i.mode()
	return o, err
}

// OpenDirs opens the directories, which are to be closed.
func (i *Images) OpenDirs(o *criu.Options) (err error) {
	if o.Images, err = os.Open(i.Dir); err != nil {
		return fmt.Errorf("open the images: %w", err)
	}
	if i.Work != "" {
		if err = os.MkdirAll(i.Work, 0o700); err == nil {
			o.Work, err = os.Open(i.Work)
		}
		if err != nil {
			o.Images.Close()
			return fmt.Errorf("open the work directory: %w", err)
		}
	}
	return nil
}

// Explain adds to an error what CRIU's log tells of it.
func (i *Images) Explain(err error, log string) error {
	dir := i.Dir
	if i.Work != "" {
		dir = i.Work
	}
	return criu.Explain(err, filepath.Join(dir, log))
}

// SavedStreams reads what the standard streams of a checkpoint were.
func SavedStreams(dir string) (streams []string, err error) {
	data, err := os.ReadFile(filepath.Join(dir, descriptors))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errs.New(errs.NotFound, "%s has no checkpoint: %s is not there; --image-path names the directory of one", dir, descriptors)
	}
	if err == nil {
		err = json.Unmarshal(data, &streams)
	}
	if err != nil {
		return nil, errs.New(errs.Corrupt, "read what the standard streams were: %s/%s: %w", dir, descriptors, err)
	}
	return streams[:min(len(streams), 3)], nil
}
