// Package programs builds the programs that tests run: once for a test binary, and not at
// all where they are there already.
//
//	dir, remove, err := programs.Build(programs.Program{Package: "cmd/orlop-init"})
//
// ORLOP_TEST_PROGRAMS names a directory in which they are kept. What is missing in it is
// built into it, so that
//
//	ORLOP_TEST_PROGRAMS=DIR ./executor.test -test.run '^$'
//
// fills it, and tests on a machine that is slow, or has no compiler, find all they need.
// A directory belongs to the one test binary that fills it: what is in it is taken as
// it is.
package programs

import (
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
)

// Env names the variable.
const Env = "ORLOP_TEST_PROGRAMS"

const module = "github.com/orlop-io/orlop/"

// Program is what a test runs.
type Program struct {
	Package string // below the module: "cmd/orlop-init"
	Name    string // of its file; "" is the last part of Package
	Tags    string
	Race    bool   // with the race detector, if this test binary has it
	LDFlags string // "-s -w" for what is measured
}

func (p Program) name() string {
	if p.Name != "" {
		return p.Name
	}
	return path.Base(p.Package)
}

// Build returns the directory that has the programs by their names, and what removes it.
// Programs are static, but for those with the race detector.
func Build(list ...Program) (dir string, remove func(), err error) {
	if Race && os.Getenv("GORACE") == "" {
		os.Setenv("GORACE", "atexit_sleep_ms=0") // or each of them waits a second at its end
	}
	dir, remove = os.Getenv(Env), func() {}
	if dir == "" {
		if dir, err = os.MkdirTemp("", "orlop-test-programs-"); err != nil {
			return "", nil, err
		}
		remove = func() { os.RemoveAll(dir) }
	}
	for _, p := range list {
		if err := p.build(filepath.Join(dir, p.name())); err != nil {
			remove()
			return "", nil, err
		}
	}
	return dir, remove, nil
}

func (p Program) build(file string) error {
	if _, err := os.Stat(file); err == nil {
		return nil
	}
	args, cgo := []string{"build", "-trimpath", "-tags", p.Tags, "-ldflags", p.LDFlags, "-o", file}, "CGO_ENABLED=0"
	if p.Race && Race {
		args, cgo = append(args, "-race"), "CGO_ENABLED=1"
	}
	cmd := exec.Command("go", append(args, module+p.Package)...)
	cmd.Env = append(os.Environ(), cgo)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build %s: %w\n%s", p.Package, err, out)
	}
	return nil
}

// Runc is the runtime that ours is compared with. Debian's knows version 1.0 of the specification, and
// has no id-mapped mounts.
const Runc = "github.com/opencontainers/runc@v1.5.1"

// BuildRunc builds Runc into the directory, as long as it is not there, and returns its path.
func BuildRunc(dir string) (string, error) {
	path := filepath.Join(dir, "runc")
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	cmd := exec.Command("go", "install", "-trimpath", "-tags", "seccomp", Runc)
	cmd.Dir = dir // not in our module
	cmd.Env = append(os.Environ(), "GOBIN="+dir, "CGO_ENABLED=1", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w (deploy/packages.sh test installs what it needs)\n%s", Runc, err, out)
	}
	return path, nil
}
