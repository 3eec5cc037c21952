package pod

import (
	"os"
	"path/filepath"
	"strings"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
)

const (
	// maxName bounds each name that a client gives: Kubernetes' longest (RFC 1123 subdomains).
	maxName = 253
	// maxLabels bounds labels and annotations of one object, both together; Kubernetes takes
	// 256 KiB of annotations, to which kubelet adds its own.
	maxLabels = 1 << 20
	// maxElement and maxPath are the kernel's (limits.h: NAME_MAX, PATH_MAX with its end).
	maxElement, maxPath = 255, unix.PathMax - 1
)

// checkName tells whether a client's name of something can be one: it is kept, logged and
// listed, and part of names of our own.
func checkName(what, name string) error {
	switch {
	case name == "":
		return errs.New(errs.Invalid, "the metadata has no %s", what)
	case len(name) > maxName:
		return errs.New(errs.Invalid, "the %s in the metadata has %d bytes; at most %d are possible: %.40q…", what, len(name), maxName, name)
	case strings.ContainsFunc(name, func(r rune) bool { return r < ' ' || r == 0x7f || r == '/' || r == utf8.RuneError }):
		return errs.New(errs.Invalid, "the %s in the metadata has a character in it that is not possible: %q", what, name)
	}
	return nil
}

func checkLabels(labels, annotations map[string]string) error {
	n := 0
	for _, m := range []map[string]string{labels, annotations} {
		for k, v := range m {
			n += len(k) + len(v)
		}
	}
	if n > maxLabels {
		return errs.New(errs.Invalid, "labels and annotations have %d bytes; at most %d are possible", n, maxLabels)
	}
	return nil
}

// checkPath refuses what the kernel would refuse in the middle of a start.
func checkPath(what, path string) error {
	if len(path) > maxPath {
		return errs.New(errs.Invalid, "%s has %d bytes; a path has at most %d: %.40q…", what, len(path), maxPath, path)
	}
	if strings.ContainsRune(path, 0) {
		return errs.New(errs.Invalid, "%s has a zero byte in it: %.80q", what, path)
	}
	for e := range strings.SplitSeq(path, "/") {
		if len(e) > maxElement {
			return errs.New(errs.Invalid, "%s has a part of %d bytes; at most %d are possible: %.40q…", what, len(e), maxElement, e)
		}
	}
	return nil
}

func (c *SandboxConfig) check() error {
	for _, n := range []struct{ what, name string }{{"pod's name", c.Name}, {"pod's namespace", c.Namespace}, {"pod's uid", c.UID}} {
		if err := checkName(n.what, n.name); err != nil {
			return err
		}
	}
	if c.LogDir != "" && !filepath.IsAbs(c.LogDir) {
		return errs.New(errs.Invalid, "pod %s: log directory %q is not an absolute path", c.Key, c.LogDir)
	}
	for _, p := range []struct{ what, path string }{{"log directory", c.LogDir}, {"cgroup parent", c.CgroupParent}} {
		if err := checkPath(p.what, p.path); err != nil {
			return errs.New(errs.Invalid, "pod %s: %w", c.Key, err)
		}
	}
	if err := checkLabels(c.Labels, c.Annotations); err != nil {
		return errs.New(errs.Invalid, "pod %s: %w", c.Key, err)
	}
	return nil
}

func (c *ContainerConfig) check() error {
	if err := checkName("container's name", c.Name); err != nil {
		return err
	}
	paths := [][2]string{{"log path", c.LogPath}, {"working directory", c.WorkingDir}}
	for _, b := range c.Binds {
		paths = append(paths, [2]string{"mount's host path", b.HostPath}, [2]string{"mount's path", b.ContainerPath}, [2]string{"mount's sub-path", b.SubPath})
	}
	for _, p := range paths {
		if err := checkPath(p[0], p[1]); err != nil {
			return errs.New(errs.Invalid, "container %s: %w", c.Name, err)
		}
	}
	for _, v := range c.Variables {
		if !utf8.ValidString(v) { // specifications are JSON, which would change it silently
			return errs.New(errs.Invalid, "container %s: environment variable %.80q is not UTF-8", c.Name, v)
		}
	}
	if err := checkLabels(c.Labels, c.Annotations); err != nil {
		return errs.New(errs.Invalid, "container %s: %w", c.Name, err)
	}
	return nil
}

// validLogPath keeps a client's log path below its directory.
func validLogPath(dir, path string) (string, error) {
	if dir == "" || path == "" {
		return "", nil
	}
	if !filepath.IsLocal(path) {
		return "", errs.New(errs.Invalid, "log path %q leaves the pod's log directory; give a relative path without '..'", path)
	}
	if full := filepath.Join(dir, path); len(full) <= maxPath {
		return full, nil
	}
	return "", errs.New(errs.Invalid, "log path %.40q… with the pod's log directory is longer than %d bytes", path, maxPath)
}

// makeLogDir makes the directory of a log. Nothing that a container with a volume of the
// logs' directory has put there leads out of it: a log is written by root.
func makeLogDir(dir, path string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	rel, err := filepath.Rel(dir, path)
	if err != nil {
		return err
	}
	if err := root.MkdirAll(filepath.Dir(rel), 0o755); err != nil {
		return errs.New(errs.Invalid, "log path %s: %w", path, err)
	}
	fi, err := root.Stat(rel) // a symlink that leads out fails
	switch {
	case os.IsNotExist(err):
		return nil
	case err != nil:
		return errs.New(errs.Invalid, "log path %s: %w", path, err)
	case !fi.Mode().IsRegular():
		return errs.New(errs.Invalid, "log path %s is there and is not a file", path)
	}
	return nil
}
