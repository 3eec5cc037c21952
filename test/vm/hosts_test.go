package vm

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/orlop-io/orlop/test/programs"
)

// suite is the tests of a package that run in the machine: as root, in the package's
// directory, without the race detector, with TMPDIR on a tmpfs. What the package's TestMain
// builds by test/programs is built before, outside.
type suite struct {
	name string   // of the subtest; "" is the last part of pkg
	pkg  string   // below the module
	run  string   // -test.run; "" is all. What runs here is 5 to 30 times slower
	skip string   // -test.skip
	tags string   // build tags
	env  []string // added to the environment
	runc bool     // it takes programs.Runc, which is built out here: there is no network inside
}

// hosts are the machines, booted once each, with what runs in them one after another. A
// package joins by a line. A single one is run by
//
//	go test ./test/vm -run TestHosts/v2/executor -v
var hosts = []struct {
	name    string
	options Options
	suites  []suite
}{
	{name: "v2", options: Options{MemoryMiB: 2048}, suites: []suite{
		{pkg: "internal/platform/cgroup"},
		{pkg: "internal/platform/namespace"},
		{pkg: "internal/platform/overlay"},
		{pkg: "internal/platform/pidfd"},
		// What another kernel and cgroup v2 may change; the whole package takes too long here.
		{pkg: "internal/platform/executor", run: "^(TestSeccomp|TestGroup|TestCgroupView|TestLimits|TestManyLayers|TestDevicesAndSysctls|TestFIFOGate|TestExec|TestPause|TestTimeNamespace)$",
			skip: "^TestTimeNamespace$/^user_namespace_true$"}, // id-mapped layers need another filesystem than the tmpfs there
		{pkg: "internal/platform/container"},
		{pkg: "cmd/orlop-oci", run: "^(TestLifecycle|TestRun|TestExec|TestExecCgroup|TestGroupInUse|TestNotify|TestPauseUpdateEvents|TestAppArmor)$",
			env: []string{"ORLOP_TEST_APPARMOR=1"}}, // its kernel has it
		{name: "criu", pkg: "cmd/orlop-oci", run: "^(TestCheckpoint|TestCheckpointLeavesRunning|TestCheckpointTerminal|TestCheckpointOutside|TestRestoreDamaged)$",
			env: []string{"ORLOP_TEST_CRIU=1"}},
		{name: "criu restores", pkg: "cmd/orlop-oci", run: "^(TestRestoreFaults|TestRestoreInterrupted|TestRestoreForeground)$",
			env: []string{"ORLOP_TEST_CRIU=1"}},
		{name: "criu connections", pkg: "cmd/orlop-oci", run: "^(TestCheckpointTCP|TestRestoreLazy|TestRestoreAppArmor)$",
			env: []string{"ORLOP_TEST_CRIU=1", "ORLOP_TEST_APPARMOR=1"}},
		{pkg: "internal/platform/keeper", run: "^(TestKilledAtGate|TestSharedPID|TestReapedLate|TestSignalAll|TestPause|TestOOM|TestOOMOfChild|" +
			"TestExecAndAttach|TestExecOutlivesKeeper|TestExecErrors|TestEndsWithoutKeeper|TestTerminalOpenedAgain|TestUpgrade|TestLifecycle)$"},
		{pkg: "internal/network", run: "^(TestReach|TestHostPorts|TestSpoofing|TestGuardedForwarding)$"},
		{pkg: "internal/platform/loop"},
		{pkg: "internal/volume", run: "^(TestLife|TestExpand|TestBlock|TestReadOnlyAndShared|TestTeardownAlone|TestTrimAndPurge|TestRepaired)$"},
		{name: "cri-criu", pkg: "test/e2e", run: "^TestCRICheckpoint(Killed|ByRuntime)?$", env: []string{"ORLOP_TEST_CRIU=1"}, runc: true},
		{pkg: "test/e2e", run: "^TestNotes$/^(daemon|keeper|both|pod)_"}, // the loss of power is TestNode's
		{pkg: "test/differential", run: "^TestDifferential$", env: []string{"ORLOP_DIFFERENTIAL_SAMPLE=97"}},
	}},
	{name: "systemd", options: Options{MemoryMiB: 2048, Systemd: true}, suites: []suite{
		{pkg: "internal/platform/cgroup", run: "^(TestSystemd|TestFaults|TestLifecycle|TestDevices)$", tags: "faults", env: []string{"ORLOP_TEST_SYSTEMD=1"}},
		{pkg: "internal/platform/executor", run: "^(TestRoots|TestPropagation)$"}, // the host's mounts are shared
		{pkg: "internal/platform/keeper", run: "^(TestSharedPID|TestSignalAll|TestPause|TestOOM|TestExecOutlivesKeeper|TestEndsWithoutKeeper|TestUpgrade)$"},
		{pkg: "cmd/orlop-oci", run: "^TestSystemd$", env: []string{"ORLOP_TEST_SYSTEMD=1"}},
	}},
}

