// Package mount reads the mount table and takes mounts away.
//
// What makes a mount stays where the mount is wanted, because its flags are
// policy; what is here is what everybody who mounts has to get right: telling
// whether a path is a mount point, listing what lies below a directory, and
// unmounting although something is just letting go.
package mount

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/orlop-io/orlop/internal/base/rawfile"
)

// Info is one line of /proc/self/mountinfo (proc_pid_mountinfo(5)).
type Info struct {
	ID, Parent   int
	Major, Minor uint32
	Root         string // directory of the filesystem that is the root of the mount
	Point        string // relative to the process's root
	Options      string // per mount
	Optional     string // propagation: "shared:1 master:2"
	Type         string // filesystem
	Source       string
	SuperOptions string // per superblock
}

// ReadOnly tells whether the mount itself refuses writes.
func (i Info) ReadOnly() bool { return hasOption(i.Options, "ro") }

func hasOption(list, name string) bool {
	for o := range strings.SplitSeq(list, ",") {
		if o == name {
			return true
		}
	}
	return false
}

// List returns the mounts of the calling process's mount namespace, in the order
// of the table: a mount comes after what it lies on.
func List() ([]Info, error) {
	table, err := rawfile.Read("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	return Parse(bytes.NewReader(table))
}

// Parse reads a table in the format of /proc/PID/mountinfo.
func Parse(r io.Reader) ([]Info, error) {
	var all []Info
	s := bufio.NewScanner(r)
	s.Buffer(nil, 1<<20) // overlay options alone can fill a page
	for s.Scan() {
		i, ok := parseLine(s.Bytes())
		if !ok {
			return nil, fmt.Errorf("parse mount table: unexpected line %q", s.Text())
		}
		all = append(all, i)
	}
	return all, s.Err()
}

// parseLine splits
//
//	36 35 98:0 /root /point rw,noatime shared:1 - ext4 /dev/sda rw,errors=continue
//	id parent dev root point options [optional…] - type source superoptions
func parseLine(line []byte) (i Info, ok bool) {
	// The separator is searched for with its spaces; names have theirs escaped.
	left, right, found := bytes.Cut(line, []byte(" - "))
	l, r := strings.Split(string(left), " "), strings.Split(string(right), " ")
	if !found || len(l) < 6 || len(r) < 3 {
		return i, false
	}
	var err1, err2, err3, err4 error
	i.ID, err1 = strconv.Atoi(l[0])
	i.Parent, err2 = strconv.Atoi(l[1])
	major, minor, _ := strings.Cut(l[2], ":")
	ma, err3 := strconv.ParseUint(major, 10, 32)
	mi, err4 := strconv.ParseUint(minor, 10, 32)
	if err1 != nil || err2 != nil || err3 != nil || err4 != nil {
		return i, false
	}
	i.Major, i.Minor = uint32(ma), uint32(mi)
	i.Root, i.Point, i.Options = unescape(l[3]), unescape(l[4]), l[5]
	i.Optional = strings.Join(l[6:], " ")
	i.Type, i.Source, i.SuperOptions = unescape(r[0]), unescape(r[1]), r[2]
	return i, true
}

// unescape undoes the kernel's \ooo for space, tab, newline and backslash.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if v, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b = append(b, byte(v))
				i += 3
				continue
			}
		}
		b = append(b, s[i])
	}
	return string(b)
}

// Below returns the mounts at dir and below it, deepest and last mounted first:
// the order in which they can be unmounted. Symlinks in dir are resolved.
func Below(dir string) ([]Info, error) {
	if real, err := filepath.EvalSymlinks(dir); err == nil {
		dir = real
	}
	all, err := List()
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(i Info) bool {
		return i.Point != dir && !strings.HasPrefix(i.Point, strings.TrimSuffix(dir, "/")+"/")
	})
	slices.Reverse(all)
	return all, nil
}

// IsMounted tells whether something is mounted at path. It asks the kernel about
// the path itself (statx(2), the mount-root attribute), so it costs one call and is
// right for bind mounts of the same filesystem too. A symlink is not followed; a
// path that does not exist is not a mount point.
func IsMounted(path string) (bool, error) {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT, 0, &st)
	switch err {
	case nil:
	case unix.ENOENT, unix.ENOTDIR:
		return false, nil
	default:
		return false, &os.PathError{Op: "statx", Path: path, Err: err}
	}
	if st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT != 0 { // Linux 5.8
		return st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0, nil
	}
	_, ok, err := At(path)
	return ok, err
}

// At returns the topmost mount whose point is exactly path.
func At(path string) (i Info, ok bool, err error) {
	all, err := Below(path)
	if err != nil {
		return i, false, err
	}
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	for _, m := range all { // last mounted first
		if m.Point == path {
			return m, true, nil
		}
	}
	return i, false, nil
}
