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

// users names processes of this mount namespace that have their working directory, root or an
// open file on the filesystem mounted at path, as "name (pid)", at most five. It is for messages: what it
// cannot look at it leaves out.
func users(path string) []string {
	var st unix.Stat_t
	own, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil || unix.Stat(path, &st) != nil {
		return nil
	}
	procs, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var found []string
	for _, p := range procs {
		if _, err := strconv.Atoi(p.Name()); err != nil || len(found) == 5 {
			continue
		}
		dir := filepath.Join("/proc", p.Name())
		if ns, err := os.Readlink(filepath.Join(dir, "ns/mnt")); err != nil || ns != own {
			continue
		}
		links := []string{filepath.Join(dir, "cwd"), filepath.Join(dir, "root")}
		fds, _ := os.ReadDir(filepath.Join(dir, "fd"))
		for _, fd := range fds {
			links = append(links, filepath.Join(dir, "fd", fd.Name()))
		}
		uses := slices.ContainsFunc(links, func(l string) bool {
			var s unix.Stat_t
			// A descriptor of a socket or pipe has no device in common with a filesystem.
			return unix.Stat(l, &s) == nil && s.Dev == st.Dev
		})
		if uses {
			name, _ := os.ReadFile(filepath.Join(dir, "comm"))
			found = append(found, fmt.Sprintf("%s (%s)", strings.TrimSpace(string(name)), p.Name()))
		}
	}
	return found
}

// busy is what an unmount of path says that did not succeed.
func busy(path string) string {
	if u := users(path); len(u) > 0 {
		return "still used by " + strings.Join(u, ", ") + "; end that first"
	}
	return "still used by a process of the host, or something is mounted in it"
}
