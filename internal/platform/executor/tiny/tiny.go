// Package tiny makes programs of a few hundred bytes, in assembler, for processes for
// which even Go's runtime is too much: more than a megabyte and four threads.
//
//   - Pause is process 1 of a pod's PID namespace, and lives as long as the pod.
//   - A Program has one thread, so the kernel lets it join user and time namespaces, which
//     it refuses a process of several; it then executes what comes next.
//
// The package is linked into orlop-init: it must not import fmt, os or encoding/json.
package tiny

import (
	"runtime"
	"unsafe"
)

// The file is loaded as it is, in one segment that nobody may write: headers, code, data,
// and from tableAt on the table of calls.
const (
	base    = 0x400000
	header  = 64 + 56
	maxCode = 256 // more than either has
	dataAt  = 0x200
	tableAt = 0x800 // calls_*.s have it too
	record  = 64
)

// The code is in assembler, and referred to there: a func value would be of Go's wrapper.
var pauseAddr, callsAddr uintptr

//lint:ignore U1000 see pauseAddr
func pauseCode()

//lint:ignore U1000 see callsAddr
func callsCode()

// Pause returns an executable that reaps what is orphaned to it and ends at SIGTERM or
// SIGINT, whose default a process 1 would ignore.
func Pause() []byte { return executable(pauseAddr, nil, nil) }

// Program is a list of system calls, made in order.
type Program struct {
	table, data []byte
}

// Call adds a call. If it fails, the program writes a message to descriptor 3 (Failed) and
// ends.
func (p *Program) Call(nr uintptr, args ...uint64) { p.add(nr, args, 0) }

// Try adds a call that may fail.
func (p *Program) Try(nr uintptr, args ...uint64) { p.add(nr, args, 2) }

// Fork adds a call that makes a process. The new one goes on, the old one ends with status 0.
func (p *Program) Fork(nr uintptr, args ...uint64) { p.add(nr, args, 1) }

func (p *Program) add(nr uintptr, args []uint64, kind uint64) {
	var r [record / 8]uint64
	r[0] = uint64(nr)
	copy(r[1:7], args)
	r[7] = kind
	for _, v := range r {
		p.table = word(p.table, v)
	}
}

// Len is the number of calls so far, and the index of the next.
func (p *Program) Len() int { return len(p.table) / record }

// Data adds constant bytes and returns their address. Together they are at most 1,536.
func (p *Program) Data(b []byte) uint64 {
	for len(p.data)%8 != 0 {
		p.data = append(p.data, 0)
	}
	at := base + dataAt + len(p.data)
	if p.data = append(p.data, b...); len(p.data) > tableAt-dataAt {
		panic("tiny: too much data")
	}
	return uint64(at)
}

// Strings adds an array of strings as execve(2) takes it, and returns its address.
func (p *Program) Strings(list []string) uint64 {
	var array []byte
	for _, s := range list {
		array = word(array, p.Data(append([]byte(s), 0)))
	}
	return p.Data(append(array, make([]byte, 8)...))
}

// Executable returns the program.
func (p *Program) Executable() []byte { return executable(callsAddr, p.data, p.table) }

// Failed reads the message of a program of which a call failed.
func Failed(msg []byte) (call int, errno uint64, ok bool) {
	if len(msg) != 24 || msg[0] != 'x' {
		return 0, 0, false
	}
	return int((load(msg[8:]) - base - tableAt) / record), -load(msg[16:]), true
}

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

// executable puts an ELF file together (elf(5)).
func executable(code uintptr, data, table []byte) []byte {
	size := header + maxCode
	if table != nil {
		size = tableAt + len(table)
	}
	machine := uint64(62)
	if runtime.GOARCH == "arm64" {
		machine = 183
	}
	b := make([]byte, size)
	copy(b, "\x7fELF\x02\x01\x01")
	put := func(at, size int, v uint64) {
		for i := range size {
			b[at+i] = byte(v >> (8 * i))
		}
	}
	put(16, 2, 2) // executable
	put(18, 2, machine)
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
	put(96, 8, uint64(size))
	put(104, 8, uint64(size))
	put(112, 8, 0x1000)
	copy(b[header:], unsafe.Slice((*byte)(*(*unsafe.Pointer)(unsafe.Pointer(&code))), maxCode))
	if table != nil {
		copy(b[dataAt:], data)
		copy(b[tableAt:], table)
	}
	return b
}
