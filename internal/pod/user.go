package pod

import (
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
// passwd(5) and group(5) files of its layers. A number is always an ID, never the name
// of an entry: an image that calls its root "1000" must not run as root where the
// manifest asks for 1000.
func lookupUser(layers []string, user string) (identity, error) {
	name, group, hasGroup := strings.Cut(user, ":")
	if name == "" {
		name = "0"
	}
	var id identity
	n, nerr := parseID(name)
	id.uid = n
	found := nerr == nil
	login := ""
	err := eachLine(layers, "etc/passwd", func(f []string) bool {
		if len(f) < 6 {
			return true
		}
		u, uerr := parseID(f[2])
		g, gerr := parseID(f[3])
		if uerr != nil || gerr != nil || nerr == nil && u != n || nerr != nil && f[0] != name {
			return true
		}
		id.uid, id.gid, id.home, login, found = u, g, f[5], f[0], true
		return false
	})
	if err != nil {
		return id, err
	}
	if !found {
		return id, errs.New(errs.Invalid, "the image's user %q is not in its /etc/passwd; set runAsUser to a number", name)
	}
	if hasGroup && group != "" {
		if g, err := parseID(group); err == nil {
			id.gid = g
			return id, nil
		}
		known := false
		if err := eachLine(layers, "etc/group", func(f []string) bool {
			if len(f) < 3 || f[0] != group {
				return true
			}
			g, err := parseID(f[2])
			if err == nil {
				id.gid, known = g, true
			}
			return err != nil
		}); err != nil {
			return id, err
		}
		if !known {
			return id, errs.New(errs.Invalid, "the image's group %q is not in its /etc/group; set runAsGroup to a number", group)
		}
		return id, nil
	}
	if login == "" {
		return id, nil
	}
	err = eachLine(layers, "etc/group", func(f []string) bool {
		if len(f) >= 4 && slices.Contains(strings.Split(f[3], ","), login) {
			if g, err := parseID(f[2]); err == nil {
				id.groups = append(id.groups, g)
			}
		}
		return true
	})
	return id, err
}

// parseID reads the number of a user or group. The upper half of the numbers is refused,
// as Kubernetes does: the last of them means "leave it as it is" to the kernel.
func parseID(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 31)
	return uint32(n), err
}

// maxDatabase bounds what is read of an image's passwd and group: they are the image's
// word, and read by the daemon.
const maxDatabase = 1 << 20

// eachLine calls fn with the fields of every line of an image's file until fn returns
// false. A file that the image does not have has no lines.
func eachLine(layers []string, path string, fn func([]string) bool) error {
	f, err := openImageFile(layers, path)
	if f == nil || err != nil {
		return err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxDatabase+1))
	if err != nil {
		return err
	}
	if len(raw) > maxDatabase {
		// A cut line would name another user than the whole one.
		return errs.New(errs.Invalid, "the image's /%s is larger than %d bytes, which no user database is; use another image", path, maxDatabase)
	}
	for line := range strings.Lines(string(raw)) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' && !fn(strings.Split(line, ":")) {
			return nil
		}
	}
	return nil
}

// maxLinks is how many symlinks are followed before they are taken for a loop, as the kernel does.
const maxLinks = 40

// openImageFile opens a regular file of an image as its overlay will show it: a
// whiteout or an opaque directory hides what lies below, and a symlink may lead from
// one layer into another. It walks by descriptors and follows links itself, so that no
// link of an image leads out of it; nothing but a regular file is opened, because
// opening a device or a pipe can do something. It returns nil if there is no such file.
func openImageFile(layers []string, path string) (*os.File, error) {
	var opened []int
	defer func() {
		for _, fd := range opened {
			unix.Close(fd)
		}
	}()
	open := func(dir int, name string) (int, error) {
		fd, err := unix.Openat2(dir, name, &unix.OpenHow{
			Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
			Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
		})
		if err == nil {
			opened = append(opened, fd)
		}
		return fd, err
	}
	var roots []int
	for _, layer := range layers {
		fd, err := unix.Open(layer, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, &os.PathError{Op: "open", Path: layer, Err: err}
		}
		opened = append(opened, fd)
		roots = append(roots, fd)
	}
	stack := [][]int{roots} // the directories that merge into each directory on the way
	todo := strings.Split(path, "/")
	links := 0
	for len(todo) > 0 {
		name := todo[0]
		todo = todo[1:]
		switch name {
		case "", ".":
			continue
		case "..":
			if len(stack) > 1 {
				stack = stack[:len(stack)-1]
			}
			continue
		}
		var merged []int
		link := false
	layer:
		for _, dir := range stack[len(stack)-1] {
			var st unix.Stat_t
			err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
			if errors.Is(err, unix.ENOENT) {
				continue
			}
			if err != nil {
				return nil, &os.PathError{Op: "stat", Path: "/" + path, Err: err}
			}
			switch kind := st.Mode & unix.S_IFMT; {
			case kind == unix.S_IFDIR:
				fd, err := open(dir, name)
				if err != nil {
					return nil, &os.PathError{Op: "open", Path: "/" + path, Err: err}
				}
				merged = append(merged, fd)
				if opaque(fd) {
					break layer
				}
			case merged != nil: // below a directory, something else is hidden, and hides
				break layer
			case kind == unix.S_IFLNK:
				if links++; links > maxLinks {
					return nil, errs.New(errs.Invalid, "the image's /%s leads through more than %d symlinks; use another image", path, maxLinks)
				}
				to := make([]byte, unix.PathMax)
				n, err := unix.Readlinkat(dir, name, to)
				if err != nil {
					return nil, &os.PathError{Op: "readlink", Path: "/" + path, Err: err}
				}
				if n > 0 && to[0] == '/' {
					stack = stack[:1]
				}
				todo = append(strings.Split(string(to[:n]), "/"), todo...)
				link = true
				break layer
			case kind == unix.S_IFREG && len(todo) == 0:
				fd, err := unix.Openat2(dir, name, &unix.OpenHow{
					Flags:   unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOFOLLOW | unix.O_CLOEXEC,
					Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
				})
				if err != nil {
					return nil, &os.PathError{Op: "open", Path: "/" + path, Err: err}
				}
				return os.NewFile(uintptr(fd), path), nil
			default: // a whiteout, or what is no user database
				return nil, nil
			}
		}
		switch {
		case link:
		case merged == nil:
			return nil, nil
		default:
			stack = append(stack, merged)
		}
	}
	return nil, nil
}

// opaque tells whether a directory of a layer hides the ones below it. The descriptor
// is an O_PATH one, which has its attributes by its name in /proc only.
func opaque(fd int) bool {
	var v [1]byte
	for _, name := range []string{"trusted.overlay.opaque", "user.overlay.opaque"} {
		if n, err := unix.Getxattr("/proc/self/fd/"+strconv.Itoa(fd), name, v[:]); err == nil && n == 1 && v[0] == 'y' {
			return true
		}
	}
	return false
}
