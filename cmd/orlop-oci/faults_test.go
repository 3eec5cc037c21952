package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// points finds the fault points of package container in its source.
func points(t *testing.T) (list []string) {
	files, err := filepath.Glob("../../internal/platform/container/*.go")
	if err != nil || len(files) == 0 {
		t.Fatal(err, files)
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`fault\.New\("([^"]+)"\)`).FindAllStringSubmatch(string(data), -1) {
			list = append(list, m[1])
		}
	}
	slices.Sort(list)
	return list
}

// killedAt runs a command that is killed when it comes to the point, and tells whether it came there; or
// it must succeed.
func (r *rig) killedAt(point string, args ...string) bool {
	r.t.Helper()
	r.binary = built + "/orlop-oci-faults"
	defer func() { r.binary = built + "/orlop-oci" }()
	cmd := r.command(args...)
	cmd.Env = append(cmd.Env, "ORLOP_FAULT="+point)
	said, err := os.Create(filepath.Join(r.t.TempDir(), "err"))
	if err != nil {
		r.t.Fatal(err)
	}
	defer said.Close()
	cmd.Stderr = said
	err = cmd.Run()
	e, ok := err.(*exec.ExitError)
	if ok && e.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL {
		return true
	}
	if err != nil {
		data, _ := os.ReadFile(said.Name())
		r.t.Fatalf("%s: %v: %s", point, err, data)
	}
	return false
}

// TestFaults kills the command at each of its points. What it leaves can be deleted, and
// nothing is left then; or the command can be given again.
func TestFaults(t *testing.T) {
	all := slices.DeleteFunc(points(t), func(p string) bool { // these need CRIU
		return strings.HasPrefix(p, "container.checkpoint.") || strings.HasPrefix(p, "container.restore.")
	})
	if len(all) < 10 {
		t.Fatalf("points: %v", all)
	}
	for _, point := range all {
		t.Run(point, func(t *testing.T) {
			killed := func(r *rig, args ...string) bool { return r.killedAt(point, args...) }
			r := newRig(t, "/bin/sleep", "100")
			pid := filepath.Join(t.TempDir(), "pid")
			switch {
			case killed(r, "create", "--pid-file", pid, r.id):
				again := r.run("create", r.id)
				if again.code == 0 { // nothing but the directory was left
					r.ok("start", r.id)
				}
				r.ok("delete", "--force", r.id)
				r.ok("create", r.id)
				r.ok("start", r.id)
				r.kill()
			case killed(r, "start", r.id):
				if st := r.state(); st.Status != "running" {
					t.Errorf("status %s: the gate was opened", st.Status)
				}
				r.fails("already running", "start", r.id)
				r.kill()
			default: // it has been started
				if !killed(r, "delete", "--force", r.id) {
					t.Error("nothing reaches this point")
				}
				r.ok("delete", "--force", r.id)
			}
			// A create that ends with us takes its process with it at once.
			r.ok("run", "-d", r.id)
			r.kill()
			// The same in one command.
			if killed(r, "run", "-d", r.id) {
				r.ok("delete", "--force", r.id)
			} else {
				r.kill()
			}
		})
	}
}
