package pod

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// mounts returns what the container's volumes and files are mounted from.
func (w *worker) mounts(ctx context.Context, spec *Spec, c *Container) (list []specs.Mount, devices []string, err error) {
	etc := filepath.Join(w.runDir(), "etc")
	ready := make(map[string]volume)
	find := func(name string) (volume, error) {
		if v, ok := ready[name]; ok {
			return v, nil
		}
		i := slices.IndexFunc(spec.Volumes, func(v Volume) bool { return v.Name == name })
		if i < 0 {
			return volume{}, errs.New(errs.Invalid, "the pod has no volume %q", name)
		}
		v, err := w.prepareVolume(ctx, spec, &spec.Volumes[i])
		ready[name] = v
		return v, err
	}
	for _, f := range []string{"hosts", "hostname", "resolv.conf"} {
		list = append(list, bind(filepath.Join(etc, f), "/etc/"+f, c.Security.ReadOnlyRoot && f != "hosts"))
	}
	switch {
	case spec.HostIPC:
		list = append(list, bind("/dev/shm", "/dev/shm", false))
	case w.sharesMemory(spec):
		list = append(list, bind(filepath.Join(w.runDir(), "shm"), "/dev/shm", false))
	default:
		list = append(list, specs.Mount{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}})
	}
	for _, m := range c.Mounts {
		v, err := find(m.Volume)
		if err != nil {
			return nil, nil, fmt.Errorf("volume %s: %w", m.Volume, err)
		}
		if v.block {
			return nil, nil, errs.New(errs.Invalid, "volume %s is a block device; use volumeDevices for it", m.Volume)
		}
		b := bind(v.path, m.Path, m.ReadOnly || v.readOnly)
		if (m.ReadOnly || v.readOnly) && (m.RecursiveReadOnly == "Enabled" || m.RecursiveReadOnly == "IfPossible" && w.p.handlers.recursive(ctx, spec.Handler)) {
			b.Options[1] = "rro"
		}
		b.Options = append(b.Options, propagation(m.Propagation))
		list = append(list, idMapped(b, spec.Users))
	}
	for _, d := range c.Devices {
		v, err := find(d.Volume)
		if err != nil {
			return nil, nil, fmt.Errorf("volume %s: %w", d.Volume, err)
		}
		if !v.block {
			return nil, nil, errs.New(errs.Invalid, "volume %s is a filesystem; use volumeMounts for it", d.Volume)
		}
		dev := v.path + ":" + d.Path
		if v.readOnly {
			dev += ":r"
		}
		devices = append(devices, dev)
	}
	return list, devices, nil
}

// propagation is the mount option of Kubernetes' word.
func propagation(word string) string {
	switch word {
	case "HostToContainer":
		return "rslave"
	case "Bidirectional":
		return "rshared"
	}
	return "rprivate"
}

func bind(from, to string, readOnly bool) specs.Mount {
	m := specs.Mount{Source: from, Destination: to, Type: "bind", Options: []string{"rbind", "rw"}}
	if readOnly {
		m.Options[1] = "ro"
	}
	return m
}

// subPaths replaces the sources of mounts with a subPath by a mount of exactly that
// file or directory, resolved without ever leaving the volume, so that nobody can
// exchange it for a symlink between the check and its use.
func (w *worker) subPaths(dir string, c *Container, list []specs.Mount, vars map[string]string) ([]specs.Mount, error) {
	for i, m := range c.Mounts {
		sub := m.SubPath
		if m.SubPathExpr != "" {
			sub = expand(m.SubPathExpr, vars)
		}
		if sub == "" {
			continue
		}
		at := slices.IndexFunc(list, func(l specs.Mount) bool { return l.Destination == m.Path && l.Type == "bind" })
		if at < 0 {
			continue
		}
		target := filepath.Join(dir, "subpath", strconv.Itoa(i))
		if err := mountBeneath(list[at].Source, sub, target); err != nil {
			return nil, fmt.Errorf("subPath %q of volume %s: %w", sub, m.Volume, err)
		}
		list[at].Source = target
	}
	return list, nil
}

// mountBeneath mounts root/sub at target. What is missing of sub is made as a
// directory.
func mountBeneath(root, sub, target string) error {
	if filepath.IsAbs(sub) || slices.Contains(strings.Split(sub, "/"), "..") {
		return errs.New(errs.Invalid, "it must be a relative path without '..'")
	}
	r, err := os.OpenRoot(root)
	if err != nil {
		return err
	}
	defer r.Close()
	if _, err := r.Stat(sub); errors.Is(err, os.ErrNotExist) {
		if err := r.MkdirAll(sub, 0o750); err != nil {
			return err
		}
		if fi, err := os.Stat(root); err == nil {
			r.Chmod(sub, fi.Mode())
		}
	}
	rfd, err := unix.Open(root, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(rfd)
	fd, err := unix.Openat2(rfd, sub, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS})
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		err = os.MkdirAll(target, 0o755)
	} else {
		err = os.WriteFile(target, nil, 0o644)
	}
	if err != nil {
		return err
	}
	tree, err := unix.OpenTree(fd, "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return err
	}
	defer unix.Close(tree)
	return unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH)
}
