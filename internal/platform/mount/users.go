package mount

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// most is how many processes a message names.
const most = 5

// users names processes of this mount namespace that have their working directory, root or an
// open file on the filesystem mounted at path, as "name (pid)", at most five. It is for messages: what it
// cannot look at it leaves out.
func users(path string) []string {
	var st unix.Stat_t
	own, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil || unix.Stat(path, &st) != nil {
		return nil
	}
	return processes(func(dir string) bool {
		if ns, err := os.Readlink(filepath.Join(dir, "ns/mnt")); err != nil || ns != own {
			return false
		}
		// A descriptor of a socket or pipe has no device in common with a filesystem.
		return has(dir, func(s *unix.Stat_t) bool { return s.Dev == st.Dev })
	})
}

// DeviceUsers names processes that keep a block device busy, as "name (pid)", at most five: those that have it, or
// something on its filesystem, open, and one of each mount namespace in which it is mounted. It is for messages:
// what it cannot look at it leaves out.
func DeviceUsers(device string) []string {
	var st unix.Stat_t
	if unix.Stat(device, &st) != nil {
		return nil
	}
	number := fmt.Sprintf(" %d:%d ", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	seen := make(map[string]bool)
	return processes(func(dir string) bool {
		if has(dir, func(s *unix.Stat_t) bool {
			return s.Dev == st.Rdev || s.Mode&unix.S_IFMT == unix.S_IFBLK && s.Rdev == st.Rdev
		}) {
			return true
		}
		ns, err := os.Readlink(filepath.Join(dir, "ns/mnt"))
		if err != nil || seen[ns] {
			return false
		}
		table, err := os.ReadFile(filepath.Join(dir, "mountinfo"))
		seen[ns] = err == nil
		return strings.Contains(string(table), number)
	})
}

// processes names those of which uses, given their directory below /proc, is true.
func processes(uses func(dir string) bool) (found []string) {
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	for _, p := range procs {
		if _, err := strconv.Atoi(p.Name()); err != nil || len(found) == most {
			continue
		}
		if dir := filepath.Join("/proc", p.Name()); uses(dir) {
			name, _ := os.ReadFile(filepath.Join(dir, "comm"))
			found = append(found, fmt.Sprintf("%s (%s)", strings.TrimSpace(string(name)), p.Name()))
		}
	}
	return found
}

// has tells whether a process's working directory, root or an open file is as fn says.
func has(dir string, fn func(*unix.Stat_t) bool) bool {
	links := []string{filepath.Join(dir, "cwd"), filepath.Join(dir, "root")}
	fds, _ := os.ReadDir(filepath.Join(dir, "fd"))
	for _, fd := range fds {
		links = append(links, filepath.Join(dir, "fd", fd.Name()))
	}
	return slices.ContainsFunc(links, func(l string) bool {
		var s unix.Stat_t
		return unix.Stat(l, &s) == nil && fn(&s)
	})
}

// busy is what an unmount of path says that did not succeed.
func busy(path string) string {
	if u := users(path); len(u) > 0 {
		return "still used by " + strings.Join(u, ", ") + "; end that first"
	}
	return "still used by a process of the host, or something is mounted in it"
}
