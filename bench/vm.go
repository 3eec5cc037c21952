package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/orlop-io/orlop/test/vm"
)

// inMemory runs the program in a directory on a tmpfs: the machine's root is an overlay, on
// which no overlay can have its upper directory, and what is below /run is hidden in a run.
const inMemory = `set -e
d=/var/tmp/orlop-bench-memory
mkdir -p $d
mount -t tmpfs tmpfs $d
exec "$0" -dir $d/run "$@"`

// measureInVM runs this program on a cgroup-v2 machine, for the runtimes that this host's
// control groups keep out. It is emulated, some 20 times slower than the host: only
// ratios say something, and only of what is alike.
func measureInVM(ctx context.Context, o options) (*results, error) {
	say("booting a cgroup-v2 machine")
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	code, err := vm.Run(ctx, vm.Options{MemoryMiB: 2048, Timeout: 30 * time.Minute, Silence: 30 * time.Minute}, vm.Command{
		Argv: []string{"/bin/sh", "-c", inMemory, self, "-json", "-vm=false", "-bin", o.bin, "-only", cmp.Or(o.only, "orlop,orlop-oci,runc,crun"),
			"-pods", "0", "-pulls=false", "-rounds", strconv.Itoa(o.rounds), "-starts", strconv.Itoa(min(o.starts, 5)), "-parallel", strconv.Itoa(min(o.parallel, 10)), "-soak", "0"},
		Stdout: &out, Stderr: os.Stderr,
	})
	if err != nil {
		return nil, err
	}
	if code != 0 {
		return nil, fmt.Errorf("the benchmark in the machine ended with %d", code)
	}
	var r results
	if err := json.Unmarshal(out.Bytes(), &r); err != nil {
		return nil, fmt.Errorf("what the benchmark in the machine printed: %w", err)
	}
	return &r, nil
}
