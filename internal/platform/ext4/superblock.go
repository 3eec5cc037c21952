// Package ext4 makes, examines, checks and grows ext4 filesystems, by e2fsprogs
// where the kernel has no call for it.
package ext4

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/google/uuid"
	"github.com/orlop-io/orlop/internal/base/errs"
)

// Superblock is the part of the on-disk superblock that tells what is there and
// in which state it was left (kernel: Documentation/filesystems/ext4/super.rst).
type Superblock struct {
	UUID      uuid.UUID
	Label     string
	SizeBytes int64 // blocks times block size
	BlockSize int64
	Clean     bool // unmounted, and no error was found while it was mounted
	Errors    bool // the kernel found an inconsistency
	Replay    bool // the journal holds what must be replayed; mounting does it
}

// Offsets within the superblock, which begins at byte 1024.
const (
	sbOffset       = 1024
	sbMagic        = 0x38
	sbState        = 0x3a
	sbBlocksLo     = 0x04
	sbLogBlock     = 0x18
	sbIncompat     = 0x60
	sbUUID         = 0x68
	sbLabel        = 0x78
	sbBlocksHi     = 0x150
	magic          = 0xef53
	stateValid     = 0x1
	stateErrors    = 0x2
	incompatReplay = 0x4
	incompat64     = 0x80
)

// ReadSuperblock reads the superblock of a device or image. Something else than
// ext4 there is an errs.Corrupt error. A mounted filesystem's is as of its last writeback.
func ReadSuperblock(path string) (Superblock, error) {
	f, err := os.Open(path)
	if err != nil {
		return Superblock{}, err
	}
	defer f.Close()
	var b [1024]byte
	if _, err := f.ReadAt(b[:], sbOffset); err != nil {
		if errors.Is(err, io.EOF) {
			err = errs.New(errs.Corrupt, "shorter than a superblock")
		}
		return Superblock{}, fmt.Errorf("read superblock of %s: %w", path, err)
	}
	le := binary.LittleEndian
	if le.Uint16(b[sbMagic:]) != magic {
		return Superblock{}, errs.New(errs.Corrupt, "%s holds no ext4 filesystem", path)
	}
	logBlock := le.Uint32(b[sbLogBlock:])
	if logBlock > 6 { // 64 KiB
		return Superblock{}, errs.New(errs.Corrupt, "%s: block size 2^%d KiB is impossible", path, logBlock)
	}
	incompat, state := le.Uint32(b[sbIncompat:]), le.Uint16(b[sbState:])
	blocks := uint64(le.Uint32(b[sbBlocksLo:]))
	if incompat&incompat64 != 0 {
		blocks |= uint64(le.Uint32(b[sbBlocksHi:])) << 32
	}
	if blocks > 1<<46 {
		return Superblock{}, errs.New(errs.Corrupt, "%s: a size of %d blocks is impossible", path, blocks)
	}
	s := Superblock{
		BlockSize: 1024 << logBlock,
		Errors:    state&stateErrors != 0,
		Replay:    incompat&incompatReplay != 0,
	}
	s.SizeBytes = int64(blocks) * s.BlockSize
	s.Clean = state&stateValid != 0 && !s.Errors && !s.Replay
	copy(s.UUID[:], b[sbUUID:])
	for _, c := range b[sbLabel : sbLabel+16] {
		if c == 0 {
			break
		}
		s.Label += string(rune(c))
	}
	return s, nil
}
