package main

import (
	"archive/tar"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/orlop-io/orlop/internal/image/imagetest"
)

// What idles in pods, and what containerd's sandboxes are held by, is the same small
// static program; the argument tells them apart in a process's command line.
const (
	workloadMark = "88888888"
	pauseMark    = "99999999"
)

// commands are the links to busybox that the containers use.
var commands = []string{"true", "sleep"}

func busybox() ([]byte, error) {
	raw, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return nil, fmt.Errorf("install busybox-static: %w", err)
	}
	return raw, nil
}

// rootEntries is a root filesystem of a static busybox, for an image.
func rootEntries() ([]imagetest.Entry, error) {
	raw, err := busybox()
	if err != nil {
		return nil, err
	}
	var list []imagetest.Entry
	for _, d := range []string{"bin", "dev", "etc", "proc", "sys", "tmp"} {
		list = append(list, imagetest.Dir(d))
	}
	list = append(list, imagetest.Entry{Header: tar.Header{Name: "bin/busybox", Typeflag: tar.TypeReg, Mode: 0o755}, Data: string(raw)})
	for _, c := range commands {
		list = append(list, imagetest.Symlink("bin/"+c, "busybox"))
	}
	return list, nil
}

// makeRoot makes the same as a directory, for runtimes that have no images.
func makeRoot(dir string) error {
	entries, err := rootEntries()
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name)
		switch e.Typeflag {
		case tar.TypeDir:
			err = os.MkdirAll(path, 0o755)
		case tar.TypeSymlink:
			err = os.Symlink(e.Linkname, path)
		default:
			err = os.WriteFile(path, []byte(e.Data), 0o755)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// mountOverlay mounts lower with the bundle's upper and work at the bundle's root. It is
// volatile, as Orlop's own roots are: otherwise unmounting writes back the whole filesystem
// that the upper layer is on, 5 to 20 ms of a disk's time that say nothing of a runtime.
func mountOverlay(lower, bundle string) (unmount func() error, err error) {
	at := bundle + "/root"
	err = syscall.Mount("overlay", at, "overlay", 0, "lowerdir="+lower+",upperdir="+bundle+"/upper,workdir="+bundle+"/work,volatile")
	if err != nil {
		return nil, fmt.Errorf("mount %s: %w", at, err)
	}
	return func() error { return syscall.Unmount(at, syscall.MNT_DETACH) }, nil
}
