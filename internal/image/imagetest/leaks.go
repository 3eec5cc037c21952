package imagetest

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
)

// Main runs a package's tests, for its TestMain. They fail if they leave a mount, or a
// descriptor of a file of theirs.
func Main(m *testing.M) {
	code := m.Run()
	if code == 0 {
		for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			left := leaks()
			if len(left) == 0 {
				break
			}
			if time.Now().After(end) {
				fmt.Fprintln(os.Stderr, "left behind:", strings.Join(left, "\n"))
				code = 1
				break
			}
		}
	}
	os.Exit(code)
}

func leaks() (left []string) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return []string{err.Error()}
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, os.TempDir()+"/Test") {
			left = append(left, line)
		}
	}
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return []string{err.Error()}
	}
	for _, fd := range fds {
		to, err := os.Readlink("/proc/self/fd/" + fd.Name())
		if err == nil && (strings.HasPrefix(to, os.TempDir()+"/Test") || strings.Contains(to, "overlay")) {
			left = append(left, "descriptor of "+to)
		}
	}
	return left
}
