//go:build faults

package namespace

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/orlop-io/orlop/internal/base/fault"
)

// TestFaultsChild is what TestFaults kills.
func TestFaultsChild(t *testing.T) {
	dir := os.Getenv("NAMESPACE_TEST_DIR")
	if dir == "" {
		return // not a child
	}
	o := Options{Hostname: "faulty"}
	if os.Getenv("NAMESPACE_TEST_OWNED") != "" {
		o.Users = mapped(300000)
	}
	if err := Pin(dir, []Kind{Net, IPC, UTS}, o); err != nil {
		t.Fatal(err)
	}
	if err := Unpin(dir); err != nil {
		t.Fatal(err)
	}
}

// TestFaults kills Pin and Unpin at every point: what is left is completed by the next
// Pin and taken away by the next Unpin.
func TestFaults(t *testing.T) {
	for _, point := range fault.List() {
		if !strings.HasPrefix(point, "namespace.") {
			continue
		}
		for i := range 4 {
			again, o, owned := i%2 == 0, Options{Hostname: "faulty"}, ""
			if i >= 2 {
				o.Users, owned = mapped(300000), "yes"
			}
			dir := place(t)
			cmd := exec.Command("/proc/self/exe", "-test.run", "^TestFaultsChild$")
			cmd.Env = append(os.Environ(), "NAMESPACE_TEST_DIR="+dir, "NAMESPACE_TEST_OWNED="+owned, "ORLOP_FAULT="+point)
			out, err := cmd.CombinedOutput()
			var exit *exec.ExitError
			if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
				t.Fatalf("%s: the child was not killed: %v\n%s", point, err, out)
			}
			if again {
				if err := Pin(dir, []Kind{Net, IPC, UTS}, o); err != nil {
					t.Fatalf("%s: %v", point, err)
				}
				inside(t, dir, []Kind{UTS}, func() error {
					if name, _ := os.ReadFile("/proc/sys/kernel/hostname"); string(name) != "faulty\n" {
						t.Errorf("%s: the host name is %q", point, name)
					}
					return nil
				})
			}
			if err := Unpin(dir); err != nil {
				t.Fatalf("%s: %v", point, err)
			}
			if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("%s: %s is still there", point, filepath.Base(dir))
			}
		}
	}
}
