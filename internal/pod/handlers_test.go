package pod

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/orlop-io/orlop/internal/base/errs"
	"github.com/orlop-io/orlop/internal/platform/namespace"
	"github.com/orlop-io/orlop/internal/platform/ociruntime"
)

func TestHandlers(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	path := filepath.Join(dir, "runtime")
	install := func(features string) {
		t.Helper()
		text := "#!/bin/sh\necho asked >>" + dir + "/asked\n" + features + "\n"
		if err := os.WriteFile(path+".new", []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(path+".new", path); err != nil {
			t.Fatal(err)
		}
	}
	asked := func() int {
		raw, _ := os.ReadFile(dir + "/asked")
		return strings.Count(string(raw), "asked")
	}
	h := &handlers{log: slog.New(slog.DiscardHandler), runtimes: map[string]ociruntime.Runtime{"other": {Name: "other", Path: path, Timeout: 5 * time.Second}}}
	p := &Spec{Handler: "other"}
	plain := []specs.Mount{{Destination: "/a", Options: []string{"bind", "ro"}}}
	recursive := append(plain, specs.Mount{Destination: "/b", Options: []string{"rbind", "rro"}})
	mapped := append(plain, specs.Mount{Destination: "/c", UIDMappings: []specs.LinuxIDMapping{{Size: 1}}})

	for _, name := range []string{"", DefaultHandler} {
		if r, err := h.runtimeFor(ctx, &Spec{Handler: name}, append(recursive, mapped...)); r != nil || err != nil || !h.recursive(ctx, name) {
			t.Errorf("handler %q: %v %v", name, r, err)
		}
	}
	if err := h.admit(ctx, &Spec{Handler: "nothing"}); !errors.Is(err, errs.Invalid) || !strings.Contains(err.Error(), "this host has default, other") {
		t.Errorf("a handler that is not there: %v", err)
	}
	if err := h.admit(ctx, &Spec{Handler: "other", Users: &namespace.IDMaps{}}); !errors.Is(err, errs.Unsupported) {
		t.Errorf("a user namespace: %v", err)
	}
	if err := errors.Join(h.admit(ctx, p), h.admit(ctx, &Spec{Users: &namespace.IDMaps{}})); err != nil {
		t.Error(err)
	}

	install("echo '{}'")
	if r, err := h.runtimeFor(ctx, p, plain); err != nil || r == nil || r.Path != path || asked() != 0 {
		t.Errorf("%v %v; asked %d times, of which none is needed", r, err, asked())
	}
	for range 3 {
		if _, err := h.runtimeFor(ctx, p, recursive); !errors.Is(err, errs.Unsupported) || !strings.Contains(err.Error(), "/b") {
			t.Errorf("recursive: %v", err)
		}
		if _, err := h.runtimeFor(ctx, p, mapped); !errors.Is(err, errs.Unsupported) || !strings.Contains(err.Error(), "/c") {
			t.Errorf("mapped: %v", err)
		}
	}
	if asked() != 1 {
		t.Errorf("asked %d times", asked())
	}
	// Another version is asked anew.
	install(`echo '{"mountOptions":["rro"],"linux":{"mountExtensions":{"idmap":{"enabled":true}}}}'`)
	if _, err := h.runtimeFor(ctx, p, append(recursive, mapped...)); err != nil || asked() != 2 || !h.recursive(ctx, "other") {
		t.Errorf("%v; asked %d times", err, asked())
	}
	// One that is gone is not asked at every turn, and is back when it is there again.
	if err := os.Rename(path, path+".away"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if h.recursive(ctx, "other") {
			t.Error("a runtime that is gone has features")
		}
	}
	if err := os.Rename(path+".away", path); err != nil {
		t.Fatal(err)
	}
	if !h.recursive(ctx, "other") || asked() != 3 {
		t.Errorf("asked %d times", asked())
	}
}
