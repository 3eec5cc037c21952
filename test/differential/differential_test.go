// Package differential runs the same configurations through runc and through orlop-oci
// and compares what a container sees, what the host sees of it, how it ends, and what is
// left. Every difference is in a table with its reason, or fails the test.
package differential

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"
)

var show = flag.Bool("show", false, "print every finding")

var suite struct {
	work, cgroup, programs string
	ref, own               Runtime
}

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(run(m))
}

func run(m *testing.M) int {
	var err error
	if suite.work, err = os.MkdirTemp("", "differential-"); err != nil {
		panic(err)
	}
	defer os.RemoveAll(suite.work)
	os.Chmod(suite.work, 0o755)
	suite.cgroup = fmt.Sprintf("orlop-differential-%d", os.Getpid())
	suite.programs = suite.work
	cmd := exec.Command("go", "build", "-o", filepath.Join(suite.work, "inside"), "./inside")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		fmt.Println(string(out))
		return 1
	}
	suite.ref = Runtime{Name: "ref", Path: or("ORLOP_RUNC", "/tmp/runcbin/runc")}
	suite.own = Runtime{Name: "own", Path: or("ORLOP_OCI", "/tmp/ocibin/orlop-oci")}
	code := m.Run()
	for _, root := range hierarchies() {
		os.Remove(filepath.Join(root, suite.cgroup))
	}
	return code
}

func or(env, value string) string {
	if v := os.Getenv(env); v != "" {
		return v
	}
	return value
}

func TestDifferential(t *testing.T) {
	all := corpus()
	slots := make(chan struct{}, 2)
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, c := range all {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			start := time.Now()
			ref := suite.ref.Run(t, c, suite.work, suite.cgroup, suite.programs)
			mid := time.Now()
			own := suite.own.Run(t, c, suite.work, suite.cgroup, suite.programs)
			mu.Lock()
			defer mu.Unlock()
			if d := time.Since(start); d > 2*time.Second {
				t.Logf("slow: %s %v %v", c.Name, mid.Sub(start), time.Since(mid))
			}
			compare(t, c, ref, own)
		})
	}
	wg.Wait()
}

// compare fails for every difference that the table does not explain.
func compare(t *testing.T, c Case, ref, own Outcome) {
	keys := slices.Collect(maps.Keys(own))
	for k := range ref {
		if _, ok := own[k]; !ok {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	ran := ref["ran"] == "true" && own["ran"] == "true"
	bad := false
	for _, k := range keys {
		if !ran && !slices.Contains([]string{"ran", "exit", "error", "left behind"}, k) {
			continue // there is not much to compare
		}
		if *show {
			t.Logf("%s: %s: %s", c.Name, k, own[k])
		}
		if k == "stderr" || ref[k] == own[k] || explained(c.Name, k, ref[k], own[k]) {
			continue
		}
		bad = true
		t.Errorf("%s: %s\n\trunc %q\n\town  %q", c.Name, k, ref[k], own[k])
	}
	if bad && ref["stderr"]+own["stderr"] != "" {
		t.Logf("%s said:\n\trunc %s\n\town  %s", c.Name, ref["stderr"], own["stderr"])
	}
}
