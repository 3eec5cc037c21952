// Package tiny makes programs whose code is 200 bytes of assembler, for processes for which
// even Go's runtime is too much: more than a megabyte, four threads, and 1.5 ms to start.
//
//   - Pause is process 1 of a pod's PID namespace, and lives as long as the pod.
//   - A Program is a list of system calls. It has one thread, so the kernel lets it join user
//     and time namespaces, which it refuses a process of several. It ends by executing what
//     comes next.
//
// The package is linked into orlop-init: it must not import fmt, os or encoding/json.
package tiny

import (
	"runtime"
	"unsafe"
)

// The file is loaded as it is, in one segment that nobody may write: headers, code, two
// fields of a Program, its data, and its table of calls. What calls write to is a segment
// without contents.
const (
	base         = 0x400000
	roomBase     = 0x10000000
	header       = 64 + 2*56
	maxCode      = 256   // more than either has
	tableField   = 0x1f0 // address of the table; calls_*.s have both too
	channelField = 0x1f8
	dataAt       = 0x200
	record       = 64
)

// The code is in assembler, and referred to there: a func value would be of Go's wrapper.
var pauseAddr, callsAddr uintptr

//lint:ignore U1000 see pauseAddr
func pauseCode()

//lint:ignore U1000 see callsAddr
func callsCode()

// Pause returns an executable that reaps what is orphaned to it and ends at SIGTERM or
// SIGINT, whose default a process 1 would ignore.
func Pause() []byte { return executable(pauseAddr, header+maxCode, 0) }

// word and load are encoding/binary's, which brings reflection with it.
func word(b []byte, v uint64) []byte {
	for i := range 8 {
		b = append(b, byte(v>>(8*i)))
	}
	return b
}

func load(b []byte) (v uint64) {
	for i := range 8 {
		v |= uint64(b[i]) << (8 * i)
	}
	return v
}

func put(b []byte, at, size int, v uint64) {
	for i := range size {
		b[at+i] = byte(v >> (8 * i))
	}
}

// executable puts an ELF file of that size together (elf(5)), with room for writing.
func executable(code uintptr, size, room int) []byte {
	machine := uint64(62)
	if runtime.GOARCH == "arm64" {
		machine = 183
	}
	b := make([]byte, size)
	copy(b, "\x7fELF\x02\x01\x01")
	put(b, 16, 2, 2) // executable
	put(b, 18, 2, machine)
	put(b, 20, 4, 1)
	put(b, 24, 8, base+header) // entry
	put(b, 32, 8, 64)          // program headers
	put(b, 52, 2, 64)          // size of this header
	put(b, 54, 2, 56)          // of a program header
	put(b, 56, 2, 1)           // one of them
	segment(b, 64, 5, base, size, size)
	if room > 0 {
		put(b, 56, 2, 2)
		segment(b, 64+56, 6, roomBase, 0, room)
	}
	copy(b[header:], unsafe.Slice((*byte)(*(*unsafe.Pointer)(unsafe.Pointer(&code))), maxCode))
	return b
}

// segment writes the program header of what is loaded (PT_LOAD) to an address: so much of the
// file's beginning, and zeros. access: 4 may be read, 2 written, 1 executed.
func segment(b []byte, at int, access, address uint64, file, memory int) {
	put(b, at, 4, 1)
	put(b, at+4, 4, access)
	put(b, at+16, 8, address) // virtual
	put(b, at+24, 8, address) // physical
	put(b, at+32, 8, uint64(file))
	put(b, at+40, 8, uint64(memory))
	put(b, at+48, 8, 0x1000)
}
