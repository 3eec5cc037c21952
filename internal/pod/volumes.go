package pod

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// volume is a volume of the pod that is ready for mounting.
type volume struct {
	path     string
	block    bool
	readOnly bool
}

// showsConfiguration tells of a volume whose files are made of config maps, secrets or
// the pod's own fields.
func (v *Volume) showsConfiguration() bool {
	return v.ConfigMap != nil || v.Secret != nil || v.Downward != nil || v.Projected != nil
}

// shows tells whether the volume shows that config map or secret.
func (v *Volume) shows(secret bool, name string) bool {
	is := func(s *FileSource, kind bool) bool { return s != nil && kind == secret && s.Name == name }
	return is(v.ConfigMap, false) || is(v.Secret, true) || v.Projected != nil && slices.ContainsFunc(v.Projected.Sources, func(s ProjectedSource) bool {
		return is(s.ConfigMap, false) || is(s.Secret, true)
	})
}

// refreshVolumes brings what running containers see of config maps, secrets and the pod's
// labels up to date. What was deleted meanwhile stays as it was seen last, as in
// Kubernetes.
func (w *worker) refreshVolumes(ctx context.Context, spec *Spec) {
	w.mu.Lock()
	stale := w.stale
	w.stale = false
	w.mu.Unlock()
	if !stale {
		return
	}
	for i := range spec.Volumes {
		v := &spec.Volumes[i]
		if !v.showsConfiguration() {
			continue
		}
		if _, err := w.prepareVolume(ctx, spec, v); err != nil && !isGone(err) {
			w.note("", true, "FailedMount", "volume "+v.Name+" could not be brought up to date: "+err.Error())
		}
	}
}

// prepareVolume makes the volume and returns where it is. It is idempotent; config
// maps and secrets are brought up to date.
func (w *worker) prepareVolume(ctx context.Context, spec *Spec, v *Volume) (volume, error) {
	w.volumes.Lock()
	defer w.volumes.Unlock()
	dir := filepath.Join(w.runDir(), "volumes", v.Name)
	switch {
	case v.EmptyDir != nil && v.EmptyDir.Memory:
		data := "mode=0777"
		if v.EmptyDir.SizeBytes > 0 {
			data += fmt.Sprintf(",size=%d", v.EmptyDir.SizeBytes)
		}
		if err := mountTmpfs(dir, data, unix.MS_NOSUID|unix.MS_NODEV); err != nil {
			return volume{}, err
		}
		return volume{path: dir}, w.own(spec, dir, true)
	case v.EmptyDir != nil:
		parent := filepath.Join(w.diskDir(), "volumes")
		if v.EmptyDir.SizeBytes > 0 {
			var err error
			if parent, err = w.p.o.Volumes.PublishScratch(ctx, w.id, v.Name, v.EmptyDir.SizeBytes); err != nil {
				return volume{}, err
			}
		}
		dir = filepath.Join(parent, v.Name)
		if err := makeOpen(dir); err != nil {
			return volume{}, err
		}
		return volume{path: dir}, w.own(spec, dir, true)
	case v.HostPath != nil:
		return volume{path: v.HostPath.Path}, checkHostPath(v.HostPath)
	case v.Claim != nil:
		path, block, err := w.p.o.Volumes.Publish(ctx, spec.Namespace, v.Claim.Name, w.id, v.Claim.ReadOnly)
		if err != nil {
			return volume{}, err
		}
		if !block && !v.Claim.ReadOnly {
			err = w.own(spec, path, false)
		}
		return volume{path: path, block: block, readOnly: v.Claim.ReadOnly}, err
	}
	files := make(map[string]file)
	var err error
	switch {
	case v.ConfigMap != nil:
		err = w.configFiles(spec, files, v.ConfigMap, false, 0o644)
	case v.Secret != nil:
		err = w.configFiles(spec, files, v.Secret, true, 0o644)
	case v.Downward != nil:
		err = w.downwardFiles(spec, files, v.Downward, 0o644)
	case v.Projected != nil:
		mode := cmpMode(v.Projected.Mode, 0o644)
		for _, s := range v.Projected.Sources {
			switch {
			case s.ConfigMap != nil:
				err = errors.Join(err, w.configFiles(spec, files, s.ConfigMap, false, mode))
			case s.Secret != nil:
				err = errors.Join(err, w.configFiles(spec, files, s.Secret, true, mode))
			case s.Downward != nil:
				err = errors.Join(err, w.downwardFiles(spec, files, s.Downward, mode))
			}
		}
	default:
		err = errs.New(errs.Invalid, "it has no source")
	}
	if err != nil {
		return volume{}, err
	}
	gid := -1
	if g := spec.Security.FSGroup; g != nil {
		gid = int(*g)
	}
	return volume{path: dir, readOnly: true}, writeFiles(dir, files, gid)
}

