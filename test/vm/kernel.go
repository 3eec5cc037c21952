package vm

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/orlop-io/orlop/test/cache"
	"github.com/orlop-io/orlop/test/vm/boot"
)

// kernel is an unpacked kernel package in the cache:
//
//	CACHE/linux-image-6.1.0-56-cloud-amd64_6.1.192-2_amd64/
//	  boot/vmlinuz-…  lib/modules/…  index.json (boot.Index)
type kernel struct {
	image string
	index string
	boot.Index
}

// metapackage is Debian's kernel for virtual machines: it has virtio, virtiofs and
// everything that containers use, as modules.
const metapackage = "linux-image-cloud-amd64"

// fetchKernel returns the newest kernel in the cache, and downloads one if there is none.
func fetchKernel(ctx context.Context, dir string) (*kernel, error) {
	unlock, err := cache.Lock(dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	have, err := filepath.Glob(filepath.Join(dir, "linux-image-*", "index.json"))
	if err != nil {
		return nil, err
	}
	if len(have) == 0 {
		if err := download(ctx, dir); err != nil {
			return nil, fmt.Errorf("get a kernel for the test machine: %w", err)
		}
		if have, err = filepath.Glob(filepath.Join(dir, "linux-image-*", "index.json")); err != nil || len(have) == 0 {
			return nil, errors.Join(errors.New("the kernel's package has no kernel"), err)
		}
	}
	slices.Sort(have)
	k := &kernel{index: have[len(have)-1]}
	images, err := filepath.Glob(filepath.Join(filepath.Dir(k.index), "boot", "vmlinuz-*"))
	if err != nil || len(images) != 1 {
		return nil, fmt.Errorf("%s: one kernel expected, found %v; remove the directory to have it made anew", filepath.Dir(k.index), images)
	}
	k.image = images[0]
	b, err := os.ReadFile(k.index)
	if err != nil {
		return nil, err
	}
	return k, json.Unmarshal(b, &k.Index)
}

// download makes the cache's directory of the newest kernel, complete or not at all.
func download(ctx context.Context, cache string) error {
	if _, err := exec.LookPath("apt-get"); err != nil {
		return fmt.Errorf("apt-get is needed to download %s (Debian; elsewhere unpack a kernel package into %s): %w", metapackage, cache, err)
	}
	out, err := command(ctx, "", "apt-cache", "depends", "--important", metapackage)
	if err != nil {
		return fmt.Errorf("%w; run: apt-get update", err)
	}
	var pkg string
	for line := range strings.SplitSeq(out, "\n") {
		if name, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: linux-image-"); ok {
			pkg = "linux-image-" + name
			break
		}
	}
	if pkg == "" {
		return fmt.Errorf("apt-cache does not say which kernel %s stands for:\n%s", metapackage, out)
	}
	// What a run that was killed left behind.
	if old, _ := filepath.Glob(filepath.Join(cache, ".new-*")); len(old) > 0 {
		for _, d := range old {
			os.RemoveAll(d)
		}
	}
	tmp, err := os.MkdirTemp(cache, ".new-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	if _, err := command(ctx, tmp, "apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", pkg); err != nil {
		return fmt.Errorf("%w; run: apt-get update", err)
	}
	debs, err := filepath.Glob(filepath.Join(tmp, "*.deb"))
	if err != nil || len(debs) != 1 {
		return fmt.Errorf("apt-get downloaded %v", debs)
	}
	root := filepath.Join(tmp, "root")
	if _, err := command(ctx, tmp, "dpkg-deb", "-x", debs[0], root); err != nil {
		return err
	}
	// Where /usr is merged in the package too, modules are in usr/lib; one place is enough.
	if _, err := os.Stat(filepath.Join(root, "lib")); err != nil {
		if err := os.Rename(filepath.Join(root, "usr", "lib"), filepath.Join(root, "lib")); err != nil {
			return err
		}
	}
	name := strings.TrimSuffix(filepath.Base(debs[0]), ".deb")
	if err := decompress(ctx, root); err != nil {
		return err
	}
	final := filepath.Join(cache, name)
	x, err := indexModules(root, final)
	if err != nil {
		return err
	}
	b, err := json.Marshal(x)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(root, "index.json"), b, 0o644); err != nil {
		return err
	}
	return os.Rename(root, final)
}

// decompress unpacks modules where the distribution compresses them (Debian 13).
func decompress(ctx context.Context, root string) error {
	var packed []string
	err := filepath.WalkDir(filepath.Join(root, "lib", "modules"), func(p string, d fs.DirEntry, err error) error {
		if strings.HasSuffix(p, ".ko.xz") {
			packed = append(packed, p)
		}
		return err
	})
	for part := range slices.Chunk(packed, 500) {
		if _, err := command(ctx, "", "xz", append([]string{"-d", "--"}, part...)...); err != nil {
			return fmt.Errorf("%w (package xz-utils)", err)
		}
	}
	return err
}

// indexModules reads from every module (section .modinfo) what it depends on and which
// names it answers to. Paths are those below final.
func indexModules(root, final string) (*boot.Index, error) {
	x := &boot.Index{Files: map[string]string{}, Depends: map[string][]string{}, Aliases: map[string]string{}}
	return x, filepath.WalkDir(filepath.Join(root, "lib", "modules"), func(p string, d fs.DirEntry, err error) error {
		if err != nil || filepath.Ext(p) != ".ko" {
			return err
		}
		rel, err := filepath.Rel(root, p)
		if err != nil {
			return err
		}
		f, err := elf.Open(p)
		if err != nil {
			return fmt.Errorf("read module %s: %w", p, err)
		}
		defer f.Close()
		section := f.Section(".modinfo")
		if section == nil {
			return nil
		}
		data, err := section.Data()
		if err != nil {
			return fmt.Errorf("read module %s: %w", p, err)
		}
		name := boot.Normal(strings.TrimSuffix(filepath.Base(p), ".ko"))
		x.Files[name] = filepath.Join(final, rel)
		for field := range bytes.SplitSeq(data, []byte{0}) {
			key, value, _ := strings.Cut(string(field), "=")
			switch key {
			case "depends":
				for d := range strings.SplitSeq(value, ",") {
					if d != "" {
						x.Depends[name] = append(x.Depends[name], boot.Normal(d))
					}
				}
			case "alias":
				// Devices' aliases are for udev; what code asks for by name is short.
				if !strings.ContainsAny(value, ":") {
					x.Aliases[boot.Normal(value)] = name
				}
			}
		}
		return nil
	})
}

func command(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s", strings.Join(append([]string{name}, args[:min(len(args), 6)]...), " "), err, bytes.TrimSpace(out))
	}
	return string(out), nil
}
