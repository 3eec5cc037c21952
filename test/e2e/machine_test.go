package e2e

import (
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// groups returns this node's control groups in every hierarchy, the deepest first.
func (n *node) groups() (dirs []string) {
	filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.Contains(path+"/", "/"+n.name+"/") {
			dirs = append(dirs, path)
		}
		return nil
	})
	slices.Reverse(dirs)
	return dirs
}

// killGroup kills every process of the node's containers and waits until they are gone.
func (n *node) killGroup() {
	n.t.Helper()
	n.eventually(20*time.Second, func() error {
		left := 0
		for _, dir := range n.groups() {
			raw, _ := os.ReadFile(dir + "/cgroup.procs")
			for _, s := range strings.Fields(string(raw)) {
				pid, _ := strconv.Atoi(s)
				syscall.Kill(pid, syscall.SIGKILL)
				left++
			}
		}
		if left > 0 {
			return os.ErrExist
		}
		return nil
	})
}

func (n *node) removeGroups() {
	n.t.Helper()
	n.eventually(10*time.Second, func() error {
		for _, dir := range n.groups() {
			if err := os.Remove(dir); err != nil && !os.IsNotExist(err) {
				return err
			}
		}
		return nil
	})
}

// loops returns the loop devices over files of this node, volumes' before the pool's.
func (n *node) loops() (devices []string) {
	var pool []string
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, f := range files {
		b, _ := os.ReadFile(f)
		switch file, dev := string(b), "/dev/"+filepath.Base(filepath.Dir(filepath.Dir(f))); {
		case strings.HasPrefix(file, n.run+"/"):
			devices = append(devices, dev)
		case strings.HasPrefix(file, n.root+"/"):
			pool = append(pool, dev)
		}
	}
	return append(devices, pool...)
}
