package pod

import (
	"bufio"
	"errors"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/errs"
)

// identity is who a container's process runs as.
type identity struct {
	uid, gid uint32
	groups   []uint32
	home     string
}

// lookupUser resolves an image's user — "", uid, uid:gid, name, name:group — by the
// passwd(5) and group(5) files of its layers.
func lookupUser(layers []string, user string) (identity, error) {
	name, group, hasGroup := strings.Cut(user, ":")
	if name == "" {
		name = "0"
	}
	var id identity
	n, nerr := strconv.ParseUint(name, 10, 32)
	id.uid = uint32(n)
	found := nerr == nil
	login := ""
	err := eachLine(layers, "etc/passwd", func(f []string) bool {
		if len(f) < 6 || f[0] != name && !(nerr == nil && f[2] == name) {
			return true
		}
		u, uerr := strconv.ParseUint(f[2], 10, 32)
		g, gerr := strconv.ParseUint(f[3], 10, 32)
		if uerr != nil || gerr != nil {
			return true
		}
		id.uid, id.gid, id.home, login, found = uint32(u), uint32(g), f[5], f[0], true
		return false
	})
	if err != nil {
		return id, err
	}
	if !found {
		return id, errs.New(errs.Invalid, "the image's user %q is not in its /etc/passwd; set runAsUser to a number", name)
	}
	if hasGroup && group != "" {
		g, gerr := strconv.ParseUint(group, 10, 32)
		known := gerr == nil
		if err := eachLine(layers, "etc/group", func(f []string) bool {
			if len(f) < 3 || f[0] != group {
				return true
			}
			n, err := strconv.ParseUint(f[2], 10, 32)
			if err == nil {
				g, known = n, true
			}
			return false
		}); err != nil {
			return id, err
		}
		if !known {
			return id, errs.New(errs.Invalid, "the image's group %q is not in its /etc/group; set runAsGroup to a number", group)
		}
		id.gid = uint32(g)
		return id, nil
	}
	if login == "" {
		return id, nil
	}
	err = eachLine(layers, "etc/group", func(f []string) bool {
		if len(f) >= 4 && slices.Contains(strings.Split(f[3], ","), login) {
			if n, err := strconv.ParseUint(f[2], 10, 32); err == nil {
				id.groups = append(id.groups, uint32(n))
			}
		}
		return true
	})
	return id, err
}

// maxDatabase bounds what is read of an image's passwd and group.
const maxDatabase = 1 << 20

// eachLine calls fn with the fields of every line of the file, in the topmost layer
// that has it, until fn returns false. A symlink is followed inside its layer only,
// and a whiteout hides what lies below.
func eachLine(layers []string, path string, fn func([]string) bool) error {
	for _, layer := range layers {
		root, err := unix.Open(layer, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return &os.PathError{Op: "open", Path: layer, Err: err}
		}
		var st unix.Stat_t
		if unix.Fstatat(root, path, &st, unix.AT_SYMLINK_NOFOLLOW) == nil && st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0 {
			unix.Close(root)
			return nil
		}
		fd, err := unix.Openat2(root, path, &unix.OpenHow{
			Flags: unix.O_RDONLY | unix.O_NONBLOCK | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
		})
		unix.Close(root)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
			continue
		}
		if err != nil {
			return &os.PathError{Op: "open", Path: layer + "/" + path, Err: err}
		}
		f := os.NewFile(uintptr(fd), path)
		defer f.Close()
		if fi, err := f.Stat(); err != nil || !fi.Mode().IsRegular() {
			return err
		}
		s := bufio.NewScanner(io.LimitReader(f, maxDatabase))
		for s.Scan() {
			if line := strings.TrimSpace(s.Text()); line != "" && line[0] != '#' && !fn(strings.Split(line, ":")) {
				return nil
			}
		}
		return s.Err()
	}
	return nil
}
