// Package xfs makes, recognises and grows XFS filesystems, by xfsprogs.
package xfs

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"unsafe"

	"github.com/google/uuid"
	"github.com/orlop-io/orlop/internal/base/errs"
	"golang.org/x/sys/unix"
)

// MinSizeBytes is what mkfs.xfs takes at least (xfsprogs 5.19: 300 MiB).
const MinSizeBytes = 300 << 20

// Make formats the image, whatever it holds, for a device of the given sector size, with reflink, and without the reverse
// mapping tree, which every clone and every write would have to update and nothing here asks for.
func Make(ctx context.Context, path string, id uuid.UUID, sectorBytes uint32) error {
	_, err := run(ctx, "mkfs.xfs", "-q", "-f", "-K", "-s", fmt.Sprintf("size=%d", sectorBytes), "-m", "reflink=1,rmapbt=0,uuid="+id.String(), path)
	if err != nil {
		return fmt.Errorf("format %s: %w", path, err)
	}
	return nil
}

// Grow grows the filesystem mounted at dir to the size of its device.
func Grow(ctx context.Context, dir string) error {
	if _, err := run(ctx, "xfs_growfs", "-d", dir); err != nil {
		return fmt.Errorf("grow the filesystem mounted at %s: %w", dir, err)
	}
	return nil
}

// Superblock is the part of the on-disk superblock that tells what is there.
type Superblock struct {
	UUID        uuid.UUID
	SectorBytes uint32 // the filesystem mounts only on devices whose sectors are not larger
}

// ReadSuperblock reads the superblock of an image. Something else than XFS there is
// an errs.Corrupt error.
func ReadSuperblock(path string) (Superblock, error) {
	f, err := os.Open(path)
	if err != nil {
		return Superblock{}, err
	}
	defer f.Close()
	// struct xfs_dsb (fs/xfs/libxfs/xfs_format.h): magic at 0, UUID at 32, sector size at 102.
	var b [104]byte
	if _, err := io.ReadFull(f, b[:]); err != nil || string(b[:4]) != "XFSB" {
		return Superblock{}, errs.New(errs.Corrupt, "%s holds no XFS filesystem", path)
	}
	s := Superblock{uuid.UUID(b[32:48]), uint32(binary.BigEndian.Uint16(b[102:]))}
	if s.SectorBytes < 512 || s.SectorBytes&(s.SectorBytes-1) != 0 {
		return s, errs.New(errs.Corrupt, "%s: a sector size of %d bytes is impossible", path, s.SectorBytes)
	}
	return s, nil
}

func run(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	raw, err := cmd.CombinedOutput()
	out := strings.TrimSpace(string(raw))
	switch {
	case err == nil:
		return out, nil
	case errors.Is(err, exec.ErrNotFound):
		return "", errs.New(errs.Unsupported, "%s is not installed; install xfsprogs", name)
	case ctx.Err() != nil:
		return out, ctx.Err()
	}
	return out, fmt.Errorf("%s: %w: %s", name, err, out)
}

// SizeBytes returns the size of the data section of the filesystem mounted at dir.
func SizeBytes(dir string) (int64, error) {
	f, err := os.Open(dir)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	// struct xfs_fsop_geom_v1 and XFS_IOC_FSGEOMETRY_V1, _IOR('X', 100, …) (fs/xfs/libxfs/xfs_fs.h):
	// the oldest form has all that is asked for, and every kernel knows it.
	var g struct {
		blockSize, rtExtSize, agBlocks, agCount, logBlocks, sectSize, inodeSize, imaxPct uint32
		dataBlocks, rtBlocks, rtExtents, logStart                                        uint64
		uuid                                                                             [16]byte
		sunit, swidth                                                                    uint32
		version                                                                          int32
		flags, logSectSize, rtSectSize, dirBlockSize                                     uint32
	}
	const getGeometry = 2<<30 | uint(unsafe.Sizeof(g))<<16 | 'X'<<8 | 100
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), uintptr(getGeometry), uintptr(unsafe.Pointer(&g))); errno != 0 {
		return 0, fmt.Errorf("geometry of %s: %w", dir, errno)
	}
	return int64(g.dataBlocks) * int64(g.blockSize), nil
}
