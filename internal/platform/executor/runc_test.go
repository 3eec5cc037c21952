package executor

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// BenchmarkRunc is the same container by runc's command line, to its end and deletion,
// for the ratio: run it together with BenchmarkStart.
func BenchmarkRunc(b *testing.B) {
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
