// Package differential runs the same configurations through runc and through orlop-oci
// and compares what a container sees, what the host sees of it, how it ends, and what is
// left. Every difference is in a table with its reason, or fails the test.
package differential

import (
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/orlop-io/orlop/test/proc"
	"github.com/orlop-io/orlop/test/programs"
)

var (
	show = flag.Bool("show", false, "print every finding")
	only = flag.String("case", "", "run the cases that match these patterns, with | between them")
)

// sample is how many of the cases run: one of so many. Where everything is slow it is more
// than one.
func sample() int {
	n, err := strconv.Atoi(os.Getenv("ORLOP_DIFFERENTIAL_SAMPLE"))
	if err != nil || n < 1 {
		return 1
	}
	return n
}

// vital are the cases that run in any sample: each layout of control groups, and each kernel, has a
// way of its own to do them. Of devices, system call filters and hooks they are one of each kind.
var vital = strings.Join([]string{
	// Control groups: every controller, where groups are, and changes of limits.
	"resources-all|resources-unified*|resources-memory-limit-swap|resources-memory-limit-swap-unlimited|resources-memory-swap-alone|resources-cpu-idle|resources-cpu-quota",
	"resources-cpu-set|resources-cpu-set-missing|resources-block-read-bps|resources-hugepages*|resources-rdma|cgroups-path-*|mount-cgroup*",
	"update-all|update-cpuset|update-json-unified|update-memory-of-both-twice|update-memory-none-of-both|update-half-refused-late|update-cpu-burst-then-less|update-cpu-idle-and-back",
	// Devices: which may be used a program decides on cgroup v2, a list on v1.
	"device-character|device-several|device-rules-none|device-rules-read-only|device-rules-mknod-only|device-rules-deny-part|device-rules-deny-after",
	"device-rules-allow-then-deny-all|device-rules-access-bad",
	// Filters of system calls: what the kernel knows of them grows.
	"seccomp-default|seccomp-trap|seccomp-kill-process|seccomp-errno-execve|seccomp-notify-write|seccomp-argument-masked|seccomp-enosys-above|seccomp-flags-wait-killable",
	// Hooks: when each runs and what it is told, and how the container ends with one that fails or takes too long.
	"hooks-all|hook-sees-mounts|hook-startContainer|hook-fails-createRuntime|hook-timeout-prestart",
	"user-namespace-devices|user-namespace-cgroup|namespace-new-time|time-offsets|namespace-join-several",
	// Combinations, four beside those of the sample.
	"seed-5+*|seed-23+*|seed-25+*|seed-45+*",
}, "|")

var suite struct {
	work     string // directory of bundles
	cgroup   string // below which the containers' groups are
	ref, own Runtime
}

func TestMain(m *testing.M) {
	flag.Parse()
	if err := proc.HeedSignals(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "these tests start containers: run them as root")
		return 1
	}
	built, remove, err := programs.Build(
		programs.Program{Package: "cmd/orlop-oci", LDFlags: "-s -w -E main.entry"}, programs.Program{Package: "cmd/orlop-init", LDFlags: "-s -w"},
		programs.Program{Package: "test/differential/inside", LDFlags: "-s -w"})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer remove()
	suite.own = Runtime{Name: "own", Path: filepath.Join(built, "orlop-oci")}
	suite.ref = Runtime{Name: "ref", Path: os.Getenv("ORLOP_RUNC")} // another one than that of the tests
	if suite.ref.Path == "" {
		if suite.ref.Path, err = programs.BuildRunc(built); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	if suite.work, err = os.MkdirTemp("", "orlop-differential-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(suite.work)
	inside, err := os.ReadFile(filepath.Join(built, "inside"))
	if err == nil {
		err = errors.Join(os.Chmod(suite.work, 0o755), os.WriteFile(filepath.Join(suite.work, "inside"), inside, 0o755))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	suite.cgroup = filepath.Base(suite.work)
	code := m.Run()
	for _, root := range parents() {
		if err := os.Remove(filepath.Join(root, suite.cgroup)); err != nil && !errors.Is(err, os.ErrNotExist) {
			fmt.Fprintln(os.Stderr, "left behind:", err)
			code = 1
		}
	}
	return code
}

func TestDifferential(t *testing.T) {
	made := corpus()
	all := append(made, generated(made, 60)...)
	whole := *only == "" && sample() == 1
	slots := make(chan struct{}, 2)
	var mu sync.Mutex
	var wg sync.WaitGroup
	ran := 0
	for i, c := range all {
		if *only != "" && !match(*only, c.Name) || i%sample() != 0 && !match(vital, c.Name) {
			continue
		}
		ran++
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			ref := suite.ref.Run(t, c)
			own := suite.own.Run(t, c)
			mu.Lock()
			defer mu.Unlock()
			compare(t, c, ref, own)
		})
	}
	wg.Wait()
	if whole {
		checkKnown(t)
	}
	t.Logf("%d configurations, %d of them made by hand", ran, len(made))
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
		if strings.HasPrefix(k, "said at ") && !*show {
			continue
		}
		if k == "stderr" || ref[k] == own[k] || explained(c.Name, k) {
			continue
		}
		bad = true
		t.Errorf("%s: %s\n\trunc %q\n\town  %q", c.Name, k, ref[k], own[k])
	}
	if bad && ref["stderr"]+own["stderr"] != "" {
		t.Logf("%s said:\n\trunc %s\n\town  %s", c.Name, ref["stderr"], own["stderr"])
	}
}
