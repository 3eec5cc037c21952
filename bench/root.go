package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
)

// makeRoot makes a root file system of a static busybox with the commands that the
// benchmark uses.
func makeRoot(dir string) error {
	for _, d := range []string{"bin", "etc", "proc", "sys", "dev", "tmp"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	raw, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return fmt.Errorf("busybox-static is not installed: %w", err)
	}
	if err := os.WriteFile(dir+"/bin/busybox", raw, 0o755); err != nil {
		return err
	}
	for _, cmd := range []string{"true", "sh", "sleep", "ls"} {
		if err := os.Symlink("busybox", dir+"/bin/"+cmd); err != nil && !os.IsExist(err) {
			return err
		}
	}
	return nil
}

// mountOverlay mounts lower with the bundle's upper and work at the bundle's root.
func mountOverlay(lower, bundle string) error {
	return syscall.Mount("overlay", bundle+"/root", "overlay", 0,
		"lowerdir="+lower+",upperdir="+bundle+"/upper,workdir="+bundle+"/work")
}

// buildStatic builds a package of this module as a static binary.
func buildStatic(out, pkg string) error {
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	return cmd.Run()
}
