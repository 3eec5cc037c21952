package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/mount"
	"github.com/orlop-io/orlop/internal/platform/overlay"
)

// binds are the mounts of a container: the pod's files and what the client asks for,
// which takes their place where it is the same path.
func (d *Driven) binds(ctx context.Context, pod *drivenPod, id ContainerID, c *ContainerConfig, dry bool) ([]specs.Mount, error) {
	w := pod.w
	spec := w.spec()
	var list []specs.Mount
	own := func(path string) bool {
		return slices.ContainsFunc(c.Binds, func(b Bind) bool { return filepath.Clean(b.ContainerPath) == path })
	}
	for _, f := range []string{"hosts", "hostname", "resolv.conf"} {
		if !own("/etc/" + f) {
			list = append(list, bind(filepath.Join(w.runDir(), "etc", f), "/etc/"+f, c.Security.ReadOnlyRoot))
		}
	}
	if !own("/dev/shm") {
		from := filepath.Join(w.runDir(), "shm")
		if spec.HostIPC {
			from = "/dev/shm"
		}
		list = append(list, bind(from, "/dev/shm", false))
	}
	for i, b := range c.Binds {
		if !filepath.IsAbs(b.ContainerPath) {
			b.ContainerPath = filepath.Join("/", b.ContainerPath)
		}
		from := b.HostPath
		switch {
		case b.Image != "":
			b.ReadOnly = true
			path, err := d.imageMount(ctx, pod, id, i, b, dry)
			if err != nil {
				return nil, err
			}
			from = path
		case !filepath.IsAbs(from):
			return nil, errs.New(errs.Invalid, "mount on %s: host path %q is not an absolute path", b.ContainerPath, from)
		default:
			resolved, err := filepath.EvalSymlinks(from)
			if errors.Is(err, os.ErrNotExist) {
				// As the field's runtimes do: a missing source is made, as a directory.
				if !dry {
					err = os.MkdirAll(from, 0o755)
				} else {
					err = nil
				}
				resolved = from
			}
			if err != nil {
				return nil, errs.New(errs.Invalid, "mount on %s: %w", b.ContainerPath, err)
			}
			from = resolved
		}
		m := idMapped(bind(from, b.ContainerPath, b.ReadOnly), b.Users)
		m.Options = append(m.Options, propagation(b.Propagation))
		if b.Recursive {
			if !b.ReadOnly || b.Propagation != "" {
				return nil, errs.New(errs.Invalid, "mount on %s: a recursive read-only mount must be read-only and private", b.ContainerPath)
			}
			m.Options[1] = "rro"
		}
		if b.Propagation != "" && !dry {
			if err := checkPropagation(from, b.Propagation); err != nil {
				return nil, errs.New(errs.Invalid, "mount on %s: %w", b.ContainerPath, err)
			}
		}
		list = append(list, m)
	}
	sort.SliceStable(list, func(i, j int) bool { return depth(list[i].Destination) < depth(list[j].Destination) })
	return list, nil
}

// checkPropagation: mounts can only pass through a mount of the host that is shared, or
// a slave of one.
func checkPropagation(path, want string) error {
	list, err := mount.List()
	if err != nil {
		return err
	}
	best := -1
	for i, m := range list {
		if rel, err := filepath.Rel(m.Point, path); err == nil && filepath.IsLocal(rel) && (best < 0 || len(m.Point) >= len(list[best].Point)) {
			best = i
		}
	}
	if best < 0 || strings.Contains(list[best].Optional, "shared:") || want == "HostToContainer" && strings.Contains(list[best].Optional, "master:") {
		return nil
	}
	return fmt.Errorf("path %q is on %s, which is not a shared mount: mount propagation %s is not possible", path, list[best].Point, want)
}

// imageMount shows an image's files, read-only, and returns where.
func (d *Driven) imageMount(ctx context.Context, pod *drivenPod, id ContainerID, i int, b Bind, dry bool) (string, error) {
	img, err := d.p.o.Images.Use(ctx, b.Image)
	if err != nil {
		return "", err
	}
	if b.SubPath != "" && !filepath.IsLocal(b.SubPath) {
		return "", errs.New(errs.Invalid, "mount on %s: sub-path %q leaves the image", b.ContainerPath, b.SubPath)
	}
	dir := filepath.Join(pod.w.runDir(), "containers", string(id), "image", strconv.Itoa(i))
	layers, release, err := d.p.o.Images.Layers(ctx, img.ID)
	if err != nil {
		return "", err
	}
	defer release()
	if dry {
		if b.SubPath == "" {
			return dir, nil
		}
		f, err := overlay.ReadOnly(layers)
		if err != nil {
			return "", err
		}
		defer f.Close()
		fd, err := unix.Openat2(int(f.Fd()), b.SubPath, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS})
		if err != nil {
			return "", errs.New(errs.Invalid, "mount on %s: image %s has no %s: %w", b.ContainerPath, b.Image, b.SubPath, err)
		}
		return dir, unix.Close(fd)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	if ok, err := mount.IsMounted(dir); err != nil {
		return "", err
	} else if !ok {
		if err := showLayers(layers, dir); err != nil {
			return "", fmt.Errorf("mount image %s: %w", b.Image, err)
		}
	}
	if b.SubPath == "" {
		return dir, nil
	}
	target := filepath.Join(pod.w.runDir(), "containers", string(id), "image-subpath", strconv.Itoa(i))
	if err := mountBeneath(dir, b.SubPath, target); err != nil {
		return "", err
	}
	return target, nil
}

// showLayers shows a stack of layers at dir, read-only.
func showLayers(layers []string, dir string) error {
	f, err := overlay.ReadOnly(layers)
	if err != nil {
		return err
	}
	defer f.Close()
	return overlay.Attach(f, dir)
}
