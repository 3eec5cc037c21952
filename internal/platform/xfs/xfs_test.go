package xfs

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/orlop-io/orlop/internal/base/errs"
)

func image(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "fs.img")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, MinSizeBytes); err != nil {
		t.Fatal(err)
	}
	return path
}

// Growing and the size of a mounted one are tested with the pool of volumes.
func TestMake(t *testing.T) {
	for _, sector := range []uint32{512, 4096} {
		path, id := image(t), uuid.New()
		if _, err := ReadSuperblock(path); !errors.Is(err, errs.Corrupt) {
			t.Errorf("superblock of zeros: %v", err)
		}
		if err := Make(context.Background(), path, id, sector); err != nil {
			t.Fatal(err)
		}
		if sb, err := ReadSuperblock(path); err != nil || sb.UUID != id || sb.SectorBytes != sector {
			t.Errorf("superblock: %+v, %v", sb, err)
		}
	}
}

func TestMissingTools(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	if err := Make(context.Background(), image(t), uuid.New(), 512); !errors.Is(err, errs.Unsupported) || !strings.Contains(err.Error(), "xfsprogs") {
		t.Errorf("without mkfs.xfs: %v", err)
	}
}
