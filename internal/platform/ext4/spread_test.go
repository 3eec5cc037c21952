package ext4

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"
)

func TestSpread(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("run as root")
	}
	for name, bare := range map[string]bool{"without a journal": true, "with a journal": false} {
		t.Run(name, func(t *testing.T) {
			img := image(t, 64*mib)
			if err := Make(context.Background(), img, Options{UUID: uuid.New(), Zeroed: true, NoJournal: bare}); err != nil {
				t.Fatal(err)
			}
			at := t.TempDir()
			if out, err := exec.Command("mount", "-o", "loop", img, at).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			defer func() {
				if err := unix.Unmount(at, 0); err != nil {
					t.Error(err)
				}
			}()
			dir := filepath.Join(at, "containers")
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			for range 2 { // the second finds it done
				if err := Spread(dir); err != nil {
					t.Fatal(err)
				}
			}
			f, err := os.Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			flags, err := unix.IoctlGetUint32(int(f.Fd()), unix.FS_IOC_GETFLAGS)
			if err != nil || flags&topDir == 0 {
				t.Errorf("flags %#x, %v", flags, err)
			}
			if got, err := NoJournal(dir); got != bare || err != nil {
				t.Errorf("NoJournal: %v, %v", got, err)
			}
		})
	}
	if err := Spread("/proc"); err != nil {
		t.Errorf("another filesystem: %v", err)
	}
	if bare, err := NoJournal("/proc"); bare || err != nil {
		t.Errorf("another filesystem: %v, %v", bare, err)
	}
	if err := Spread("/no/such/directory"); err == nil {
		t.Error("no directory, no error")
	}
}