// makeOpen makes a directory that everybody may write to. One that is there keeps the
// mode that a container may have given it.
func makeOpen(dir string) error {
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	fresh := filepath.Join(filepath.Dir(dir), ".fresh")
	if err := os.MkdirAll(fresh, 0o755); err != nil {
		return err
	}
	if err := os.Chmod(fresh, 0o777); err != nil { // whatever the umask says
		return err
	}
	return os.Rename(fresh, dir)
}

func cmpMode(mode, otherwise uint32) uint32 {
	if mode != 0 {
		return mode
	}
	return otherwise
}

// file is a file of a volume made of configuration.
type file struct {
	data []byte
	mode uint32
}

func (w *worker) configFiles(spec *Spec, into map[string]file, s *FileSource, secret bool, mode uint32) error {
	c, err := w.p.Config(context.Background(), secret, spec.Namespace, s.Name)
	if isGone(err) && s.Optional {
		return nil
	}
	if err != nil {
		return err
	}
	mode = cmpMode(s.Mode, mode)
	if len(s.Items) == 0 {
		for k, b := range c.Data {
			into[k] = file{b, mode}
		}
		return nil
	}
	for _, item := range s.Items {
		b, ok := c.Data[item.Key]
		if !ok {
			if s.Optional {
				continue
			}
			return errs.New(errs.NotFound, "%s has no key %q", configKey(secret, spec.Namespace, s.Name), item.Key)
		}
		into[item.Path] = file{b, cmpMode(item.Mode, mode)}
	}
	return nil
}

func (w *worker) downwardFiles(spec *Spec, into map[string]file, s *DownwardSource, mode uint32) error {
	pod := w.status()
	for _, item := range s.Items {
		var value string
		var err error
		if item.Resource != nil {
			value, err = resourceValue(spec, nil, *item.Resource)
		} else {
			value, err = fieldValue(&pod, item.Field)
		}
		if err != nil {
			return err
		}
		into[item.Path] = file{[]byte(value), cmpMode(item.Mode, cmpMode(s.Mode, mode))}
	}
	return nil
}

// writeFiles makes the directory show exactly the files, all at one moment: they are
// written into a new directory, to which the symlink ..data then points, and what is
// seen are symlinks through it.
func writeFiles(dir string, files map[string]file, gid int) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if sameFiles(filepath.Join(dir, "..data"), files) {
		return nil
	}
	name := ".." + rand.Text()[:12]
	fresh := filepath.Join(dir, name)
	tops := make(map[string]bool)
	for path, f := range files {
		if !filepath.IsLocal(path) || strings.HasPrefix(path, "..") {
			return errs.New(errs.Invalid, "%q is no path inside a volume", path)
		}
		tops[strings.SplitN(path, "/", 2)[0]] = true
		full := filepath.Join(fresh, path)
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			return err
		}
		mode := os.FileMode(f.mode)
		if gid >= 0 {
			mode |= 0o440
		}
		if err := os.WriteFile(full, f.data, 0o600); err != nil {
			return err
		}
		if gid >= 0 {
			if err := os.Chown(full, 0, gid); err != nil {
				return err
			}
		}
		if err := os.Chmod(full, mode); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(fresh, 0o755); err != nil {
		return err
	}
	old, _ := os.Readlink(filepath.Join(dir, "..data"))
	tmp := filepath.Join(dir, "..data_tmp")
	os.Remove(tmp)
	if err := os.Symlink(name, tmp); err != nil {
		return err
	}
	if err := os.Rename(tmp, filepath.Join(dir, "..data")); err != nil {
		return err
	}
	for top := range tops {
		link := filepath.Join(dir, top)
		if _, err := os.Lstat(link); errors.Is(err, fs.ErrNotExist) {
			if err := os.Symlink("..data/"+top, link); err != nil {
				return err
			}
		}
	}
	ents, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range ents {
		if n := e.Name(); n != name && n != "..data" && !tops[n] && (n == old || !strings.HasPrefix(n, "..") || e.IsDir()) {
			if err := os.RemoveAll(filepath.Join(dir, n)); err != nil {
				return err
			}
		}
	}
	return nil
}

