package e2e

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

const notesURL = "http://127.0.0.1:8080"

// runNotes packs the example's image and applies its manifest.
func (n *node) runNotes() {
	n.t.Helper()
	n.orlop("image", "pack", bin+"/notes", "-t", "localhost/notes:1", "--entrypoint", "/bin/notes")
	n.orlop("apply", "-f", "../../examples/notes.yaml", "--wait", "--timeout", "60s")
}

// addNote stores a note through the host port, from wherever url is reached.
func (n *node) addNote(text string) {
	n.t.Helper()
	if _, err := n.http("POST", notesURL+"/notes", text); err != nil {
		n.t.Fatalf("add a note: %v\n%s", err, n.tail())
	}
}

// hasNotes returns an error unless every text is stored.
func (n *node) hasNotes(texts ...string) error {
	out, err := n.http("GET", notesURL+"/notes", "")
	if err != nil {
		return err
	}
	for _, text := range texts {
		if !strings.Contains(out, text) {
			return fmt.Errorf("note %q is not in %s", text, out)
		}
	}
	return nil
}

// webPID returns the process of the notes pod's web container.
func (n *node) webPID() int {
	n.t.Helper()
	pids := processes(func(args []string) bool {
		return len(args) == 2 && args[0] == "/bin/notes" && args[1] == "serve"
	})
	for _, pid := range pids {
		raw, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
		if strings.Contains(string(raw), "/"+n.name+"/") {
			return pid
		}
	}
	n.t.Fatalf("no web container in %v", pids)
	return 0
}

// The main job, and what others cannot: the daemon dies, the pod goes, the machine
// restarts, and the notes are there.
func TestNotes(t *testing.T) {
	n := newNode(t)
	n.runNotes()
	if err := n.hasNotes("written by the init container"); err != nil {
		t.Fatal(err)
	}
	n.addNote("before the daemon dies")
	if out, err := httpIn("/run/netns/"+n.name+"-out", "GET", "http://"+n.uplink+":8080/notes", ""); err != nil || !strings.Contains(out, "before the daemon dies") {
		t.Errorf("the host port from another host: %v %s", err, out)
	}
	n.eventually(10*time.Second, func() error { // the sidecar sees the same volume
		out, err := n.try("logs", "notes", "-c", "digest")
		if err == nil && !strings.Contains(out, "notes=2") {
			err = errors.New(out)
		}
		return err
	})

	t.Run("daemon killed", func(t *testing.T) {
		pid := n.webPID()
		n.kill()
		n.addNote("while no daemon runs")
		n.start()
		if again := n.webPID(); again != pid {
			t.Errorf("the container was restarted: process %d was %d", again, pid)
		}
		if err := n.hasNotes("before the daemon dies", "while no daemon runs"); err != nil {
			t.Error(err)
		}
	})
	t.Run("keeper killed", func(t *testing.T) {
		pid, keeper := n.webPID(), n.keeperPID()
		if err := syscall.Kill(keeper, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		n.addNote("while no keeper runs")
		n.eventually(20*time.Second, func() error {
			if now := n.keeperPID(); now == keeper {
				return fmt.Errorf("still the old keeper %d", now)
			}
			out, err := n.try("logs", "notes", "-c", "web")
			if err == nil && strings.Count(out, "note added") != 3 {
				err = fmt.Errorf("log lines lost or doubled:\n%s", out)
			}
			return err
		})
		if again := n.webPID(); again != pid {
			t.Errorf("the container was restarted: process %d was %d", again, pid)
		}
		n.eventually(20*time.Second, func() error {
			_, err := n.try("exec", "notes", "-c", "web", "--", "/bin/notes", "check")
			return err
		})
	})
	t.Run("both killed", func(t *testing.T) {
		pid := n.webPID()
		n.kill()
		syscall.Kill(n.keeperPID(), syscall.SIGKILL)
		n.addNote("while neither runs")
		n.start()
		if again := n.webPID(); again != pid {
			t.Errorf("the container was restarted: process %d was %d", again, pid)
		}
		n.eventually(20*time.Second, func() error {
			out, err := n.try("logs", "notes", "-c", "web")
			if err == nil && strings.Count(out, "note added") != 4 {
				err = fmt.Errorf("log lines lost or doubled:\n%s", out)
			}
			return err
		})
	})
	t.Run("pod deleted and applied again", func(t *testing.T) {
		n.orlop("delete", "pod", "notes")
		if _, err := n.http("GET", notesURL+"/notes", ""); err == nil {
			t.Error("the host port still answers after the pod was deleted")
		}
		n.orlop("apply", "-f", "../../examples/notes.yaml", "--wait", "--timeout", "60s")
		if err := n.hasNotes("before the daemon dies", "while no daemon runs", "while no keeper runs", "while neither runs"); err != nil {
			t.Error(err)
		}
	})
	t.Run("reboot", func(t *testing.T) {
		n.powerOff()
		n.start()
		n.eventually(60*time.Second, func() error {
			return n.hasNotes("before the daemon dies", "while neither runs")
		})
	})
}

// powerOff does to this node what losing power does: every process ends at once,
// mounts, interfaces and everything on tmpfs is gone.
func (n *node) powerOff() {
	n.t.Helper()
	n.kill()
	syscall.Kill(n.keeperPID(), syscall.SIGKILL)
	n.killGroup()
	loops := n.loops()
	for range 10 { // stacked and nested mounts
		raw, _ := os.ReadFile("/proc/self/mountinfo")
		found := false
		for line := range strings.Lines(string(raw)) {
			if w := strings.Fields(line); strings.HasPrefix(w[4], n.run) || strings.HasPrefix(w[4], n.root) {
				found = true
				syscall.Unmount(w[4], syscall.MNT_DETACH)
			}
		}
		if !found {
			break
		}
	}
	if err := os.RemoveAll(n.run); err != nil {
		n.t.Fatal(err)
	}
	// The network namespace of the node is the "machine": a new one has no pod interfaces.
	for _, ns := range []string{n.name, n.name + "-out"} {
		run(n.t, "ip", "netns", "delete", ns)
	}
	n.network()
	for _, dev := range loops {
		exec.Command("losetup", "-d", dev).Run() // one that detached by itself is fine
	}
	if left := n.loops(); len(left) > 0 {
		n.t.Fatalf("loop devices are still attached: %v", left)
	}
	n.removeGroups()
}
