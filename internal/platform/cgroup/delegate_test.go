package cgroup

import (
	"context"
	"os"
	"syscall"
	"testing"
)

// TestDelegate: the group and the files to manage it by become the user's, its limits do not.
func TestDelegate(t *testing.T) {
	all, err := Open(Options{Driver: Cgroupfs})
	if err != nil {
		t.Fatal(err)
	}
	v2 := all.unified.mount
	if v2 == "" {
		t.Fatal("cgroup2 is not mounted")
	}
	h, err := Open(Options{Driver: Cgroupfs, Root: v2})
	if err != nil {
		t.Fatal(err)
	}
	if h.Layout().Mode != V2 {
		t.Fatalf("%s alone is %v", v2, h.Layout().Mode)
	}
	g, err := h.Create("/"+instance()+"/delegated", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		for _, p := range []string{"/delegated", ""} {
			if g, err := h.Load("/" + instance() + p); err == nil {
				g.Remove(context.Background())
			}
		}
	}()
	for range 2 {
		if err := g.Delegate(100000, 200000); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]uint32{"": 100000, "cgroup.procs": 100000, "cgroup.subtree_control": 100000, "cgroup.threads": 100000, "cgroup.max.depth": 0} {
		st, err := os.Stat(g.unifiedDir() + "/" + name)
		if err != nil {
			t.Fatal(err)
		}
		if uid := st.Sys().(*syscall.Stat_t).Uid; uid != want {
			t.Errorf("%q belongs to %d, want %d", name, uid, want)
		}
	}
}
