package main

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// The runtime has one processor, or as many as the caller says.
func TestEntry(t *testing.T) {
	for given, want := range map[string]string{"A=1": "gomaxprocs=1 ", "GOMAXPROCS=3": "gomaxprocs=3 "} {
		r := newRig(t, "sleep", "0.3") // until the runtime has told
		r.env = []string{"GODEBUG=schedtrace=10", given}
		if res := r.run("run", r.id); res.code != 0 || !strings.Contains(res.err, want) {
			t.Errorf("%s: code %d, want %q in %q", given, res.code, want, res.err)
		}
	}
	// Whatever there is beside it.
	for _, env := range [][]string{{}, {"A="}, {"A=1", "B=2"}} {
		for _, args := range [][]string{{"help"}, {"--version"}, {"help", "run", "more"}} {
			cmd := exec.Command(built+"/orlop-oci", args...)
			cmd.Env = env
			if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "orlop-oci") {
				t.Errorf("%v %v: %v: %s", env, args, err, out)
			}
		}
	}
}

// What is started has the environment and the timer slack that the caller gave.
func TestEntryInherited(t *testing.T) {
	r := newRig(t, "sleep", "50")
	r.ok("run", "--detach", r.id)
	defer r.ok("delete", "--force", r.id)
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/ps", []byte("#!/bin/sh\necho \"PID is $GOMAXPROCS.\"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, given := range []string{"", "1", "4"} {
		r.env = []string{"PATH=" + dir + ":" + os.Getenv("PATH")}
		if given != "" {
			r.env = append(r.env, "GOMAXPROCS="+given)
		}
		if out := r.ok("ps", r.id); out != "PID is "+given+".\n" {
			t.Errorf("given %q it is %q", given, out)
		}
	}
	want, err := os.ReadFile("/proc/self/timerslack_ns")
	if err != nil {
		t.Fatal(err)
	}
	pid := strings.TrimSpace(strings.TrimPrefix(strings.Split(r.ok("ps", "--format", "json", r.id), "]")[0], "["))
	if got, err := os.ReadFile("/proc/" + pid + "/timerslack_ns"); err != nil || string(got) != string(want) {
		t.Errorf("process %s has a timer slack of %q, %v, want %q", pid, got, err, want)
	}
}
