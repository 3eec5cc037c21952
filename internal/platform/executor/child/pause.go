package child

import (
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A pause process lives as long as its pod. Go's runtime would keep more than a megabyte
// and four threads for it, so it becomes a program of a hundred bytes instead, in
// assembler: process 1 that reaps what is orphaned to it, and ends at SIGTERM or SIGINT,
// whose default a process 1 would ignore.

// pauseCode is in assembler, and referred to there.
//
//lint:ignore U1000 see pauseAddr
func pauseCode()

// pauseAddr is where pauseCode is; a func value would be of Go's wrapper around it.
var pauseAddr uintptr

const pauseSize = 256 // more than it has

// pause executes that program.
func (s *state) pause() *fail {
	fd, err := unix.MemfdCreate("pause", unix.MFD_CLOEXEC|unix.MFD_EXEC)
	if err == unix.EINVAL { // Linux before 6.3
		fd, err = unix.MemfdCreate("pause", unix.MFD_CLOEXEC)
	}
	if err != nil {
		return failed(err, "memfd")
	}
	code := unsafe.Slice((*byte)(*(*unsafe.Pointer)(unsafe.Pointer(&pauseAddr))), pauseSize)
	if _, err := unix.Write(fd, append(elf(), code...)); err != nil {
		return failed(err, "memfd")
	}
	name, empty := []byte("pause\x00"), []byte("\x00")
	argv, envv := [2]*byte{&name[0], nil}, [1]*byte{}
	_, _, e := unix.RawSyscall6(unix.SYS_EXECVEAT, uintptr(fd), uintptr(unsafe.Pointer(&empty[0])),
		uintptr(unsafe.Pointer(&argv[0])), uintptr(unsafe.Pointer(&envv[0])), unix.AT_EMPTY_PATH, 0)
	return raw(e, "pause")
}

// elf makes the headers of an executable with one segment, which begins with them
// (elf(5)).
func elf() []byte {
	const (
		base   = 0x400000
		header = 64 + 56
	)
	machine := byte(62)
	if runtime.GOARCH == "arm64" {
		machine = 183
	}
	b := make([]byte, header, header+pauseSize)
	copy(b, "\x7fELF\x02\x01\x01")
	put := func(at, size int, v uint64) {
		for i := range size {
			b[at+i] = byte(v >> (8 * i))
		}
	}
	put(16, 2, 2) // executable
	put(18, 2, uint64(machine))
	put(20, 4, 1)
	put(24, 8, base+header) // entry
	put(32, 8, 64)          // program headers
	put(52, 2, 64)          // size of this header
	put(54, 2, 56)          // of a program header
	put(56, 2, 1)           // one of them
	put(64, 4, 1)           // PT_LOAD
	put(68, 4, 5)           // readable, executable
	put(80, 8, base)        // virtual address
	put(88, 8, base)        // physical
	put(96, 8, header+pauseSize)
	put(104, 8, header+pauseSize)
	put(112, 8, 0x1000)
	return b
}
