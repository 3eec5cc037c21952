package container

import (
	"io"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// inherit returns the process with what it gets from the caller and the container's image
// besides what is said of it: HOME, and the sockets of a service manager. root is the
// container's root filesystem, mounts what will be over it.
func inherit(p *specs.Process, root string, mounts []specs.Mount, listenFDs int) *specs.Process {
	q := *p
	var env []string
	if !slices.ContainsFunc(p.Env, func(e string) bool { return strings.HasPrefix(e, "HOME=") }) {
		env = append(env, "HOME="+home(root, mounts, p.User.UID))
	}
	if listenFDs > 0 {
		env = append(env, "LISTEN_FDS="+strconv.Itoa(listenFDs), "LISTEN_PID=1")
	}
	if len(env) > 0 {
		q.Env = append(slices.Clone(p.Env), env...)
	}
	return &q
}

// home is the home directory of a user by the container's own /etc/passwd, "/" where that
// does not tell.
func home(root string, mounts []specs.Mount, uid uint32) string {
	file := "etc/passwd"
	for _, m := range mounts {
		if path.Clean(m.Destination) == "/etc/passwd" {
			root, file = path.Dir(m.Source), path.Base(m.Source)
		}
	}
	dir := "/"
	f, err := openInRoot(root, file)
	if err != nil {
		return dir
	}
	defer f.Close()
	want := strconv.FormatUint(uint64(uid), 10)
	passwd(io.LimitReader(f, 1<<20), func(e []string) bool {
		if e[2] != want {
			return true
		}
		if path.IsAbs(e[5]) {
			dir = e[5]
		}
		return false
	})
	return dir
}

// openInRoot opens a plain file; no link of an image leads out of the root.
func openInRoot(root, file string) (*os.File, error) {
	dir, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(dir)
	how := unix.OpenHow{Flags: unix.O_RDONLY | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	fd, err := unix.Openat2(dir, file, &how)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		unix.Close(fd)
		return nil, unix.EINVAL
	}
	return os.NewFile(uintptr(fd), file), nil
}
