package oci

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

var (
	withRunc = flag.Bool("runc", false, "validation: run the suite against runc as well, the one that ORLOP_RUNC names or that is installed")
	update   = flag.Bool("update", false, "validation: write the results into testdata/validation.txt")
)

// The OCI validation suite. It is built apart, with its own list of modules.
const suite = "github.com/opencontainers/runtime-tools@v0.9.1-0.20250523060157-0ea5ed0382a2"

// verdict is what a program of the suite said: checks that held, checks that did not, and
// its exit code.
type verdict struct{ ok, notOK, code int }

func (v verdict) String() string { return fmt.Sprintf("%d/%d/%d", v.ok, v.notOK, v.code) }

// TestValidation runs the suite, and compares with testdata/validation.txt, where each line
// has a program, what it says of orlop-oci, and of runc; with | where that depends on who
// is faster. docs/design/oci.md explains
// each check that does not hold.
func TestValidation(t *testing.T) {
	dir := buildSuite(t)
	t.Cleanup(func() {
		unmount(work) // what runc mounts for a container without a mount namespace stays
		// Its programs make these, and leave the first. They have one name whoever runs
		// the suite: it runs once at a time on a machine.
		removeGroups("testdir", "cgrouptest")
	})
	const file = "testdata/validation.txt"
	data, err := os.ReadFile(file)
	if err != nil && !*update {
		t.Fatal(err)
	}
	type row struct{ own, runc string }
	want := map[string]row{}
	for line := range strings.Lines(string(data)) {
		if w := strings.Fields(line); len(w) == 3 {
			want[w[0]] = row{w[1], w[2]}
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	runc := os.Getenv("ORLOP_RUNC") // as in test/differential, which builds a newer one than Debian has
	if runc == "" {
		runc, _ = exec.LookPath("runc")
	}
	var mu sync.Mutex
	var lines []string
	check := func(name string) func(t *testing.T) {
		return func(t *testing.T) {
			// Those of control groups are in the same one.
			if !strings.HasPrefix(name, "linux_cgroups_") {
				t.Parallel()
			}
			got := row{runc: want[name].runc}
			v, out := validate(t, dir, name, orlopOCI)
			if got.own = v.String(); !slices.Contains(strings.Split(want[name].own, "|"), got.own) && !*update {
				t.Errorf("%s, want %s\n%s", got.own, want[name].own, notOK(out))
			}
			if *withRunc {
				v, out := validate(t, dir, name, runc)
				if got.runc = v.String(); !slices.Contains(strings.Split(want[name].runc, "|"), got.runc) && !*update {
					t.Errorf("runc: %s, want %s\n%s", got.runc, want[name].runc, notOK(out))
				}
			}
			mu.Lock()
			defer mu.Unlock()
			lines = append(lines, fmt.Sprintf("%-36s %-10s %s\n", name, got.own, got.runc))
		}
	}
	t.Run("programs", func(t *testing.T) {
		for _, e := range entries {
			if name := e.Name(); name != "runtimetest" && name != "util" && !strings.HasPrefix(name, "rootfs-") {
				t.Run(name, check(name))
			}
		}
	})
	if len(lines) < 50 {
		t.Errorf("%d programs: the suite is not whole", len(lines))
	}
	if *update {
		slices.Sort(lines)
		if err := os.WriteFile(file, []byte(strings.Join(lines, "")), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func buildSuite(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("go", "mod", "download", "-json", suite).Output()
	if err != nil {
		t.Fatalf("download the suite: %v\n%s", err, out)
	}
	var mod struct{ Dir string }
	if err := json.Unmarshal(out, &mod); err != nil {
		t.Fatal(err)
	}
	dir := work + "/suite"
	for from, to := range map[string]string{"go.mod": work + "/suite.mod", "go.sum": work + "/suite.sum"} {
		data, err := os.ReadFile(mod.Dir + "/" + from)
		if err == nil {
			err = os.WriteFile(to, data, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("go", "build", "-mod=mod", "-modfile="+work+"/suite.mod", "-ldflags", "-s -w", "-o", dir+"/", "./validation/...", "./cmd/runtimetest")
	cmd.Dir = mod.Dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the suite: %v\n%s", err, out)
	}
	archives, _ := filepath.Glob(mod.Dir + "/rootfs-*.tar.gz")
	for _, a := range archives {
		data, err := os.ReadFile(a)
		if err == nil {
			err = os.WriteFile(dir+"/"+filepath.Base(a), data, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// validate runs one program of the suite against a runtime.
func validate(t *testing.T, dir, name, runtime string) (verdict, []byte) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, dir+"/"+name)
	cmd.Dir, cmd.WaitDelay = dir, time.Second
	cmd.Env = append(os.Environ(), "RUNTIME="+runtime, "TMPDIR="+work)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	var v verdict
	var e *exec.ExitError
	if errors.As(err, &e) {
		v.code = e.ExitCode()
	} else if err != nil && !errors.Is(err, exec.ErrWaitDelay) {
		t.Fatal(err)
	}
	for line := range bytes.Lines(out.Bytes()) {
		switch {
		case bytes.HasPrefix(line, []byte("ok")):
			v.ok++
		case bytes.HasPrefix(line, []byte("not ok")):
			v.notOK++
		}
	}
	return v, out.Bytes()
}

var held = regexp.MustCompile(`(?m)^ok .*\n|^  ---\n(  .*\n)*?  \.\.\.\n`)

// notOK is the output without what held.
func notOK(out []byte) []byte { return held.ReplaceAll(out, nil) }

// unmount takes away every mount below dir.
func unmount(dir string) {
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for _, l := range slices.Backward(strings.Split(string(mounts), "\n")) {
		if w := strings.Fields(l); len(w) > 4 && strings.HasPrefix(w[4], dir+"/") {
			unix.Unmount(w[4], unix.MNT_DETACH)
		}
	}
}
