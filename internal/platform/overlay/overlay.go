// Package overlay makes what overlayfs understands on disk (whiteouts, opaque
// directories) and mounts it without a place in the tree.
//
// The format is that of Documentation/filesystems/overlayfs.rst: a whiteout is a
// character device 0/0; a directory with the extended attribute
// trusted.overlay.opaque = "y" hides the directories of the same name below it.
package overlay

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/namespace"
)

const (
	// XattrPrefix is the prefix of the attributes by which overlayfs keeps its own
	// state. What comes from outside must never set one: redirect and metacopy
	// would name other files of the layers.
	XattrPrefix = "trusted.overlay."
	// UserXattrPrefix is the same for mounts with the option userxattr.
	UserXattrPrefix = "user.overlay."
	// MaxLower is the most lower directories that the kernel takes (OVL_MAX_STACK).
	MaxLower = 500
)

// Whiteout makes a whiteout of that name in the directory. It returns
// unix.EEXIST where the name exists.
func Whiteout(dirfd int, name string) error {
	return unix.Mknodat(dirfd, name, unix.S_IFCHR, 0)
}

// IsWhiteout tells whether st describes a whiteout.
func IsWhiteout(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

// SetOpaque marks the directory, which fd has open (not by O_PATH), as opaque.
func SetOpaque(fd int) error {
	return unix.Fsetxattr(fd, XattrPrefix+"opaque", []byte("y"), 0)
}

// Layers describe one overlay.
type Layers struct {
	Lower       []string // topmost first
	Upper, Work string   // both empty: read-only
	// Volatile: nothing is synced, not even when the overlay is unmounted, where the kernel
	// has that (Linux 5.10); ForgetVolatile goes before.
	Volatile bool
	// Users, where given, is a user namespace whose ids are those of the files on the disk; see IDMap.
	Users *IDMap
}

// Mount mounts the layers detached: nothing is added to any mount table, and the
// mount is gone when the returned descriptor of its root and everything opened
// beneath it are closed, whoever dies first.
//
// Files copied up keep their data with them (no metacopy, no redirect), so that
// the upper directory is a layer like any other afterwards.
func Mount(l Layers) (*os.File, error) {
	mount := way(l)
	switch {
	case l.Users != nil:
		mount = mountIDMapped
	case mount == nil:
		mount = mountInNamespace
	}
	f, err := mount(l)
	if err != nil {
		return nil, fmt.Errorf("mount overlay of %d layers: %w", len(l.Lower), err)
	}
	return f, nil
}

// way chooses how: by a file system context where the kernel and the names' lengths allow it; nil where there
// has to be a place.
func way(l Layers) func(Layers) (*os.File, error) {
	fit := func(names ...string) bool {
		return !slices.ContainsFunc(names, func(s string) bool { return len(s) >= maxOption })
	}
	one := lowerdir(l.Lower)
	switch {
	case TakesLayers() && fit(l.Upper, l.Work) && fit(l.Lower...):
		return mountByFsconfig
	case !TakesLayers() && l.Upper == "" && fit(one) && !strings.Contains(one, ","):
		return mountByOneOption
	}
	return nil
}

// TakesLayers tells whether the kernel takes lower directories one by one (lowerdir+, Linux
// 6.7), so that neither their names have to fit a page, nor is a place in the tree needed.
// Before 6.5 overlayfs has no contexts of its own: it collects every option unread, and
// complains in the kernel's log later.
var TakesLayers = sync.OnceValue(func() bool {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return err == unix.EPERM // cannot be told: a process with more rights will find out
	}
	defer unix.Close(fs)
	return unix.FsconfigSetString(fs, "lowerdir+", "/") == nil && unix.FsconfigSetString(fs, "no such option", "") != nil
})

// fixed are options that must not follow the kernel's configured defaults.
var fixed = [][2]string{{"redirect_dir", "off"}, {"metacopy", "off"}, {"index", "off"}}

