package vm

import (
	"bytes"
	"context"
	"os"
	"strings"
	"testing"
	"time"
)

func TestRun(t *testing.T) {
	var out, errOut bytes.Buffer
	o := Options{Stdout: &out, Stderr: &errOut, Timeout: 3 * time.Minute}
	if os.Getenv("ORLOP_VM_CONSOLE") != "" {
		o.Console = os.Stderr
	}
	start := time.Now()
	code, err := Run(context.Background(), o, "/bin/sh", "-c",
		`cat /proc/self/cgroup; stat -f -c %T /sys/fs/cgroup; uname -r; id -u; echo to stderr >&2; exit 7`)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%.1f s: %s", time.Since(start).Seconds(), out.String())
	if code != 7 || errOut.String() != "to stderr\n" || !strings.HasPrefix(out.String(), "0::/\ncgroup2fs\n") {
		t.Errorf("code %d, stdout %q, stderr %q", code, &out, &errOut)
	}
}
