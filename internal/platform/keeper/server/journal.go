package server

import (
	"encoding/binary"
	"os"

	"golang.org/x/sys/unix"
)

// position is what a container's journal holds, a file on tmpfs of 32 bytes, all
// little-endian: log, inode, stage of stdout, stage of stderr. It is read and
// written by one system call, and as it lies in one page a killed keeper has written all
// of it or nothing.
type position struct {
	log   int64    // offset in the log behind the last line
	inode uint64   // of the log's file
	stage [2]int64 // what has been logged of stdout and stderr
}

const positionSize = 32

func (p *position) write(f *os.File) error {
	var b [positionSize]byte
	binary.LittleEndian.PutUint64(b[0:], uint64(p.log))
	binary.LittleEndian.PutUint64(b[8:], p.inode)
	binary.LittleEndian.PutUint64(b[16:], uint64(p.stage[0]))
	binary.LittleEndian.PutUint64(b[24:], uint64(p.stage[1]))
	_, err := f.WriteAt(b[:], 0)
	return err
}

// read leaves the zero position where there is none yet.
func (p *position) read(f *os.File) {
	var b [positionSize]byte
	if n, _ := f.ReadAt(b[:], 0); n != len(b) {
		return
	}
	p.log = int64(binary.LittleEndian.Uint64(b[0:]))
	p.inode = binary.LittleEndian.Uint64(b[8:])
	p.stage = [2]int64{int64(binary.LittleEndian.Uint64(b[16:])), int64(binary.LittleEndian.Uint64(b[24:]))}
}

// poll returns what poll(2) says of the descriptor now.
func poll(f *os.File) int16 {
	p := []unix.PollFd{{Fd: int32(f.Fd()), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(p, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 0
		}
		return p[0].Revents
	}
}
