package executor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// BenchmarkRunc is the same container by runc's command line, to its end and deletion,
// for the ratio: run it together with BenchmarkStart.
func BenchmarkRunc(b *testing.B) {
	b.Run("all", func(b *testing.B) { benchmarkRunc(b, false) })
	b.Run("new user", func(b *testing.B) { benchmarkRunc(b, true) })
}

func benchmarkRunc(b *testing.B, users bool) {
	runc, err := exec.LookPath("runc")
	if err != nil {
		b.Fatal("runc is needed for the comparison: ", err)
	}
	bundle := b.TempDir()
	if err := os.Rename(image(b), bundle+"/rootfs"); err != nil {
		b.Fatal(err)
	}
	s := spec("/bin/true")
	s.Hostname = ""
	s.Linux.Namespaces = pinned(b)
	if users { // with the owners shifted, which is not counted
		var c Config
		s.Linux.Namespaces = spec().Linux.Namespaces
		mapped(s, &c)
		if err := filepath.WalkDir(bundle+"/rootfs", func(p string, _ fs.DirEntry, err error) error {
			return errors.Join(err, os.Lchown(p, 100000, 200000))
		}); err != nil {
			b.Fatal(err)
		}
		for _, p := range []string{filepath.Dir(bundle), bundle} { // runc goes there as the user
			if err := os.Chmod(p, 0o755); err != nil {
				b.Fatal(err)
			}
		}
	}
	s.Linux.Seccomp = defaultSeccomp(b)
	s.Root = &specs.Root{Path: "rootfs"}
	s.Linux.CgroupsPath = fmt.Sprintf("/orlop-exec-test-runc-%d", os.Getpid())
	limit := int64(64 << 20)
	s.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}
	data, err := json.Marshal(s)
	if err != nil {
		b.Fatal(err)
	}
	if err := os.WriteFile(bundle+"/config.json", data, 0o644); err != nil {
		b.Fatal(err)
	}
	state := b.TempDir()
	for b.Loop() {
		cmd := exec.Command(runc, "--root", state, "run", "--bundle", bundle, "bench")
		if out, err := cmd.CombinedOutput(); err != nil {
			b.Fatalf("%v: %s", err, out)
		}
	}
}
