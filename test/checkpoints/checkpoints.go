// Package checkpoints is what tests that save and restore containers share.
package checkpoints

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/orlop-io/orlop/internal/platform/criu"
)

// NeedCRIU passes over the test where CRIU does not work, and says why and which row of
// test/vm runs it. In the test machine it has to work.
func NeedCRIU(t *testing.T, row string) {
	t.Helper()
	if _, err := criu.Open(t.Context(), "criu"); err != nil {
		if os.Getenv("ORLOP_TEST_CRIU") != "" {
			t.Fatal(err)
		}
		t.Skipf("run by test/vm (TestHosts/v2/%s): %v", row, err)
	}
}

// Counted returns how many lines cmd/orlop-oci/testdata/counter has written to a file. Each must
// follow from the one before, with nothing of its state lost.
func Counted(t testing.TB, file string) (n int) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		return 0
	}
	sum := 0
	for line := range strings.Lines(string(data)) {
		if !strings.HasSuffix(line, "\n") {
			break // on its way
		}
		n++
		sum += n
		if want := fmt.Sprintf("%d %d ok kept 1\n", n, sum); line != want {
			t.Fatalf("line %q, want %q", line, want)
		}
	}
	return n
}
