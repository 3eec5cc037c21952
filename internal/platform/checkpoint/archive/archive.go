// Package archive writes and reads the tar files in which containers that were saved travel.
package archive

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/atomicfile"
	"github.com/orlop-io/orlop/internal/base/ctxreader"
	"github.com/orlop-io/orlop/internal/base/errs"
)

// An archive is a tar file of a container that was saved, with the names that CRI-O, containerd and
// podman give what is in it (checkpointctl, lib/metadata.go), so that one may read what the other has
// written.
const (
	ImagesDir       = "checkpoint"      // directory of CRIU's images
	ConfigFile      = "config.dump"     // Config
	SpecFile        = "spec.dump"       // the OCI specification
	StatusFile      = "status.dump"     // what the CRI says of the container
	TimesFile       = "status"          // Times
	RootfsDiffFile  = "rootfs-diff.tar" // what was added to and changed of the image's files
	DeletedFile     = "deleted.files"   // paths that the container has removed
	BindMountsFile  = "bind.mounts"     // list of BindMount
	ContainerLog    = "container.log"
	temporarySuffix = ".orlop-tmp"
)

// Config is what an archive says of its container.
type Config struct {
	ID              string    `json:"id"`
	Name            string    `json:"name"`
	RootfsImage     string    `json:"rootfsImage,omitempty"`    // as it was asked for
	RootfsImageRef  string    `json:"rootfsImageRef,omitempty"` // id without its algorithm
	RootfsImageName string    `json:"rootfsImageName,omitempty"`
	OCIRuntime      string    `json:"runtime,omitempty"`
	CreatedTime     time.Time `json:"createdTime"`
	CheckpointedAt  time.Time `json:"checkpointedTime"`
	RestoredAt      time.Time `json:"restoredTime"`
	Restored        bool      `json:"restored"`
}

// Times is what containerd writes down of a container, in nanoseconds since 1970.
type Times struct {
	CreatedAt, StartedAt, FinishedAt int64
	ExitCode                         int32
	Pid                              uint32
	Reason, Message                  string
}

// BindMount tells what the source of a bind mount has to be: where it is missing, some restorers make
// one of that type.
type BindMount struct {
	Source      string `json:"source"`
	Destination string `json:"destination"`
	FileType    string `json:"file_type"` // directory, file
	Permissions uint32 `json:"permissions"`
}

// WriteJSON writes a file of an archive into the directory that it is made of.
func WriteJSON(dir, name string, v any) error {
	raw, err := json.Marshal(v)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, name), raw, 0o600)
	}
	if err != nil {
		return full(fmt.Errorf("write %s: %w", name, err))
	}
	return nil
}

// CheckLocation refuses what no archive can be written to: the path must be absolute, its directory there,
// and nothing at it. It is an error rather than a replacement, as who asks may mean another file.
func CheckLocation(location string) error {
	if !filepath.IsAbs(location) || filepath.Clean(location) != location || strings.ContainsRune(location, 0) {
		return errs.New(errs.Invalid, "location %.256q: it must be the absolute path of a file, without . and ..", location)
	}
	dir, err := os.Stat(filepath.Dir(location))
	if err == nil && !dir.IsDir() {
		err = unix.ENOTDIR
	}
	if err != nil {
		return errs.New(errs.Invalid, "location %s: its directory cannot be used: %w; make it first", location, err)
	}
	switch _, err := os.Lstat(location); {
	case err == nil:
		return errs.New(errs.AlreadyExists, "location %s: there is something already; give another path, or remove it first", location)
	case !errors.Is(err, fs.ErrNotExist):
		return errs.New(errs.Invalid, "location %s: %w", location, err)
	}
	return nil
}

// Temporary is the name of an archive on its way. It is always the same for one id, so that whoever
// comes after a caller that was killed can remove it.
func Temporary(location, id string) string {
	return filepath.Join(filepath.Dir(location), "."+id+temporarySuffix)
}

// Write makes an archive of a directory, which it removes file by file, so that memory is not on the
// disk twice. It is at location when all of it is on the disk, not before, and nothing is replaced
// (errs.AlreadyExists). On error nothing is there. ready is called before it gets its name.
func Write(ctx context.Context, dir, location, id string, ready func()) (err error) {
	tmp := Temporary(location, id)
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove an archive that was not finished: %w", err)
	}
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return full(fmt.Errorf("make the archive: %w", err))
	}
	defer func() {
		if err != nil {
			f.Close()
			os.Remove(tmp)
			err = full(fmt.Errorf("write the archive %s: %w", location, err))
		}
	}()
	w := tar.NewWriter(f)
	err = filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || p == dir {
			return err
		}
		if err := context.Cause(ctx); err != nil {
			return err
		}
		return pack(ctx, w, dir, p, e)
	})
	if err == nil {
		err = w.Close()
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		return err
	}
	ready()
	err = unix.Renameat2(unix.AT_FDCWD, tmp, unix.AT_FDCWD, location, unix.RENAME_NOREPLACE)
	if err == unix.EINVAL || err == unix.ENOSYS { // a filesystem that cannot, as NFS
		if err = unix.Link(tmp, location); err == nil {
			err = os.Remove(tmp)
		}
	}
	if err == unix.EEXIST {
		return errs.New(errs.AlreadyExists, "somebody has made another file there meanwhile: give another path")
	}
	if err != nil {
		return err
	}
	return atomicfile.SyncDir(filepath.Dir(location))
}

// pack adds a file, and removes it.
func pack(ctx context.Context, w *tar.Writer, dir, p string, e fs.DirEntry) error {
	info, err := e.Info()
	if err != nil {
		return err
	}
	if !info.IsDir() && !info.Mode().IsRegular() {
		return nil // sockets of CRIU
	}
	h, err := tar.FileInfoHeader(info, "")
	if err != nil {
		return err
	}
	if h.Name, err = filepath.Rel(dir, p); err != nil {
		return err
	}
	h.Mode, h.Uid, h.Gid, h.Uname, h.Gname = 0o600, 0, 0, "", ""
	if info.IsDir() {
		h.Name, h.Mode = h.Name+"/", 0o700
		return w.WriteHeader(h)
	}
	f, err := os.Open(p)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	if _, err := io.Copy(w, ctxreader.New(ctx, f)); err != nil {
		return err
	}
	return os.Remove(p)
}

// full tells a disk that is full from other errors.
func full(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return errs.As(errs.ResourceExhausted, err)
	}
	return err
}
