package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The daemon dies at every fault point of the pods' domain, one by one, while a pod
// is applied, its container killed, and the pod deleted. Whatever was acknowledged
// holds, the pod comes to run, and the node's own cleanup finds nothing left. The
// points of images, networks, volumes, control groups and the keeper are gone through
// by their packages' tests in the same way.
func TestDaemonKilledAtEveryPoint(t *testing.T) {
	out := run(t, bin+"/orlop", "daemon", "--faults")
	var points []string
	for p := range strings.FieldsSeq(out) {
		if strings.HasPrefix(p, "pod.") {
			points = append(points, p)
		}
	}
	if len(points) < 15 {
		t.Fatalf("only %d fault points: %v", len(points), points)
	}
	for _, point := range points {
		t.Run(point, func(t *testing.T) {
			n := newNode(t)
			n.orlop("image", "pack", bin+"/notes", "-t", "localhost/notes:1", "--entrypoint", "/bin/notes")
			n.kill()
			once := filepath.Join(t.TempDir(), "once")
			n.tryStart("ORLOP_FAULT="+point, "ORLOP_FAULT_ONCE="+once)

			n.insist("apply", "-f", "../../examples/notes.yaml", "--wait", "--timeout", "60s")
			n.addNote("acknowledged at " + point)
			pid := n.webPID()
			n.revive()
			n.eventually(30*time.Second, func() error { return n.hasNotes("acknowledged at " + point) })
			if now := n.webPID(); now != pid {
				t.Errorf("the container was restarted: process %d was %d", now, pid)
			}
			n.insist("delete", "pod", "notes", "--ignore-missing")
			if out := n.insist("ps"); strings.Contains(out, "notes") {
				t.Errorf("the pod is still there:\n%s", out)
			}
			n.insist("apply", "-f", "../../examples/notes.yaml", "--wait", "--timeout", "60s")
			n.eventually(30*time.Second, func() error { return n.hasNotes("acknowledged at " + point) })
			if _, err := os.Stat(once); err != nil {
				t.Errorf("nothing passed the point\n%s", n.tail())
			}
		})
	}
}

// revive starts the daemon if it has died.
func (n *node) revive() {
	n.t.Helper()
	if !n.alive() {
		n.start()
	}
}

// insist runs a command, and again after reviving the daemon where that died.
func (n *node) insist(args ...string) string {
	n.t.Helper()
	for try := 0; ; try++ {
		n.revive()
		out, err := n.try(args...)
		if err == nil {
			return out
		}
		if n.alive() && !n.waitExit(500*time.Millisecond) || try == 3 {
			n.t.Fatalf("%v\n%s", err, n.tail())
		}
	}
}