func sameFiles(dir string, files map[string]file) bool {
	n := 0
	err := filepath.WalkDir(dir+"/", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, _ := filepath.Rel(dir, path)
		f, ok := files[rel]
		b, err := os.ReadFile(path)
		if !ok || err != nil || string(b) != string(f.data) {
			return fs.ErrExist
		}
		n++
		return nil
	})
	return err == nil && n == len(files)
}

// own gives a volume to the pod's fsGroup, as Kubernetes does: group, group's rights
// and, for directories, the set-group-id bit.
func (w *worker) own(spec *Spec, dir string, fresh bool) error {
	g := spec.Security.FSGroup
	if g == nil {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return err
	}
	rootRight := int64(st.Gid) == *g && st.Mode&unix.S_ISGID != 0 && st.Mode&0o070 == 0o070
	if rootRight && (fresh || spec.Security.FSGroupPolicy == "OnRootMismatch") {
		return nil
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	// The root directory comes last: it says that the walk was complete.
	var paths []string
	err = fs.WalkDir(root.FS(), ".", func(path string, d fs.DirEntry, err error) error {
		paths = append(paths, path)
		return err
	})
	if err != nil {
		return err
	}
	slices.Reverse(paths)
	for _, path := range paths {
		fi, err := root.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if err := root.Lchown(path, -1, int(*g)); err != nil {
			return err
		}
		if fi.Mode()&fs.ModeSymlink != 0 {
			continue
		}
		mode := fi.Mode().Perm() | 0o060 | fi.Mode()&(fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky)
		if fi.IsDir() {
			mode |= 0o010 | fs.ModeSetgid
		}
		if err := root.Chmod(path, mode); err != nil {
			return err
		}
	}
	return nil
}

// checkHostPath makes or checks the path as its type says.
func checkHostPath(h *HostPath) error {
	fi, err := os.Stat(h.Path)
	missing := errors.Is(err, fs.ErrNotExist)
	if err != nil && !missing {
		return err
	}
	want := func(ok bool, what string) error {
		if missing || !ok {
			return errs.New(errs.FailedPrecondition, "host path %s is not %s, as its type %s says", h.Path, what, h.Type)
		}
		return nil
	}
	switch h.Type {
	case "":
		if missing {
			return os.MkdirAll(h.Path, 0o755)
		}
		return nil
	case "DirectoryOrCreate":
		if missing {
			return os.MkdirAll(h.Path, 0o755)
		}
		return want(fi.IsDir(), "a directory")
	case "FileOrCreate":
		if missing {
			return os.WriteFile(h.Path, nil, 0o644)
		}
		return want(fi.Mode().IsRegular(), "a file")
	case "Directory":
		return want(!missing && fi.IsDir(), "a directory")
	case "File":
		return want(!missing && fi.Mode().IsRegular(), "a file")
	case "Socket":
		return want(!missing && fi.Mode()&fs.ModeSocket != 0, "a socket")
	case "CharDevice":
		return want(!missing && fi.Mode()&fs.ModeCharDevice != 0, "a character device")
	case "BlockDevice":
		return want(!missing && fi.Mode()&fs.ModeDevice != 0 && fi.Mode()&fs.ModeCharDevice == 0, "a block device")
	}
	return errs.New(errs.Invalid, "host path type %q is not one of Kubernetes'", h.Type)
}
