// Package kubelet builds a real kubelet, for tests of what it is a client of.
//
// It comes from the module proxy alone: build/ is a module of its own with Kubernetes'
// own requirements, so that nothing of them is among the product's. To build it takes about
// twelve minutes of CPU time, so the binary is kept in the tests' cache (package cache), one for
// each state of build/go.mod and go.sum. ORLOP_TEST_KUBELET says what happens where it is not there:
//
//	build   it is built; what CI=true does
//	cached  Binary says what to do, and its tests do not run; what everybody else does
//	off     they do not run in any case
package kubelet

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"

	"github.com/orlop-io/orlop/test/cache"
)

// Env names the variable.
const Env = "ORLOP_TEST_KUBELET"

// ErrNotBuilt is Binary's answer where there is no kubelet and nobody asked to build one, or none is wanted.
var ErrNotBuilt = errors.New("no kubelet is in the tests' cache, or none is wanted: its tests do NOT run; build it (some minutes, once) with " + Env + "=build")

// mode is what the variable says, or stands for where it says nothing.
func mode() (string, error) {
	switch m := os.Getenv(Env); {
	case m == "build" || m == "cached" || m == "off":
		return m, nil
	case m != "":
		return "", fmt.Errorf("%s=%s: it is build, cached or off", Env, m)
	case os.Getenv("CI") == "true":
		return "build", nil
	}
	return "cached", nil
}

// Binary returns the path of the kubelet.
func Binary(ctx context.Context) (string, error) {
	mode, err := mode()
	if err != nil {
		return "", err
	}
	if mode == "off" {
		return "", ErrNotBuilt
	}
	_, file, _, _ := runtime.Caller(0)
	module := filepath.Join(filepath.Dir(file), "build")
	key := sha256.New()
	for _, f := range []string{"go.mod", "go.sum"} {
		b, err := os.ReadFile(filepath.Join(module, f))
		if err != nil {
			return "", fmt.Errorf("find the kubelet to build: %w", err)
		}
		key.Write(b)
	}
	dir, err := cache.Dir()
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "kubelet-"+hex.EncodeToString(key.Sum(nil))[:16])
	unlock, err := cache.Lock(dir)
	if err != nil {
		return "", err
	}
	defer unlock()
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if mode != "build" {
		return "", ErrNotBuilt
	}
	begin := time.Now()
	fmt.Fprintln(os.Stderr, "building kubelet into", path, "(some minutes, once)")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path+".new", "k8s.io/kubernetes/cmd/kubelet")
	cmd.Dir = module
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		os.Remove(path + ".new")
		return "", fmt.Errorf("build kubelet: %w\n%s", err, out)
	}
	fmt.Fprintf(os.Stderr, "kubelet is built: %s, %s of CPU time\n", time.Since(begin).Round(time.Second), (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Round(time.Second))
	old, _ := filepath.Glob(filepath.Join(dir, "kubelet-*")) // of versions before, and what was cut off
	for _, f := range old {
		if f != path+".new" {
			os.Remove(f)
		}
	}
	return path, os.Rename(path+".new", path)
}
