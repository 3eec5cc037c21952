package ext4

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/orlop-io/orlop/internal/base/errs"
)

const mib = 1 << 20

func image(t *testing.T, sizeBytes int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fs.img")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, sizeBytes); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestMakeAndGrow(t *testing.T) {
	ctx := context.Background()
	for _, zeroed := range []bool{true, false} {
		path := image(t, 16*mib)
		o := Options{UUID: uuid.New(), Label: "sixteen-letters-", Zeroed: zeroed}
		if err := Make(ctx, path, o); err != nil {
			t.Fatal(err)
		}
		sb, err := ReadSuperblock(path)
		if err != nil || sb.UUID != o.UUID || sb.Label != o.Label || sb.SizeBytes != 16*mib || sb.BlockSize != 4096 || !sb.Clean || sb.Errors || sb.Replay {
			t.Errorf("superblock: %+v, %v", sb, err)
		}
		if err := Make(ctx, path, o); !errors.Is(err, errs.FailedPrecondition) {
			t.Errorf("format twice: %v", err)
		}
		if repaired, err := Check(ctx, path, true); err != nil || repaired != "" {
			t.Errorf("check of a new one: %q, %v", repaired, err)
		}
		if err := os.Truncate(path, 64*mib); err != nil {
			t.Fatal(err)
		}
		if err := GrowImage(ctx, path); err != nil {
			t.Error(err)
		}
		if sb, err := ReadSuperblock(path); err != nil || sb.SizeBytes != 64*mib || sb.UUID != o.UUID {
			t.Errorf("grown: %+v, %v", sb, err)
		}
	}
}

// An older mkfs.ext4 does not know assume_storage_prezeroed.
func TestOlderTools(t *testing.T) {
	bin := t.TempDir()
	real, err := exec.LookPath("mkfs.ext4")
	if err != nil {
		t.Fatal(err)
	}
	script := "#!/bin/sh\ncase \"$*\" in *assume_storage_prezeroed*) echo 'Bad option(s) specified: assume_storage_prezeroed'; exit 1;; esac\nexec " + real + " \"$@\"\n"
	if err := os.WriteFile(filepath.Join(bin, "mkfs.ext4"), []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	defer noPrezeroed.Store(false)
	path := image(t, 16*mib)
	if err := Make(context.Background(), path, Options{UUID: uuid.New(), Zeroed: true}); err != nil {
		t.Fatal(err)
	}
	if sb, err := ReadSuperblock(path); err != nil || !sb.Clean {
		t.Errorf("superblock: %+v, %v", sb, err)
	}
}

func TestNotEmpty(t *testing.T) {
	ctx := context.Background()
	for _, off := range []int64{0, 510, 1080, 65600, mib - 1} {
		path := image(t, 16*mib)
		f, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		f.WriteAt([]byte{1}, off)
		f.Close()
		before, _ := os.ReadFile(path)
		if err := Make(ctx, path, Options{UUID: uuid.New()}); !errors.Is(err, errs.FailedPrecondition) {
			t.Errorf("format over a byte at %d: %v", off, err)
		}
		if after, _ := os.ReadFile(path); string(after) != string(before) {
			t.Error("it was changed")
		}
	}
}

func TestCheck(t *testing.T) {
	ctx := context.Background()
	debugfs := func(path, request string) {
		t.Helper()
		if out, err := exec.Command("debugfs", "-w", "-R", request, path).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	path := image(t, 16*mib)
	if err := Make(ctx, path, Options{UUID: uuid.New(), Zeroed: true}); err != nil {
		t.Fatal(err)
	}
	debugfs(path, "set_super_value state 2")
	debugfs(path, "set_super_value free_blocks_count 5")
	if sb, err := ReadSuperblock(path); err != nil || sb.Clean || !sb.Errors {
		t.Errorf("superblock: %+v, %v", sb, err)
	}
	if repaired, err := Check(ctx, path, false); err != nil || repaired == "" {
		t.Errorf("check: %q, %v", repaired, err)
	}
	debugfs(path, "clri <2>")
	if _, err := Check(ctx, path, true); !errors.Is(err, errs.Corrupt) || !strings.Contains(err.Error(), "e2fsck -n") {
		t.Errorf("check of one without a root: %v", err)
	}
}

func TestNoSuperblock(t *testing.T) {
	for _, size := range []int64{0, 1024, 4096} {
		if _, err := ReadSuperblock(image(t, size)); !errors.Is(err, errs.Corrupt) {
			t.Errorf("superblock of %d zeros: %v", size, err)
		}
	}
}

func TestMissingTools(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if err := Make(context.Background(), image(t, 16*mib), Options{}); !errors.Is(err, errs.Unsupported) || !strings.Contains(err.Error(), "e2fsprogs") {
		t.Errorf("without mkfs.ext4: %v", err)
	}
}

// A superblock is the content of a container's volume: reading it must stand anything.
func FuzzReadSuperblock(f *testing.F) {
	f.Add(make([]byte, 4096))
	path := filepath.Join(f.TempDir(), "fs.img")
	f.Fuzz(func(t *testing.T, b []byte) {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if sb, err := ReadSuperblock(path); err == nil && (sb.SizeBytes < 0 || sb.BlockSize < 1024) {
			t.Errorf("%+v", sb)
		}
	})
}
