package keeper_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/keeper"
)

// A restore is the runtime's: it is told where the images are, and of one that fails nothing is left. Without a
// runtime there is nobody to do it. What succeeds is shown by test/e2e, in a machine where CRIU works.
func TestRestoreFails(t *testing.T) {
	r := newRig(t)
	told := filepath.Join(t.TempDir(), "told")
	path := filepath.Join(t.TempDir(), "runtime")
	script := "#!/bin/sh\ncase \"$*\" in *\" restore \"*) echo \"$@\" >" + told + "; echo 'CRIU cannot' >&2; exit 1;; esac\nexec " + programOf(t, "runc") + " \"$@\"\n"
	if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	spec := r.by(r.runtime(path), "restored", "true")
	spec.Restore = &keeper.Restore{Images: "/the/images", Work: "/the/log"}
	if _, err := r.c.Run(r.ctx, spec); err == nil || !strings.Contains(err.Error(), "CRIU cannot") {
		t.Errorf("run: %v", err)
	}
	raw, err := os.ReadFile(told)
	if err != nil || !strings.Contains(string(raw), "--image-path /the/images --work-path /the/log") || !strings.Contains(string(raw), "--bundle "+r.dir) {
		t.Errorf("it was told %q, %v", raw, err)
	}
	spec.Runtime = nil
	if _, err := r.c.Run(r.ctx, spec); !errors.Is(err, errs.Unsupported) {
		t.Errorf("without a runtime: %v", err)
	}
	if l, err := r.c.List(r.ctx); err != nil || len(l) > 0 {
		t.Errorf("left: %v, %v", l, err)
	}
	for _, pattern := range []string{"/rootfs/*", "/containers/*"} {
		if left, _ := filepath.Glob(r.dir + pattern); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	}
}
