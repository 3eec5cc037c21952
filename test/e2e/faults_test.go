package e2e

import (
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

// notApplied are the points that an applied pod does not pass: TestCRIKilledAtEveryPoint goes through those of
// pods that a client drives, TestCRICheckpoint and TestCRICheckpointKilled through the others.
var notApplied = []string{"pod.driven.", "pod.checkpoint.", "pod.restore."}

// The daemon dies at every fault point of the pods' domain, one by one, while a pod
// is applied, its container killed, and the pod deleted. Whatever was acknowledged
// holds, the pod comes to run, and the node's own cleanup finds nothing left. The
// points of images, networks, volumes, control groups and the keeper are gone through
// by their packages' tests in the same way.
func TestDaemonKilledAtEveryPoint(t *testing.T) {
	out := run(t, bin+"/orlop", "daemon", "--faults")
	var points []string
	for p := range strings.FieldsSeq(out) {
		if strings.HasPrefix(p, "pod.") && !slices.ContainsFunc(notApplied, func(other string) bool { return strings.HasPrefix(p, other) }) {
			points = append(points, p)
		}
	}
	if len(points) < 15 {
		t.Fatalf("only %d fault points: %v", len(points), points)
	}
	for _, point := range points {
		t.Run(point, func(t *testing.T) {
			t.Parallel() // each has a node of its own, and waits more than it works
			n := newNode(t)
			n.orlop("image", "pack", bin+"/notes", "-t", "localhost/notes:1", "--entrypoint", "/bin/notes")
			n.kill()
			once := filepath.Join(t.TempDir(), "once")
			manifest := "../../examples/notes.yaml"
			if strings.Contains(point, ".hook") { // the example has no hook
				raw, err := os.ReadFile(manifest)
				if err != nil {
					t.Fatal(err)
				}
				const before = "      startupProbe:\n"
				manifest = n.write(filepath.Join(t.TempDir(), "hooked.yaml"), strings.Replace(string(raw), before, "      lifecycle: {postStart: {sleep: {seconds: 1}}}\n"+before, 1))
			}
			n.tryStart("ORLOP_FAULT="+point, "ORLOP_FAULT_ONCE="+once)

			n.insist("apply", "-f", manifest, "--wait", "--timeout", "60s")
			n.addNote("acknowledged at " + point)
			pid := n.webPID()
			n.revive()
			n.eventually(30*time.Second, func() error { return n.hasNotes("acknowledged at " + point) })
			if now := n.webPID(); now != pid {
				t.Errorf("the container was restarted: process %d was %d", now, pid)
			}
			n.insist("delete", "pod", "notes", "--ignore-missing")
			if out := n.insist("ps"); strings.Contains(out, "notes") {
				t.Errorf("the pod is still there:\n%s", out)
			}
			n.insist("apply", "-f", manifest, "--wait", "--timeout", "60s")
			n.eventually(30*time.Second, func() error { return n.hasNotes("acknowledged at " + point) })
			if _, err := os.Stat(once); err != nil {
				t.Errorf("nothing passed the point\n%s", n.tail())
			}
		})
	}
}

// driver is a test that kills a process at every fault point whose name begins so.
type driver struct {
	prefix, dir string   // of the points; of the packages that declare them
	list        []string // what prints the points that the test goes through
	all         string   // or where it says that it takes all of that directory's
}

// Every fault point in the source is one that a test drives: a new one whose name or
// place no test knows fails here, one that a test's process never passes fails there.
func TestEveryFaultPointIsDriven(t *testing.T) {
	crash := func(pkg string) []string {
		out := filepath.Join(t.TempDir(), "crash")
		cmd := exec.Command("go", "build", "-tags", "faults", "-o", out, pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if msg, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("build %s: %v: %s", pkg, err, msg)
		}
		return []string{out, "points"}
	}
	drivers := []driver{
		{"pod.", "internal/pod", []string{bin + "/orlop", "daemon", "--faults"}, ""},
		{"keeper.", "internal/platform/keeper", []string{bin + "/orlop-keeper", "-faults"}, ""},
		{"runtime.", "internal/platform/keeper", []string{bin + "/orlop-keeper", "-faults"}, ""},
		{"image.", "internal/image", crash("../../internal/image/testdata/crash"), ""},
		{"network.", "internal/network", crash("../../internal/network/crash"), ""},
		{"volume.", "internal/volume", crash("../../internal/volume/crash"), ""},
		{"container.", "internal/platform/container", nil, "cmd/orlop-oci/faults_test.go"},
		{"cgroup.", "internal/platform/cgroup", nil, "test/run.sh"},
		{"namespace.", "internal/platform/namespace", nil, "test/run.sh"},
	}
	source := map[string]map[string]bool{} // points by prefix
	declared := regexp.MustCompile(`(?m)^[^/\n]*\bfault\.New\("([^"]*)"\)`)
	err := filepath.WalkDir("../..", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
			return err
		}
		raw, err := os.ReadFile(path)
		for _, m := range declared.FindAllStringSubmatch(string(raw), -1) {
			i := slices.IndexFunc(drivers, func(d driver) bool { return strings.HasPrefix(m[1], d.prefix) })
			switch {
			case i < 0:
				t.Errorf("%s: no test drives fault point %s", path, m[1])
				continue
			case !strings.HasPrefix(path, "../../"+drivers[i].dir+"/"):
				t.Errorf("%s: fault point %s is not where its test looks, %s", path, m[1], drivers[i].dir)
			case source[drivers[i].prefix][m[1]]:
				t.Errorf("%s: fault point %s is declared twice", path, m[1])
			}
			if source[drivers[i].prefix] == nil {
				source[drivers[i].prefix] = map[string]bool{}
			}
			source[drivers[i].prefix][m[1]] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range drivers {
		if len(source[d.prefix]) == 0 {
			t.Errorf("no fault point begins with %s", d.prefix)
		}
		if d.list == nil {
			if raw, err := os.ReadFile("../../" + d.all); err != nil || !strings.Contains(string(raw), strings.TrimPrefix(d.dir, "internal/")) {
				t.Errorf("%s does not take the fault points of %s: %v", d.all, d.dir, err)
			}
			continue
		}
		listed := map[string]bool{}
		for p := range strings.FieldsSeq(run(t, d.list[0], d.list[1:]...)) {
			if strings.HasPrefix(p, d.prefix) {
				listed[p] = true
			}
		}
		if !maps.Equal(listed, source[d.prefix]) {
			t.Errorf("%s: the test drives %v, the source has %v", d.prefix, slices.Sorted(maps.Keys(listed)), slices.Sorted(maps.Keys(source[d.prefix])))
		}
	}
}

// revive starts the daemon if it has died.
func (n *node) revive() {
	n.t.Helper()
	if !n.alive() {
		n.start()
	}
}

// insist runs a command, and again after reviving the daemon where that died.
func (n *node) insist(args ...string) string {
	n.t.Helper()
	for try := 0; ; try++ {
		n.revive()
		out, err := n.try(args...)
		if err == nil {
			return out
		}
		if n.alive() && !n.waitExit(500*time.Millisecond) || try == 3 {
			n.t.Fatalf("%v\n%s", err, n.tail())
		}
	}
}
