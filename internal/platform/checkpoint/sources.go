package checkpoint

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/cgroup"
	"github.com/orlop-io/orlop/internal/platform/criu"
	"github.com/orlop-io/orlop/internal/platform/mount"
	"github.com/orlop-io/orlop/internal/platform/namespace"
)

// Privately runs fn on a thread with a mount namespace of its own, which is gone with what
// is mounted in it once fn has returned and what it started there has ended.
func Privately(fn func() error) error {
	return namespace.OnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return fmt.Errorf("make a mount namespace: %w", err)
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
			return fmt.Errorf("keep mounts from the host: %w", err)
		}
		return fn()
	})
}

// Sources makes the mount points that a specification needs and a root filesystem lacks, as a
// create does, and returns what CRIU is to mount by each name.
//
// Everything is mounted for it, in a namespace that ends with the call, as a mount point may be
// in another mount: of filesystems that are restored with what is in them there is an
// empty one in their place.
func Sources(spec *specs.Spec, bundle, rootfs string, g *cgroup.Group) (list []criu.Pair, err error) {
	add := func(name, source string) { list = append(list, criu.Pair{Key: name, Value: source}) }
	err = Privately(func() error {
		root, err := unix.Open(rootfs, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open root filesystem %s: %w", rootfs, err)
		}
		defer unix.Close(root)
		for _, m := range spec.Mounts {
			dest, source := path.Join("/", m.Destination), m.Source
			if !isBind(m) {
				source = ""
			} else if !filepath.IsAbs(source) {
				source = filepath.Join(bundle, source)
			}
			if err := place(root, dest, source, func(at string, below []string) {
				name, _ := strings.CutPrefix(at, rootfs)
				if isCgroup(m) && !OwnNamespace(spec, specs.CgroupNamespace) {
					dirs := g.Dirs()
					for _, dir := range dirs {
						add(name, dir)
						if len(dirs) > 1 {
							hierarchy := strings.TrimSuffix(dir, g.Path())
							list[len(list)-1].Key += "/" + path.Base(hierarchy)
						}
					}
				}
				if source == "" {
					return
				}
				add(name, source)
				for _, b := range below {
					add(name+b, source+b)
				}
			}); err != nil {
				return fmt.Errorf("mount on %s: %w", dest, err)
			}
		}
		return nil
	})
	if err != nil || spec.Linux == nil {
		return list, err
	}
	if len(spec.Linux.MaskedPaths) > 0 {
		add(maskName, "/dev/null")
	}
	for _, p := range devicePaths(spec) {
		if _, err := os.Stat(p); err == nil && p != maskName {
			add(p, p)
		}
	}
	return list, nil
}

// place mounts a source at a path of the root, or where there is none an empty filesystem, and tells
// where that is, and what is mounted below it.
func place(root int, dest, source string, tell func(at string, below []string)) error {
	dir := true
	if source != "" {
		st, err := os.Stat(source)
		if err != nil {
			return errs.New(errs.NotFound, "the source: %w", err)
		}
		dir = st.IsDir()
	}
	fd, err := mountPoint(root, dest, dir)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	self := "/proc/self/fd/" + strconv.Itoa(fd)
	at, err := os.Readlink(self)
	if err != nil {
		return err
	}
	if source == "" {
		return unix.Mount("tmpfs", self, "tmpfs", 0, "mode=755")
	}
	if err := unix.Mount(source, self, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("bind %s: %w", source, err)
	}
	f, err := os.Open("/proc/thread-self/mountinfo")
	if err != nil {
		return err
	}
	defer f.Close()
	all, err := mount.Parse(f)
	if err != nil {
		return err
	}
	var below []string
	for _, m := range all {
		if rest, ok := strings.CutPrefix(m.Point, at+"/"); ok {
			below = append(below, "/"+rest)
		}
	}
	tell(at, below)
	return nil
}

// mountPoint opens what is at a path of the root, and makes it, and the directories above,
// where it is missing.
func mountPoint(root int, p string, dir bool) (int, error) {
	fd, err := inRoot(root, p)
	if err != unix.ENOENT || p == "/" {
		return fd, err
	}
	above, err := mountPoint(root, path.Dir(p), true)
	if err != nil {
		return -1, err
	}
	defer unix.Close(above)
	if dir {
		err = unix.Mkdirat(above, path.Base(p), 0o755)
	} else if fd, err = unix.Openat(above, path.Base(p), unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o644); err == nil {
		unix.Close(fd)
	}
	if err == unix.EEXIST {
		return -1, errs.New(errs.Invalid, "%s is a symbolic link that leads nowhere in the root filesystem", p)
	}
	if err != nil {
		return -1, fmt.Errorf("make mount point %s: %w", p, err)
	}
	return inRoot(root, p)
}
