package volume_test

import (
	"bytes"
	"context"
	"os"
	"testing"
	"time"

	"github.com/orlop-io/orlop/test/vm"
)

// On another machine: an older kernel (6.1), every capability, so that mounted
// filesystems grow, and a disk without direct I/O below the pool.
func TestOnOtherKernel(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	code, err := vm.Run(context.Background(), vm.Options{Stdout: &out, Stderr: &out, Timeout: 5 * time.Minute},
		self, "-test.v", "-test.run", "^(TestLife|TestExpand|TestBlock|TestReadOnlyAndShared|TestTeardownAlone|TestTrimAndPurge|TestRepaired)$")
	if err != nil || code != 0 {
		t.Errorf("exit code %d, %v\n%s", code, err, out.String())
	}
	if n := bytes.Count(out.Bytes(), []byte("--- PASS")); err == nil && n != 7 {
		t.Errorf("%d tests passed, not 7:\n%s", n, out.String())
	}
}
