package kubelet

import (
	"context"
	"errors"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// The kubelet is the one that build/go.mod names. test/run.sh has this test run first, so that no
// other test's time is taken by the build.
func TestBinary(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 25*time.Minute)
	defer cancel()
	path, err := Binary(ctx)
	if errors.Is(err, ErrNotBuilt) {
		t.Skip(err) // test/run.sh tells
	}
	if err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(ctx, path, "--help").CombinedOutput(); err != nil || !strings.Contains(string(out), "--container-runtime-endpoint") {
		t.Errorf("%s --help: %v: %.300s", path, err, out)
	}
}

func TestMode(t *testing.T) {
	for _, tt := range []struct{ env, ci, want string }{
		{"", "", "cached"}, {"", "true", "build"}, {"cached", "true", "cached"}, {"off", "true", "off"}, {"build", "", "build"}, {"yes", "", ""},
	} {
		t.Setenv(Env, tt.env)
		t.Setenv("CI", tt.ci)
		if got, err := mode(); got != tt.want || (err != nil) != (tt.want == "") {
			t.Errorf("%+v: %q %v", tt, got, err)
		}
	}
}
