package server

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/base/fault"
	"github.com/orlop-io/orlop/internal/platform/keeper"
	"github.com/orlop-io/orlop/internal/platform/mount"
	"github.com/orlop-io/orlop/internal/platform/namespace"
	"github.com/orlop-io/orlop/internal/platform/overlay"
)

var (
	faultOCIPlaced    = fault.New("runtime.create.rootfs-place-made")
	faultOCIMounted   = fault.New("runtime.create.rootfs-mounted")
	faultOCIUnmounted = fault.New("runtime.delete.rootfs-unmounted")
)

// Root filesystems of containers of other runtimes are mounted on the host: below the keeper's directory, where
// nobody else comes, or, for containers in a user namespace, below Options.Roots. A runtime looks for the
// mount point as the root of that namespace, who is nobody on the host, so all above it can be searched by
// everybody. The directory of each container can by that root's group alone: what programs with set-user-id
// bits there are in an image is not for the host's users.

// private is where the root filesystem of a container is that is in no user namespace.
func (o oci) private(c *container) string { return filepath.Join(o.s.o.Dir, "rootfs", c.id) }

// shared is where the root filesystem of a container in a user namespace is.
func (o oci) shared(c *container) string { return filepath.Join(o.s.o.Roots, c.id, "rootfs") }

// mount makes the root filesystem, and returns where it is.
func (o oci) mount(c *container, spec *keeper.MakeRequest) (string, error) {
	r := spec.Rootfs
	if len(r.Lower) == 0 {
		if !filepath.IsAbs(r.Dir) {
			return "", errs.New(errs.Invalid, "container %s has no root filesystem", c.id)
		}
		if r.IDMap {
			return "", errs.New(errs.Unsupported, "container %s: a directory cannot be the root filesystem of another runtime's container in a user namespace; give its layers", c.id)
		}
		return r.Dir, nil
	}
	layers := overlay.Layers{Lower: r.Lower, Upper: r.Upper, Work: r.Work, Volatile: true}
	at := o.private(c)
	if r.IDMap {
		if r.Upper == "" {
			return "", errs.New(errs.Unsupported, "container %s: the root filesystem of another runtime's container in a user namespace needs a writable layer", c.id)
		}
		users, err := joined(spec.OCI)
		if err != nil {
			return "", fmt.Errorf("root filesystem of %s: %w", c.id, err)
		}
		defer users.File.Close()
		layers.Users, at = users, o.shared(c)
	}
	if err := o.place(c, at, layers.Users); err != nil {
		return "", fmt.Errorf("root filesystem of %s: %w", c.id, err)
	}
	faultOCIPlaced.Hit()
	var f *os.File
	var err error
	if r.Upper == "" {
		f, err = overlay.ReadOnly(r.Lower)
	} else if err = overlay.ForgetVolatile(r.Work); err == nil {
		f, err = overlay.Mount(layers)
	}
	if err != nil {
		return "", fmt.Errorf("root filesystem of %s: %w", c.id, err)
	}
	defer f.Close()
	return at, overlay.Attach(f, at)
}

// place makes the directory that the root filesystem is mounted on.
func (o oci) place(c *container, at string, users *overlay.IDMap) error {
	if users == nil {
		return os.MkdirAll(at, 0o700)
	}
	roots := o.s.o.Roots
	if roots == "" {
		return errs.New(errs.Unsupported, "the keeper was started without -roots, where users other than root find it")
	}
	o.s.roots.Lock()
	defer o.s.roots.Unlock()
	if err := os.MkdirAll(roots, 0o711); err != nil {
		return err
	}
	if err := os.Chmod(roots, 0o711); err != nil { // whatever the umask says
		return err
	}
	for dir := filepath.Dir(roots); dir != "/"; dir = filepath.Dir(dir) {
		fi, err := os.Stat(dir)
		if err != nil {
			return err
		}
		if fi.Mode()&0o001 == 0 {
			return errs.New(errs.FailedPrecondition, "root of a user namespace cannot search %s, on the way to %s; run 'chmod o+x %[1]s', or have the run directory elsewhere", dir, roots)
		}
	}
	_, gid, ok := users.IDs.Root()
	if !ok {
		return errs.New(errs.Invalid, "the mappings of the user namespace have no id 0")
	}
	mine := filepath.Dir(at)
	if err := os.MkdirAll(at, 0o700); err != nil {
		return err
	}
	return errors.Join(os.Chown(mine, 0, gid), os.Chmod(mine, 0o710), os.Chmod(at, 0o755))
}

// joined opens the user namespace that the specification has the container join.
func joined(s *specs.Spec) (*overlay.IDMap, error) {
	i := -1
	if s.Linux != nil {
		i = slices.IndexFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.UserNamespace && n.Path != "" })
	}
	if i < 0 {
		return nil, errs.New(errs.Unsupported, "containers of other runtimes only join a user namespace: its path has to be in the specification")
	}
	f, err := os.Open(s.Linux.Namespaces[i].Path)
	if err != nil {
		return nil, err
	}
	return &overlay.IDMap{File: f, IDs: idMaps(s)}, nil
}

func idMaps(s *specs.Spec) *namespace.IDMaps {
	return &namespace.IDMaps{UIDs: s.Linux.UIDMappings, GIDs: s.Linux.GIDMappings}
}

// unmount takes the root filesystem away again, as far as there is one.
func (o oci) unmount(ctx context.Context, c *container) error {
	for _, at := range []string{o.private(c), o.shared(c)} {
		if err := mount.Unmount(ctx, at, unmountPatience); err != nil {
			if !errors.Is(err, errs.InUse) {
				return err
			}
			if err := mount.Detach(at); err != nil {
				return err
			}
		}
		faultOCIUnmounted.Hit()
		if err := remove(at); err != nil {
			return err
		}
	}
	o.s.roots.Lock()
	defer o.s.roots.Unlock()
	if err := remove(filepath.Dir(o.shared(c))); err != nil {
		return err
	}
	if err := remove(o.s.o.Roots); err != nil && !errors.Is(err, unix.ENOTEMPTY) {
		return err
	}
	return nil
}

// remove removes a directory, which need not be there.
func remove(dir string) error {
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// unmountPatience is for mount namespaces that are just ending.
const unmountPatience = 2 * time.Second
