package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// A container that cannot be started is tried again, and no try leaves anything.
func TestFailedStarts(t *testing.T) {
	n, _ := podsNode(t, `
apiVersion: v1
kind: Pod
metadata: {name: bad}
spec:
  containers:
    - {name: main, image: "localhost/tool:1", command: [/bin/none]}
`)
	layers := func() []string {
		found, err := filepath.Glob(n.root + "/containers/*")
		if err != nil {
			t.Fatal(err)
		}
		return found
	}
	tries := func() int { return strings.Count(n.orlop("events"), "/bin/none") }
	n.eventually(60*time.Second, func() error {
		if n := tries(); n < 3 {
			return fmt.Errorf("%d tries so far", n)
		}
		return nil
	})
	n.eventually(10*time.Second, func() error { // but for what a try under way has
		if left := layers(); len(left) > 0 {
			return fmt.Errorf("writable layers are left: %v", left)
		}
		return nil
	})
}
