package unpack

import (
	"path"
	"strconv"
	"strings"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/overlay"
	"golang.org/x/sys/unix"
)

func quote(s string) string { return strconv.Quote(s) }

// dir is an open directory of the layer: a descriptor by O_PATH and the path that
// it has without any symlink.
type dir struct {
	fd   int
	path string // "" is the root
}

// dirCache keeps descriptors of directories that were used last, by the path as
// it was asked for. Tar streams go through a tree directory by directory, so it
// nearly always has the one that is needed.
type dirCache struct {
	byName map[string]dir
	order  []string // oldest first
	// dead descriptors are closed when the next entry begins: the present one may
	// still work with them.
	dead []int
}

const maxOpenDirs = 48

func (c *dirCache) put(name string, d dir) {
	if c.byName == nil {
		c.byName = make(map[string]dir)
	}
	if len(c.order) >= maxOpenDirs {
		old := c.order[0]
		c.dead = append(c.dead, c.byName[old].fd)
		delete(c.byName, old)
		c.order = append(c.order[:0], c.order[1:]...)
	}
	c.byName[name] = d
	c.order = append(c.order, name)
}

// flush forgets everything. It is called whenever a directory goes away, since a
// path through it may then mean something else.
func (c *dirCache) flush() {
	for _, d := range c.byName {
		c.dead = append(c.dead, d.fd)
	}
	c.byName, c.order = nil, nil
}

// reap closes what nothing works with any more.
func (c *dirCache) reap() {
	for _, fd := range c.dead {
		unix.Close(fd)
	}
	c.dead = c.dead[:0]
}

const dirFlags = unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC

// parent returns the directory at the clean path name. The descriptor belongs to
// the cache and is good until the next call of a method of u. With make, what is
// missing is made; without, a missing one is unix.ENOENT.
func (u *unpacker) parent(name string, make bool) (dir, error) {
	if name == "" {
		return dir{u.root, ""}, nil
	}
	if d, ok := u.dirs.byName[name]; ok {
		return d, nil
	}
	fd, err := unix.Openat2(u.root, name, &unix.OpenHow{
		Flags:   dirFlags,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
	d := dir{fd, name}
	if err != nil {
		if err == unix.EAGAIN { // a rename elsewhere raced with the look-up
			return u.parent(name, make)
		}
		if d, err = u.walk(name, make); err != nil {
			return dir{}, err
		}
	}
	u.dirs.put(name, d)
	return d, nil
}

// maxLinks is how many symlinks a path may go through (the kernel's MAXSYMLINKS).
const maxLinks = 40

// walk resolves name component by component: it follows symlinks inside the root
// as a process of the container would see them, and makes directories.
func (u *unpacker) walk(name string, make bool) (dir, error) {
	todo := strings.Split(name, "/")
	stack := []dir{{u.root, ""}} // from the root to where we are
	defer func() {
		for _, d := range stack[1:] {
			unix.Close(d.fd)
		}
	}()
	links := 0
	for len(todo) > 0 {
		c := todo[0]
		todo = todo[1:]
		at := stack[len(stack)-1]
		switch c {
		case "", ".":
			continue
		case "..": // only from a symlink's target
			if len(stack) == 1 {
				return dir{}, errs.New(errs.Invalid, "it would be written through a symlink that leaves the layer")
			}
			unix.Close(at.fd)
			stack = stack[:len(stack)-1]
			continue
		}
		at2 := path.Join(at.path, c)
		fd, err := unix.Openat(at.fd, c, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err == unix.ENOENT {
			if !make {
				return dir{}, err
			}
			if fd, err = u.implied(at, c); err != nil {
				return dir{}, err
			}
		} else if err != nil {
			return dir{}, err
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			unix.Close(fd)
			return dir{}, err
		}
		switch {
		case st.Mode&unix.S_IFMT == unix.S_IFDIR:
			if len(stack) > maxName/2 {
				unix.Close(fd)
				return dir{}, unix.ENAMETOOLONG
			}
			stack = append(stack, dir{fd, at2})
			continue
		case st.Mode&unix.S_IFMT == unix.S_IFLNK:
			target, err := readlink(fd)
			unix.Close(fd)
			if err != nil {
				return dir{}, err
			}
			if links++; links > maxLinks {
				return dir{}, errs.New(errs.Invalid, "its path goes through more than %d symlinks", maxLinks)
			}
			if strings.HasPrefix(target, "/") {
				if _, own := u.links[at2]; own {
					return dir{}, errs.New(errs.Invalid, "it would be written through %q, an absolute symlink (to %q) of the same layer", at2, target)
				}
				for _, d := range stack[1:] {
					unix.Close(d.fd)
				}
				stack = stack[:1]
			}
			todo = append(strings.Split(target, "/"), todo...)
			if len(todo) > maxName {
				return dir{}, unix.ENAMETOOLONG
			}
			continue
		case overlay.IsWhiteout(&st) && !u.o.Merged:
			// This layer removed it, and now has something below it.
			unix.Close(fd)
			if !make {
				return dir{}, unix.ENOENT
			}
			if err := unix.Unlinkat(at.fd, c, 0); err != nil {
				return dir{}, err
			}
			if fd, err = u.implied(at, c); err != nil {
				return dir{}, err
			}
			stack = append(stack, dir{fd, at2})
			if err := setOpaque(dir{fd, at2}); err != nil {
				return dir{}, err
			}
			continue
		}
		unix.Close(fd)
		return dir{}, errs.New(errs.Invalid, "%q, which should be a directory, is none", at2)
	}
	last := stack[len(stack)-1]
	if len(stack) == 1 { // a symlink to the root
		fd, err := unix.Openat(u.root, ".", dirFlags, 0)
		return dir{fd, ""}, err
	}
	stack = stack[:len(stack)-1] // the caller's now
	return last, nil
}

// implied makes a directory that the layer has no entry for, as others do: 0755,
// root's.
func (u *unpacker) implied(at dir, c string) (fd int, err error) {
	if err := u.count(0, 1); err != nil {
		return -1, err
	}
	if err := unix.Mkdirat(at.fd, c, 0o755); err != nil {
		return -1, err
	}
	p := path.Join(at.path, c)
	u.touch(p)
	if u.res.Dependent == "" {
		u.res.Dependent = "it has no entry for the directory " + quote(p)
	}
	return unix.Openat(at.fd, c, dirFlags, 0)
}

func readlink(fd int) (string, error) {
	buf := make([]byte, maxName+1)
	n, err := unix.Readlinkat(fd, "", buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// touch notes that the layer made the path.
func (u *unpacker) touch(p string) {
	if !u.o.Merged {
		return
	}
	for p != "." && p != "" {
		if _, ok := u.touched[p]; ok {
			return
		}
		u.touched[p] = struct{}{}
		p = path.Dir(p)
	}
}

// remove takes away what is at name in the directory, with everything in it, and
// what is known about it.
func (u *unpacker) remove(at dir, name string) error {
	p := path.Join(at.path, name)
	err := unix.Unlinkat(at.fd, name, 0)
	switch err {
	case nil:
		if _, ok := u.links[p]; ok {
			u.dirs.dropAliases()
		}
		u.forget(p)
	case unix.EISDIR:
		u.dirs.flush()
		return u.removeTree(at.fd, name, p)
	}
	return err
}

func (u *unpacker) forget(p string) {
	delete(u.attrs, p)
	delete(u.links, p)
	delete(u.touched, p)
}

// removeTree removes name, whose path is p, in the directory fd, never following
// a symlink.
func (u *unpacker) removeTree(fd int, name, p string) error {
	u.forget(p)
	err := unix.Unlinkat(fd, name, 0)
	if err != unix.EISDIR {
		return err
	}
	sub, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	names, err := entries(sub)
	for i := 0; i < len(names) && err == nil; i++ {
		err = u.removeTree(sub, names[i], path.Join(p, names[i]))
	}
	unix.Close(sub)
	if err != nil {
		return err
	}
	return unix.Unlinkat(fd, name, unix.AT_REMOVEDIR)
}

// dropAliases forgets names that went through a symlink.
func (c *dirCache) dropAliases() {
	kept := c.order[:0]
	for _, name := range c.order {
		if d := c.byName[name]; d.path != name {
			c.dead = append(c.dead, d.fd)
			delete(c.byName, name)
			continue
		}
		kept = append(kept, name)
	}
	c.order = kept
}

// entries returns the names in the directory, which fd has open for reading.
func entries(fd int) ([]string, error) {
	var names []string
	buf := make([]byte, 32<<10)
	for {
		n, err := unix.ReadDirent(fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n <= 0 {
			return names, nil
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
}