// TestHosts runs tests of other packages on hosts that this one is not: their kernel is
// older (6.1), and all their control groups are cgroup v2.
func TestHosts(t *testing.T) {
	if testing.Short() {
		t.Skip("boots machines: left out with -short")
	}
	for _, host := range hosts {
		t.Run(host.name, func(t *testing.T) {
			var m *Machine
			var took []string
			disk := makeDisk(t, filepath.Join(t.TempDir(), "disk"))
			t.Cleanup(func() {
				if m != nil {
					m.Close()
				}
			})
			for _, s := range host.suites {
				if s.name == "" {
					s.name = filepath.Base(s.pkg)
				}
				t.Run(s.name, func(t *testing.T) {
					bin, built := s.build(t)
					var err error
					if m == nil {
						if m, err = bootHost(t, host.options, disk); err != nil {
							t.Fatal(err)
						}
					}
					var out bytes.Buffer
					start := time.Now()
					code, err := m.Run(Command{
						Argv: []string{bin, "-test.v", "-test.timeout=8m", "-test.run", s.run, "-test.skip", s.skip},
						Env:  append([]string{"PATH=" + os.Getenv("PATH"), "HOME=/root", "LC_ALL=C", programs.Env + "=" + built}, s.env...),
						Dir:  filepath.Join(moduleDir(t), s.pkg), Stdout: &out, Stderr: &out,
					})
					if err != nil {
						m = nil
						t.Fatalf("%v\n%s", err, out.String())
					}
					passed := bytes.Count(out.Bytes(), []byte("\n--- PASS: "))
					if code != 0 || passed == 0 {
						t.Fatalf("exit code %d, %d tests passed\n%s", code, passed, failures(out.Bytes()))
					}
					took = append(took, fmt.Sprintf("%6.1f s  %s: %d passed, the longest%s", time.Since(start).Seconds(), s.name, passed, longest(out.Bytes())))
				})
			}
			t.Logf("what it took:\n%s", strings.Join(took, "\n"))
		})
	}
}

// ended is what a test's end looks like.
var ended = regexp.MustCompile(`(?m)^--- PASS: (\S+) \((\d+\.\d+)s\)$`)

// longest names the tests that took most of a row's time.
func longest(out []byte) (s string) {
	list := ended.FindAllSubmatch(out, -1)
	seconds := func(m [][]byte) float64 {
		f, _ := strconv.ParseFloat(string(m[2]), 64)
		return f
	}
	slices.SortStableFunc(list, func(a, b [][]byte) int { return cmp.Compare(seconds(b), seconds(a)) })
	for _, m := range list[:min(len(list), 4)] {
		s += fmt.Sprintf(" %s %s,", m[1], m[2])
	}
	return strings.TrimSuffix(s, ",")
}

// failures is what tests said, without those that passed.
func failures(out []byte) string {
	var kept []byte
	for _, at := range slices.Backward(begun.FindAllIndex(out, -1)) {
		section := out[at[0]:]
		if !ended.Match(section) {
			kept = slices.Concat(section, kept)
		}
		out = out[:at[0]]
	}
	return string(out) + string(kept)
}

// begun is where a test, not one within another, begins.
var begun = regexp.MustCompile(`(?m)^=== RUN   [^/\s]+$`)

// bootHost boots a machine that has a disk at /var/lib, where what is tested keeps its
// images and volumes: on the root no overlay can have its upper directory.
func bootHost(t *testing.T, o Options, disk string) (*Machine, error) {
	t.Helper()
	o.Disk, o.Timeout = disk, 15*time.Minute // all suites of a host take half of it
	m, err := Boot(context.Background(), o)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	code, err := m.Run(Command{Argv: []string{"/bin/mount", "/dev/vda", "/var/lib"}, Stdout: &out, Stderr: &out})
	if err == nil && code != 0 {
		err = fmt.Errorf("mount the machine's disk: %s", &out)
		m.Kill()
	}
	return m, err
}

// build makes the test binary, and a directory with the programs that it runs.
func (s suite) build(t *testing.T) (bin, built string) {
	t.Helper()
	bin, built = filepath.Join(t.TempDir(), filepath.Base(s.pkg)+".test"), t.TempDir()
	root := moduleDir(t)
	if _, err := command(t.Context(), root, "env", "CGO_ENABLED=0", "go", "test", "-c", "-tags", s.tags, "-o", bin, "./"+s.pkg); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), bin, "-test.run", "^$")
	cmd.Dir, cmd.Env = filepath.Join(root, s.pkg), append(os.Environ(), programs.Env+"="+built)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the programs of %s: %v\n%s", s.pkg, err, out)
	}
	if s.runc {
		if _, err := programs.BuildRunc(built); err != nil {
			t.Fatal(err)
		}
	}
	return bin, built
}

func moduleDir(t *testing.T) string {
	t.Helper()
	root, err := moduleRoot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return root
}
