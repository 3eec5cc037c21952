package vm

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/orlop-io/orlop/test/vm/boot"
)

// bootModules are what the guest needs to reach the host's tree, where all others are.
var bootModules = []string{"virtio_mmio", "virtiofs", "virtio_console", "overlay"}

// initramfs writes an archive with the guest's init, its configuration and the modules
// that it needs first.
func initramfs(ctx context.Context, k *kernel, c *boot.Config, dir string) (file string, err error) {
	module, err := moduleRoot(ctx)
	if err != nil {
		return "", err
	}
	init := filepath.Join(dir, "init")
	build := command
	if _, err := build(ctx, module, "env", "CGO_ENABLED=0", "GOFLAGS=", "go", "build", "-trimpath", "-ldflags=-s -w", "-o", init, "./test/vm/guest"); err != nil {
		return "", fmt.Errorf("build the guest's init: %w", err)
	}
	var a archive
	b, err := os.ReadFile(init)
	if err != nil {
		return "", err
	}
	a.add("init", 0o100755, b)
	c.Index = k.index
	have := map[string]bool{}
	for _, m := range bootModules {
		for _, f := range k.Order(m) {
			if have[f] {
				continue
			}
			have[f] = true
			b, err := os.ReadFile(f)
			if err != nil {
				return "", err
			}
			a.add(filepath.Base(f), 0o100644, b)
			c.BootModules = append(c.BootModules, "/"+filepath.Base(f))
		}
	}
	if b, err = json.Marshal(c); err != nil {
		return "", err
	}
	a.add(boot.ConfigFile[1:], 0o100644, b)
	a.add("dev", 0o040755, nil)
	a.node("dev/console", 5, 1) // or the kernel gives init no descriptors 0 to 2
	a.add("TRAILER!!!", 0, nil)
	file = filepath.Join(dir, "initrd")
	return file, os.WriteFile(file, a.Bytes(), 0o644)
}

// moduleRoot is this Go module's directory, for tests run anywhere in it.
func moduleRoot(ctx context.Context) (string, error) {
	out, err := command(ctx, "", "go", "list", "-m", "-f", "{{.Dir}}", "github.com/orlop-io/orlop")
	if err != nil {
		return "", fmt.Errorf("find the source of the guest's init: %w", err)
	}
	return string(bytes.TrimSpace([]byte(out))), nil
}

// archive is a cpio archive of the kind "newc" (Documentation/driver-api/early-userspace/
// buffer-format.rst).
type archive struct {
	bytes.Buffer
	inode int
}

func (a *archive) add(name string, mode int, data []byte) { a.entry(name, mode, 0, 0, data) }

func (a *archive) node(name string, major, minor int) { a.entry(name, 0o020600, major, minor, nil) }

func (a *archive) entry(name string, mode, major, minor int, data []byte) {
	a.inode++
	// magic, ino, mode, uid, gid, nlink, mtime, size, device, device of a node, name, check
	fmt.Fprintf(a, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		a.inode, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name)+1, 0, name)
	a.pad()
	a.Write(data)
	a.pad()
}

func (a *archive) pad() {
	for a.Len()%4 != 0 {
		a.WriteByte(0)
	}
}
