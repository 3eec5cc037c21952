package main

import (
	"os"
	"strings"
	"testing"
)

// exec --cgroup puts a command into groups below the container's.
func TestExecCgroup(t *testing.T) {
	r := newRig(t, "/bin/sleep", "100")
	r.ok("run", "-d", r.id)
	v1 := false
	var made []string
	for _, dir := range groups(strings.TrimPrefix(r.spec.Linux.CgroupsPath, "/")) {
		v1 = v1 || strings.Contains(dir, "/memory/")
		for _, sub := range []string{dir + "/a", dir + "/a/b"} {
			if err := os.Mkdir(sub, 0o755); err != nil {
				t.Fatal(err)
			}
			made = append([]string{sub}, made...)
		}
	}
	defer func() {
		r.kill()
		for _, sub := range made { // delete has taken the container's
			if _, err := os.Stat(sub); err == nil {
				t.Errorf("left behind: %s", sub)
			}
		}
	}()
	own := r.spec.Linux.CgroupsPath
	for _, tt := range []struct {
		name  string
		v1    bool // of a host with several hierarchies alone
		args  []string
		in    map[string]string // by controller, below the container's group
		fails string
	}{
		{name: "path", args: []string{"a/b"}, in: map[string]string{"": "/a/b", "memory": "/a/b", "pids": "/a/b"}},
		{name: "absolute", args: []string{"/a"}, in: map[string]string{"": "/a", "memory": "/a", "pids": "/a"}},
		{name: "itself", args: []string{"/"}, in: map[string]string{"": "", "memory": ""}},
		{name: "controllers", v1: true, args: []string{"memory,pids:a", "cpu:a/b"}, in: map[string]string{"memory": "/a", "pids": "/a", "cpu": "/a/b", "": ""}},
		{name: "escape", args: []string{"../x"}, fails: "must not contain .."},
		{name: "escape and back", args: []string{"a/../../../" + strings.TrimPrefix(own, "/")}, fails: "must not contain .."},
		{name: "escape of one controller", args: []string{"memory:../x"}, fails: "must not contain .."},
		{name: "not there", args: []string{"x"}, fails: "does not exist"},
		{name: "two without controllers", args: []string{"a", "a/b"}, fails: "each names its controllers"},
		{name: "named twice", args: []string{"memory:a", "pids,memory:a"}, fails: "named twice"},
		{name: "no name", args: []string{"memory,:a"}, fails: "name is missing"},
		{name: "unknown", args: []string{"nothing:a"}, fails: "have a controller nothing"},
	} {
		if tt.v1 && !v1 {
			continue
		}
		args := []string{"exec"}
		for _, a := range tt.args {
			args = append(args, "--cgroup", a)
		}
		if tt.fails != "" {
			r.fails(tt.fails, append(args, r.id, "true")...)
			continue
		}
		// The container's own view begins at its group where it has a cgroup namespace.
		list := r.ok(append(args, r.id, "cat", "/proc/self/cgroup")...)
		for line := range strings.Lines(list) {
			part := strings.SplitN(strings.TrimSpace(line), ":", 3)
			want, ok := tt.in[part[1]]
			if got := strings.TrimSuffix(strings.TrimPrefix(part[2], own), "/"); ok && got != want {
				t.Errorf("%s: %s, want %q", tt.name, line, want)
			}
		}
	}
}