func mountByFsconfig(l Layers) (*os.File, error) {
	var options [][2]string
	for _, d := range l.Lower {
		options = append(options, [2]string{"lowerdir+", d})
	}
	return mountDetached(l, options)
}

// maxOption is the most bytes that fsconfig(2) takes as a string.
const maxOption = 256

// mountByOneOption is the way for short names on kernels that do not take layers one by one. It is
// for what is read-only: the rest waits for the complaint about an option to fall back on.
func mountByOneOption(l Layers) (*os.File, error) {
	return mountDetached(l, [][2]string{{"lowerdir", lowerdir(l.Lower)}})
}

var escape = strings.NewReplacer(`\`, `\\`, `:`, `\:`)

func lowerdir(dirs []string) string {
	var all []string
	for _, d := range dirs {
		all = append(all, escape.Replace(d))
	}
	return strings.Join(all, ":")
}

func mountDetached(l Layers, options [][2]string) (*os.File, error) {
	fs, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fs)
	set := func(k, v string) {
		if err == nil {
			err = unix.FsconfigSetString(fs, k, v)
		}
	}
	if l.Upper != "" {
		options = append(options, [2]string{"upperdir", l.Upper}, [2]string{"workdir", l.Work})
	}
	for _, o := range append(options, fixed[:]...) {
		set(o[0], o[1])
	}
	if err == nil && l.Volatile && l.Upper != "" {
		err = unix.FsconfigSetFlag(fs, "volatile")
	}
	if err != nil {
		return nil, err
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return nil, err
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "overlay"), nil
}

// inNamespace runs fn in a mount namespace of a thread that is thrown away, in which it may mount
// what it likes. Of that it takes a detached copy out.
func inNamespace(fn func() (*os.File, error)) (f *os.File, err error) {
	err = namespace.OnThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
			return err
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return err
		}
		var err error
		f, err = fn()
		return err
	})
	return f, err
}

// mountInNamespace is for layers that need a place.
func mountInNamespace(l Layers) (*os.File, error) {
	return inNamespace(func() (*os.File, error) { return mountAt(l) })
}

// mountAt mounts by mount(2), at a place that is covered in this namespace only.
func mountAt(l Layers) (*os.File, error) {
	data, err := mountData(l)
	if err != nil {
		return nil, err
	}
	at := l.Lower[0]
	if l.Upper != "" {
		// The work directory's parent is made by the caller for this one mount.
		at = filepath.Join(filepath.Dir(l.Work), "merged")
		if err := os.Mkdir(at, 0o700); err != nil && !os.IsExist(err) {
			return nil, err
		}
	}
	err = unix.EINVAL
	if l.Volatile && l.Upper != "" {
		err = unix.Mount("overlay", at, "overlay", 0, data+",volatile")
	}
	if err == unix.EINVAL {
		err = unix.Mount("overlay", at, "overlay", 0, data)
	}
	if err != nil {
		return nil, err
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, at, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), "overlay"), nil
}

// mountData returns the options for mount(2), which takes a page of them: lower
// directories are named relative to their common parent, into which the thread goes.
func mountData(l Layers) (string, error) {
	parent := filepath.Dir(l.Lower[0])
	esc := strings.NewReplacer(`\`, `\\`, `,`, `\,`, `:`, `\:`)
	var lower []string
	for _, d := range l.Lower {
		if filepath.Dir(d) == parent {
			d = filepath.Base(d)
		}
		lower = append(lower, esc.Replace(d))
	}
	if err := unix.Chdir(parent); err != nil {
		return "", err
	}
	data := "lowerdir=" + strings.Join(lower, ":")
	if l.Upper != "" {
		data += ",upperdir=" + esc.Replace(l.Upper) + ",workdir=" + esc.Replace(l.Work)
	}
	for _, o := range fixed {
		data += "," + o[0] + "=" + o[1]
	}
	if len(data)+len(",volatile") >= os.Getpagesize() {
		return "", errs.New(errs.Unsupported, "the names of %d layers are longer than a page; Linux 6.7 or newer has no such limit", len(l.Lower))
	}
	return data, nil
}
