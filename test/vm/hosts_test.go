package vm

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestCgroupV2Host runs tests of other packages on a pure cgroup-v2 host. A package
// joins by a line in the table; its tests run as root in /, from a binary built without
// the race detector, and find TMPDIR on a tmpfs.
func TestCgroupV2Host(t *testing.T) {
	if testing.Short() {
		t.Skip("boots machines, which takes about ten seconds each: left out with -short")
	}
	for _, tt := range []struct {
		name    string
		pkg     string   // the package of which the tests run
		run     string   // -test.run; "" is all
		tags    string   // build tags
		systemd bool     // with systemd as process 1
		env     []string // added to the environment
		modules []string
	}{
		{name: "cgroup", pkg: "./internal/platform/cgroup"},
		{name: "cgroup-systemd", pkg: "./internal/platform/cgroup", run: "^(TestSystemd|TestFaults|TestLifecycle|TestDevices)$", tags: "faults", systemd: true, env: []string{"ORLOP_TEST_SYSTEMD=1"}},
		{name: "namespace", pkg: "./internal/platform/namespace"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			ctx := context.Background()
			root, err := moduleRoot(ctx)
			if err != nil {
				t.Fatal(err)
			}
			bin := filepath.Join(t.TempDir(), tt.name+".test")
			if _, err := command(ctx, root, "env", "CGO_ENABLED=0", "go", "test", "-c", "-tags", tt.tags, "-o", bin, tt.pkg); err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			o := Options{
				Stdout: &out, Stderr: &out, Timeout: 5 * time.Minute, Systemd: tt.systemd, Modules: tt.modules, MemoryMiB: 1536,
				Env: append([]string{"PATH=" + os.Getenv("PATH"), "HOME=/root", "LC_ALL=C"}, tt.env...),
			}
			args := []string{bin, "-test.v", "-test.timeout=4m"}
			if tt.run != "" {
				args = append(args, "-test.run", tt.run)
			}
			start := time.Now()
			code, err := Run(ctx, o, args...)
			if err != nil {
				t.Fatalf("%v\n%s", err, out.String())
			}
			if code != 0 || !bytes.Contains(out.Bytes(), []byte("\n--- PASS: ")) {
				t.Fatalf("exit code %d\n%s", code, out.String())
			}
			t.Logf("%d passed in %.1f s", bytes.Count(out.Bytes(), []byte("\n--- PASS: ")), time.Since(start).Seconds())
		})
	}
}
